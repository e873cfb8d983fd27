"""Evaluates patches and exported files on labelled images: accuracy by class, calibration, mistakes, duplicates.

    python scripts/evaluate.py --trunk=bundled --models=runs/digits/best.safetensors --data=digits --output=runs/evaluation
    python scripts/evaluate.py --models=digits.tflite,digits_saved_model --data=folder:new_scans --split=all \
        --output=runs/new_scans --assert_accuracy_at_least=0.95

Writes report.html, results.md and evaluation.json to the output, or for several models to a folder of each there. With
--assert_accuracy_at_least the exit status is 1 if a model is less accurate.
"""

from model_patch.experiments import cli

_MODELS = cli.flags.DEFINE_list(
    "models", None, "Patch files, folders with a SavedModel of one task, .tflite and .onnx files.", required=True
)
_TRUNK = cli.flags.DEFINE_string("trunk", "", "The trunk that the patches were made on, scheme:rest.")
_DATA = cli.flags.DEFINE_string("data", None, "Labelled images: digits | folder:PATH | csv:FILE ..", required=True)
_SPLIT = cli.flags.DEFINE_enum("split", "test", ["test", "validation", "train", "all"], "Which images to evaluate on.")
_OUTPUT = cli.flags.DEFINE_string("output", None, "Folder to write; it must not exist.", required=True)
_MAX_IMAGES = cli.flags.DEFINE_integer("max_images", 0, "Use the first N images of a split; 0: all.", lower_bound=0)
_REPORT_IMAGES = cli.flags.DEFINE_integer(
    "report_images", 24, "Most thumbnails in each list of the report; 0: none, and the lists are tables.", lower_bound=0
)
_CALIBRATED = cli.flags.DEFINE_bool(
    "calibrated",
    False,
    "Divide logits by each patch's temperature, fitted on validation images, for its probabilities.",
)
_AT_LEAST = cli.flags.DEFINE_float(
    "assert_accuracy_at_least",
    0.0,
    "Fail if a model is less accurate; or has a lower mAP, or R2.",
    lower_bound=0.0,
    upper_bound=1.0,
)


def main():
    """Evaluates the models."""
    from model_patch.experiments.evaluate import evaluate_models

    evaluate_models(
        _MODELS.value,
        _DATA.value,
        _OUTPUT.value,
        trunk=_TRUNK.value,
        part=_SPLIT.value,
        thumbnails=_REPORT_IMAGES.value,
        max_images=_MAX_IMAGES.value or None,
        accuracy_at_least=_AT_LEAST.value,
        calibrated=_CALIBRATED.value,
    )


if __name__ == "__main__":
    cli.run(main)
