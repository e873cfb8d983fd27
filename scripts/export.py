"""Writes a task, a patch and its trunk, as a SavedModel that runs without this package.

    python scripts/export.py --trunk=bundled --patch=runs/digits/patches/scale_bias+last-seed0.safetensors \
        --output=runs/digits/saved_model

Using it, with TensorFlow alone:

    model = tf.saved_model.load("runs/digits/saved_model")
    model.signatures["serving_default"](images=images)     # float32 (batch, height, width, 3) in 0..255
    model.signatures["encoded"](contents=files)            # string (batch,), JPEG, PNG, BMP or GIF files
    # Both: {"logits": (batch, classes), "probabilities": (batch, classes), "label": string (batch,)}
"""

from absl import flags

from model_patch import cli

_TRUNK = flags.DEFINE_string("trunk", None, "The trunk that the patch was made on, scheme:rest.", required=True)
_PATCH = flags.DEFINE_string("patch", None, "The patch file.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not exist.", required=True)


def main():
    """Opens trunk and patch, and exports the task."""
    from model_patch.export.saved_model import export_saved_model
    from model_patch.predict import open_tasks

    (bound,) = open_tasks(_TRUNK.value, [_PATCH.value])
    export_saved_model(bound, _OUTPUT.value)
    print(
        f"{_OUTPUT.value}: task {bound.task.name}, {len(bound.task.labels)} classes, {bound.task.preprocessing.image_size} px"
    )


if __name__ == "__main__":
    cli.run(main)
