"""Many data sets: the same training of a task for each of them, in one process, on one trunk."""

import csv
from pathlib import Path

from ml_collections import ConfigDict

from model_patch.errors import ModelPatchError
from model_patch.experiments.binder import Binder
from model_patch.experiments.cluster import rows_in_any_order
from model_patch.experiments.report.output import write_report
from model_patch.experiments.report.sample import Sample, figure_of
from model_patch.experiments.report.table import table
from model_patch.experiments.run import Run, facts_of, identity, open_run
from model_patch.experiments.workdir import Workdir

FILE = "@"
"""Before the path of a file with a spec per line."""


def data_specs(text: str) -> list[str]:
    """Returns the specs of data sets that `--data` names.

    It is one spec; several joined by commas; `folder:` with a pattern of folders, such as `folder:customers/*`; or `@FILE`, a
    file with a spec on each line.

    Raises:
        ModelPatchError: the file cannot be read, or no folder matches.
    """
    if text.startswith(FILE):
        try:
            lines = [line.strip() for line in Path(text[1:]).expanduser().read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise ModelPatchError(
                f"the list of data {text[1:]} cannot be read ({error}): expected a spec on each line"
            ) from None
        return [spec for line in lines if line and not line.startswith("#") for spec in _folders(line)]
    if _is_folder(text):
        return [text]
    return [spec for part in next(csv.reader([text], skipinitialspace=True), []) for spec in _folders(part)]


def is_many(text: str) -> bool:
    """Whether `--data` names several data sets, or a list or pattern of them."""
    return text.startswith(FILE) or data_specs(text) != [text]


def _is_folder(spec: str) -> bool:
    scheme, _, path = spec.partition(":")
    return scheme == "folder" and Path(path).expanduser().is_dir()


def _folders(spec: str) -> list[str]:
    scheme, _, path = spec.partition(":")
    if scheme != "folder" or _is_folder(spec) or not any(character in path for character in "*?["):
        return [spec]
    pattern = Path(path).expanduser()
    base = Path(pattern.anchor)
    found = sorted(each for each in base.glob(str(pattern.relative_to(base))) if each.is_dir())
    if not found:
        raise ModelPatchError(f"no folder matches {spec}: expected folders with a data set each")
    return [f"folder:{each}" for each in found]


def transfer_many(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains every row of every data set: each of `config.train` with each of `config.seeds`.

    Tasks are named after their data. Those of one shape, as many classes and batches of the same sizes, are trained by one
    model, whose values are set back for each, and which is traced once.

    Writes, after each row, `results.json` and the row's patch file `patches/NAME.safetensors`, with the way of training and
    the seed in the name where there are several; at the end a table. Rows that are finished are not trained again.

    Args:
        config: see `configs/transfer.py`; `data` names several data sets, see `data_specs`.
        workdir: folder for all files.

    Returns:
        The contents of `results.json`: as for `transfer`, with the task's name in each row as `task`.

    Raises:
        ModelPatchError: something cannot be used, two tasks have one name, or the workdir holds another run.
    """
    if config.learning_rates:
        raise ModelPatchError(
            "--learning_rates compares rates for one data set: give one --data, or one --learning_rate"
        )
    if config.task_name:
        raise ModelPatchError("--task_name is for one data set: leave it out, tasks are named after their data")
    runs = open_runs(config)
    run_of = {run.task.name: run for run in runs}
    folder = Workdir(workdir, identity(config))
    trunk, train_specs = runs[0].trunk, runs[0].train_specs
    binder = Binder(trunk, remat=config.remat)
    is_one = len(train_specs) == len(config.seeds) == 1

    data_of = dict(zip(run_of, data_specs(config.data), strict=True))

    def name_of(task: str, train: str, seed: int) -> str:
        return task if is_one else f"{task}-{train}-seed{seed}"

    def train_row(task: str, train: str, seed: int) -> list[dict]:
        return [run_of[task].train_row(binder, folder, name_of(task, train, seed), train, seed, config.patch_dtype)]

    # By way of training: what was traced for one task serves the next.
    keys = [
        {"task": name, "train": train, "seed": seed}
        for train in train_specs
        for seed in config.seeds
        for name in run_of
    ]
    facts = {"trunk": config.trunk, "data": config.data, **facts_of(trunk)}
    results = folder.run_rows(
        facts, keys, train_row, rows_in_any_order(config, folder, lambda key: data_of[key["task"]], name_of)
    )
    rows = results["rows"]
    columns = {
        "task": "{task}",
        "train": "{train}",
        "seed": "{seed}",
        f"test {' or '.join(dict.fromkeys(map(figure_of, rows)))}": lambda row: f"{Sample.of([row]).mean:.3f}",
        "trained parameters": "{trained_parameters:,}",
        "patch, bytes": "{patch_bytes:,}",
        "seconds": "{train_seconds:.1f}",
    }
    write_report(folder.path, f"{len(runs)} tasks on {config.trunk}", [table(rows, columns)])
    return results


def open_runs(config: ConfigDict) -> list[Run]:
    """Opens all data sets on one trunk. Errors as for `transfer_many`."""
    runs: list[Run] = []
    for spec in data_specs(config.data):
        of_one = config.copy_and_resolve_references()
        of_one.data = spec
        runs.append(open_run(of_one, runs[0].trunk if runs else None))
    names = [run.task.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ModelPatchError(f"two data sets are named {twice!r}: rename a folder, or train them apart")
    return runs
