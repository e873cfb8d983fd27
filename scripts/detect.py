"""Detection: trains SSD detectors on any trunk, measures them, runs them on image files and exports them.

    python scripts/detect.py train --workdir=runs/detect
    python scripts/detect.py train --workdir=runs/detect --data=scenes:mnist --seeds=0 --config.epochs=5
    python scripts/detect.py evaluate runs/detect/detectors/seed0.safetensors --data=scenes:mnist
    python scripts/detect.py predict runs/detect/detectors/seed0.safetensors photos/*.jpg --output=found
    python scripts/detect.py export runs/detect/detectors/seed0.safetensors --output=runs/detect/saved_model

Training writes to the workdir: results.json, results.md, and for each seed the detector, a patch file, under detectors/, a
picture of test images, and, where the trunk is learnt (train=full), the trunk under trunks/: any other task can be bound to
it. With --train=scale_bias+last the detector is a patch on the trunk that is given. The same command again goes on with the
seeds that are missing. What is not a flag can be set with --config.NAME=VALUE.

Using an export, with TensorFlow alone:

    model = tf.saved_model.load("runs/detect/saved_model")
    model.signatures["serving_default"](images=images)     # float32 (batch, height, width, 3) in 0..255
    # {"boxes": (batch, 100, 4) as (ymin, xmin, ymax, xmax) in 0..1, "scores", "classes", "labels": (batch, 100),
    #  "count": (batch,), how many of the 100 rows are detections}
"""

from pathlib import Path

from absl import flags

from model_patch.experiments import cli

cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "detect_scenes.py")
flags.DEFINE_string("workdir", None, "Folder for everything that a training writes.")
flags.DEFINE_bool("dry_run", None, "Build the net without weights or data, count, train one step, write nothing.")
_DEVICES = cli.define_devices()
flags.DEFINE_string("trunk", None, "The trunk, scheme:rest; of a detector by default the one that it names.")
flags.DEFINE_string("data", None, "scenes:DATA | coco:FOLDER | tfds:coco/2017 | tfds:voc/2007")
flags.DEFINE_string("train", None, "full, or the kinds of a patch, and last, joined by +.")
flags.DEFINE_integer("image_size", None, "Height and width in pixels.")
flags.DEFINE_integer("epochs", None, "Passes over the training images.")
flags.DEFINE_list("seeds", None, "Seeds, a detector each, for example 0,1.")
flags.DEFINE_integer("max_test_images", None, "Use this many test images; 0: all.")
flags.DEFINE_string("output", None, "Folder for pictures, or of the SavedModel to write, which must not exist.")
flags.DEFINE_float("score", 0.4, "Least score of a detection that is shown.", lower_bound=0.0, upper_bound=1.0)


def train(
    *,
    config,
    workdir=None,
    dry_run=False,
    trunk=None,
    data=None,
    train=None,
    image_size=None,
    epochs=None,
    seeds=None,
    max_test_images=None,
    strategy=None,
    mixed_precision=None,
    synchronise=None,
):
    """Trains detectors; `--workdir` or `--dry_run` is needed."""
    from model_patch.errors import ModelPatchError
    from model_patch.experiments.detector import train_detector
    from model_patch.experiments.dry_run import dry_run_detector

    del strategy, mixed_precision, synchronise  # Flags of training alone, which `_DEVICES` reads.
    if bool(workdir) == dry_run:
        raise ModelPatchError("train expects --workdir=FOLDER, or --dry_run, and not both")

    config = cli.override(
        config,
        trunk=trunk,
        data=data,
        train=train,
        image_size=image_size,
        epochs=epochs,
        seeds=seeds and cli.integers("seeds", seeds),
        max_test_images=max_test_images,
    )
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
    """Prints what is found in image files, and writes a picture of each."""
    from model_patch.detection.detector import open_detector, predict_files

    for found in predict_files(open_detector(detector, trunk), [image, *images], output, score):
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
        f"{output}: task {bound.task.name}, {len(bound.task.labels)} classes, {bound.task.preprocessing.image_size} px"
    )


if __name__ == "__main__":
    cli.run_commands({"train": train, "evaluate": evaluate, "predict": predict, "export": export}, resumes=True)
