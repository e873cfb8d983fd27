"""Lists, shows, verifies, compares, averages and converts patch files.

    python scripts/patch.py list runs/digits                    # every patch below a folder, or the files named
    python scripts/patch.py info PATCH                          # the contents of the file, and its variables
    python scripts/patch.py verify PATCH --trunk=bundled        # is it whole, and does it belong to this trunk?
    python scripts/patch.py diff PATCH PATCH                    # how two patches differ, and by how much
    python scripts/patch.py average PATCH PATCH --output=NEW    # of one task on one trunk; variances as of a mixture
    python scripts/patch.py convert PATCH --output=NEW --dtype=float16
    python scripts/patch.py own file:keras_model.h5 --output=NEW    # a classifier's own classes as a patch of its trunk

Every command but diff, convert and own takes any number of patches. `average --weights=3,1` weighs them, for example by their
numbers of images.
"""

from model_patch.experiments import cli

cli.flags.DEFINE_string("trunk", None, "The trunk to verify against, scheme:rest.")
cli.flags.DEFINE_string("output", None, "File to write; it must not exist.")
cli.flags.DEFINE_string("labels", None, "Text file with a label on each line; by default that beside the model.")
cli.flags.DEFINE_string("dtype", "float32", "Type of the values in the written file: float32 | float16.")
cli.define_list("weights", float, None, "A positive number for each patch that is averaged.")


def list_patches(path, *paths):
    """Prints a line per patch."""
    from model_patch import patch_files
    from model_patch.experiments.report.table import print_lines, table

    rows, damaged = [], []
    for each in (path, *paths):
        files, sentences = patch_files.find(each)
        damaged += sentences
        rows += [{"metrics": _metrics(file.patch), **vars(file)} for file in files]
    columns = {
        "file": "{path}",
        "task": "{patch.task.name}",
        "classes": lambda row: str(len(row["patch"].task.labels)),
        "train": "{patch.train_spec}",
        "trunk": "{patch.trunk}",
        "bytes": "{num_bytes:,}",
        "metrics": "{metrics}",
    }
    print_lines(*table(rows, columns))
    if damaged:
        raise patch_files.PatchError("; ".join(damaged))


def info(patch, *patches):
    """Prints the contents of each file."""
    from model_patch import patch_files
    from model_patch.experiments.report.table import print_table, table

    for path in (patch, *patches):
        file = patch_files.read(path)
        task, train_spec = file.patch.task, file.patch.train_spec
        for name, value in (
            ("file", file.path),
            ("size", f"{file.num_bytes:,} bytes"),
            ("sha256", file.sha256),
            ("task", f"{task.name}, {task.type}"),
            ("labels", f"{len(task.labels)}: {', '.join(task.labels)}"),
            ("preprocessing", f"{task.preprocessing.image_size} px, {task.preprocessing.mode}"),
            *(
                (name, value)
                for name, value in (("temperature", task.temperature), ("thresholds", _thresholds(task)))
                if value
            ),
            ("train", f"{train_spec}, statistics {train_spec.norm_statistics}"),
            ("trunk", file.patch.trunk),
            ("fingerprint", file.patch.fingerprint),
            ("metrics", _metrics(file.patch) or "none"),
            ("versions", ", ".join(f"{name} {value}" for name, value in file.patch.versions.items()) or "none"),
            ("values", ", ".join(f"{count:,} {dtype}" for dtype, count in file.dtypes.items())),
        ):
            print(f"{name:14} {value}")
        columns = {"variables": "{name}", "number": "{num_slots}", "values": "{num_values:,}"}
        columns |= {"smallest": "{low:.4g}", "largest": "{high:.4g}"}
        print_table("", *table(map(vars, patch_files.summarise(file.patch)), columns))


def _thresholds(task) -> str:
    return ", ".join(f"{value:.3f}" for value in getattr(task, "thresholds", None) or ())


def _metrics(patch) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in patch.metrics.items())


def verify(patch, *patches, trunk):
    """Prints the hashes of each patch that is whole and belongs to the trunk; ends at the first that does not."""
    from model_patch import patch_files

    for path in (patch, *patches):
        file, all_of_trunk = patch_files.verify(trunk, path)
        print(f"{path}: whole, and belongs to {trunk}")
        print(f"  sha256      {file.sha256}")
        print(f"  fingerprint {file.patch.fingerprint}  of the trunk weights that it leaves unchanged")
        print(f"  trunk       {all_of_trunk}  of all trunk weights")


def diff(first, second):
    """Prints how two patches differ."""
    from model_patch import patch_files
    from model_patch.experiments.report.table import print_table, table

    notes, differences = patch_files.diff(*(patch_files.read(path).patch for path in (first, second)))
    for note in notes:
        print(note)
    columns = {
        "variables": "{name}",
        "different values": "{num_different:,} of {num_values:,}",
        "rms": "{rms:.4g}",
        "of the first's rms": "{relative:.4f}",
        "largest": "{largest:.4g}",
        "where": "{key}",
    }
    print_table("", *table(map(vars, differences), columns))


def average(patch, other, *patches, output, weights=None, dtype="float32"):
    """Writes the average of patches."""
    from model_patch import patch_files

    loaded = [patch_files.read(path).patch for path in (patch, other, *patches)]
    averaged = patch_files.average(loaded, weights)
    patch_files.save_new(averaged, output, dtype)
    print(f"{output}: average of {len(loaded)} patches for {averaged.task.name}; not evaluated yet")


def convert(patch, *, output, dtype):
    """Writes a patch with its values in another dtype."""
    from model_patch import patch_files

    old, new, change = patch_files.convert(patch, output, dtype)
    print(f"{output}: {old.num_bytes:,} bytes became {new.num_bytes:,}; largest change of a value {100 * change:.3g} %")


def own(trunk, *, output, labels=None, dtype="float32"):
    """Writes the classes of a saved classifier as a patch of its trunk."""
    from model_patch import own_task, patch_files

    bound = own_task(trunk, labels)
    patch_files.save_new(bound.patch(), output, dtype)
    print(f"{output}: {', '.join(bound.task.labels)}")


if __name__ == "__main__":
    commands = {
        "list": list_patches,
        "info": info,
        "verify": verify,
        "diff": diff,
        "average": average,
        "convert": convert,
        "own": own,
    }
    cli.run_commands(commands)
