"""Detection: trains SSD detectors on any trunk, measures them, runs them on image files and exports them.

    python scripts/detect.py train --workdir=runs/detect
    python scripts/detect.py train --workdir=runs/detect --data=scenes:mnist --seeds=0 --epochs=5
    python scripts/detect.py evaluate runs/detect/detectors/seed0.safetensors --data=scenes:mnist
    python scripts/detect.py predict runs/detect/detectors/seed0.safetensors photos --output=found
    python scripts/detect.py predict runs/detect/detectors/seed0.safetensors photos --output=found.jsonl
    python scripts/detect.py export runs/detect/detectors/seed0.safetensors --output=runs/detect/saved_model

Training writes to the workdir: results.json, results.md, and for each seed the detector, a patch file, under detectors/, a
picture of test images, and with --train=full the trained trunk under trunks/, to which any other task can be bound. With
--train=scale_bias+last the detector is a patch on the given trunk. The same command resumes with the seeds that are missing.

Using an export, with TensorFlow alone:

    model = tf.saved_model.load("runs/detect/saved_model")
    model.signatures["serving_default"](images=images)     # float32 (batch, height, width, 3) in 0..255
    # {"boxes": (batch, 100, 4) as (ymin, xmin, ymax, xmax) in 0..1, "scores", "classes", "labels": (batch, 100),
    #  "count": (batch,), number of rows of the 100 that are detections}
"""

from model_patch.experiments import cli

cli.define_config("detect_scenes")
_DEVICES = cli.define_devices()
cli.flags.DEFINE_string("workdir", None, "Folder for all files of a training.")
cli.flags.DEFINE_bool("dry_run", False, cli.DRY_RUN)
cli.flags.DEFINE_string(
    "output",
    None,
    "For predict a folder for pictures, or a .csv or .jsonl file for a line per image; for export the folder to make.",
)
cli.flags.DEFINE_float("score", 0.4, "Minimum score of a detection that is shown.", lower_bound=0.0, upper_bound=1.0)


def train(*, config, workdir=None, dry_run=False, strategy=None, mixed_precision=None, synchronise=None):
    """Trains detectors; `--workdir` or `--dry_run` is needed."""
    from model_patch.errors import ModelPatchError
    from model_patch.experiments.detector import train_detector
    from model_patch.experiments.dry_run import dry_run_detector

    del strategy, mixed_precision, synchronise  # `_DEVICES` reads them.
    if bool(workdir) == dry_run:
        raise ModelPatchError("train expects --workdir=FOLDER, or --dry_run, and not both")
    if dry_run:
        dry_run_detector(config)
    else:
        with _DEVICES(workdir) as own_workdir:
            train_detector(config, own_workdir)


def evaluate(detector, *, data, trunk=None, max_test_images=None):
    """Prints the mean average precisions of a detector on test images."""
    from model_patch.detection.detector import evaluate_on, open_detector

    for name, value in evaluate_on(open_detector(detector, trunk), data, max_test_images).items():
        print(f"{name:8} {value:.4f}")


def predict(detector, image, *images, output, trunk=None, score=0.4):
    """Prints the detections in image files and writes a picture of each, or writes a table with a line per image."""
    from model_patch.detection.detector import open_detector, predict_files
    from model_patch.experiments.predictions import PredictionFile, images_from, is_table, write_predictions

    given = images_from([image, *images])
    bound = open_detector(detector, trunk)
    if is_table(output):
        file = PredictionFile(output, [bound.task.name], ["objects"])
        keys = "label", "score", "box"
        write_predictions(
            lambda paths: predict_files(bound, paths, score),
            given,
            file,
            lambda found: (found.file, bound.task.name, [dict(zip(keys, each, strict=True)) for each in found.objects]),
        )
        return
    for found in predict_files(bound, iter(given[0]), score, output):
        for label, value, (ymin, xmin, ymax, xmax) in found.objects:
            print(f"{found.file}  {label} {value:.3f}  ymin {ymin:.3f} xmin {xmin:.3f} ymax {ymax:.3f} xmax {xmax:.3f}")
        if not found.objects:
            print(f"{found.file}  nothing")


def export(detector, *, output, trunk=None):
    """Writes a detector as a SavedModel."""
    from model_patch.detection.detector import open_detector
    from model_patch.export.saved_model import export_saved_model

    bound = open_detector(detector, trunk)
    export_saved_model(bound, output)
    print(
        f"{output}: task {bound.task.name}, {len(bound.task.labels)} labels, {bound.task.preprocessing.image_size} px"
    )


if __name__ == "__main__":
    cli.run_commands({"train": train, "evaluate": evaluate, "predict": predict, "export": export}, resumes=["train"])
