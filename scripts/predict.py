"""Prints what each task predicts for each image: top labels, for any number of patches on one trunk.

    python scripts/predict.py --trunk=bundled --images=a.png,b.jpg \
        --patches=runs/digits/patches/scale_bias+last-seed0.safetensors,runs/faces/patches/scale_bias+last-seed0.safetensors
    python scripts/predict.py --trunk=bundled --patches=PATCH --images=photos --output=predictions.csv
    find / -name '*.jpg' | python scripts/predict.py --trunk=bundled --patches=PATCH --images=- --output=predictions.jsonl

With --output the same command resumes with the images that are missing in the file. Images that cannot be read are named at
the end, and the exit status is 1.
"""

from model_patch.experiments import cli

_TRUNK = cli.flags.DEFINE_string("trunk", None, "The trunk that the patches were made on, scheme:rest.", required=True)
_PATCHES = cli.flags.DEFINE_list("patches", None, "Patch files.", required=True)
_IMAGES = cli.flags.DEFINE_list(
    "images",
    None,
    "Image files (JPEG, PNG, BMP, GIF or WebP), patterns such as photos/*.jpg, folders with all below them, or - for a list "
    "of files on standard input, one per line.",
    required=True,
)
_TASKS = cli.flags.DEFINE_list("tasks", None, "Names of the tasks to predict with; by default all.")
_PICK_RESOLUTION = cli.flags.DEFINE_bool(
    "pick_resolution", False, "Predict each image with the one patch whose image size is nearest to the image's."
)
_TOP = cli.flags.DEFINE_integer("top", 3, "Labels per task that are printed.", lower_bound=1)
_OUTPUT = cli.flags.DEFINE_string(
    "output", None, "Write to this .csv or .jsonl file instead, a line per image and task."
)
_CALIBRATED = cli.flags.DEFINE_bool(
    "calibrated",
    False,
    "Divide logits by each patch's temperature, fitted on validation images, for its probabilities.",
)
_PROBABILITIES = cli.flags.DEFINE_bool("probabilities", False, "Write the probability of every label to --output, too.")


def main():
    """Opens trunk and patches, and prints or writes a line per image and task."""
    from model_patch.experiments.predictions import PredictionFile, images_from, write_predictions
    from model_patch.predict import choose_tasks, open_tasks, predict

    images = images_from(_IMAGES.value)
    tasks = choose_tasks(open_tasks(_TRUNK.value, _PATCHES.value, _CALIBRATED.value), _TASKS.value)

    def predicted(paths):
        return predict(tasks, iter(paths), _TOP.value, _PICK_RESOLUTION.value)

    def row(prediction):
        return (
            prediction.file,
            prediction.task,
            prediction.label,
            prediction.probability,
            *([prediction.probabilities] if _PROBABILITIES.value else []),
        )

    if _OUTPUT.value:
        values = ["label", "probability", *(["probabilities"] if _PROBABILITIES.value else [])]
        names = [bound.task.name for bound in tasks]
        file = PredictionFile(_OUTPUT.value, names, values, one_each=_PICK_RESOLUTION.value)
        write_predictions(predicted, images, file, row)
        return
    for prediction in predicted(images[0]):
        labels = "  ".join(f"{label} {probability:.3f}" for label, probability in prediction.top) or "none"
        print(f"{prediction.file}  {prediction.task}: {labels}")


if __name__ == "__main__":
    cli.run(main)
