"""Exports tasks as files that run without this package, and verifies them in a clean process.

    python scripts/export.py --trunk=bundled --patches=runs/digits/patches/scale_bias+last-seed0.safetensors \
        --output=runs/digits/saved_model
    python scripts/export.py --trunk=bundled --patches=A,B,C --format=signatures --output=one_saved_model
    python scripts/export.py --trunk=bundled --patches=A,B,C --format=bank --output=bank
    python scripts/export.py --trunk=bundled --patches=A,B,C --format=bank --versioned --output=tasks   # tasks/1, tasks/2 ...
    python scripts/export.py --trunk=bundled --patches=A,B,C --format=litert --quantize=dynamic --output=litert
    python scripts/export.py --trunk=bundled --patches=A,B,C --format=litert_set --output=litert_set
    python scripts/export.py --trunk=bundled --patches=A,B,C --format=onnx --output=onnx

What each format holds and how it is used: docs/serving.md. The first, with TensorFlow alone:

    model = tf.saved_model.load("runs/digits/saved_model")
    model.signatures["serving_default"](images=images)     # float32 (batch, height, width, 3) in 0..255
    model.signatures["encoded"](contents=files)            # string (batch,), JPEG, PNG, BMP, GIF or WebP files
    # Both: {"logits": (batch, classes), "probabilities": (batch, classes), "label": string (batch,)}
"""

from model_patch.experiments import cli

_TRUNK = cli.flags.DEFINE_string("trunk", None, "The trunk that the patches were made on, scheme:rest.", required=True)
_PATCHES = cli.flags.DEFINE_list("patches", None, "Patch files, joined by commas.", required=True)
_OUTPUT = cli.flags.DEFINE_string(
    "output", None, "Folder to write; it must not exist, except with --versioned.", required=True
)
_FORMAT = cli.flags.DEFINE_enum("format", "saved_model", cli.CHOICES["format"], "Form of the files: docs/serving.md.")
_QUANTIZE = cli.flags.DEFINE_enum(
    "quantize", "none", cli.CHOICES["quantize"], "dynamic: kernels as int8, for the LiteRT formats."
)
_VERSIONED = cli.flags.DEFINE_bool(
    "versioned", False, "Write the next version, OUTPUT/1, OUTPUT/2 ..., for TensorFlow Serving: bank and signatures."
)
_CALIBRATED = cli.flags.DEFINE_bool(
    "calibrated",
    False,
    "Divide logits by each patch's temperature, fitted on validation images, for its probabilities.",
)
_CHECK = cli.flags.DEFINE_bool("check", True, "Run what was written in a process without this package, and compare.")
_DATA = cli.flags.DEFINE_string(
    "data", None, "Compare also on the test images of this data: digits | folder:PATH | ..."
)


def main():
    """Opens trunk and patches, exports the tasks and checks them."""
    from model_patch.export import export
    from model_patch.predict import open_tasks

    tasks = open_tasks(_TRUNK.value, _PATCHES.value, _CALIBRATED.value)
    verified = export(
        _FORMAT.value,
        tasks,
        _OUTPUT.value,
        _QUANTIZE.value,
        verify=_CHECK.value,
        data=_DATA.value,
        versioned=_VERSIONED.value,
    )
    for bound in tasks:
        name, size = bound.task.name, bound.task.preprocessing.image_size
        found = f", largest difference {verified.differences[name]:.1e}" if name in verified.differences else ""
        found += (
            f", the same prediction on {verified.agreement[name]:.2%} of the images"
            if name in verified.agreement
            else ""
        )
        print(f"{verified.folder}: task {name}, {len(bound.task.labels)} labels, {size} px{found}")


if __name__ == "__main__":
    cli.run(main)
