"""A task as a SavedModel: images in, logits, probabilities and labels out."""

import shutil
import tempfile
from pathlib import Path

import keras

from model_patch import preprocessing
from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError
from model_patch.rewrite import walk

LABELS = "labels.txt"
"""Name of the asset with the class names, one per line, in the order of the logits."""


def export_saved_model(bound: BoundTask, path: str | Path):
    """Writes a task as a SavedModel that plain TensorFlow loads.

    Preprocessing is part of it. The signatures:

    - `serving_default`: `images`, float32 `(batch, height, width, 3)` in 0..255, any height and width;
    - `encoded`: `contents`, string `(batch,)`, each a JPEG, PNG, BMP or GIF file of any size.

    Both return what `Task.answers` does: of a classification `logits` and `probabilities`, float32 `(batch, classes)`,
    and `label`, string `(batch,)`, the most probable class. The class names are also in `assets/labels.txt`. Each weight is stored once: `model.export` of
    Keras would store it twice (keras-team/keras issue 23553).

    Args:
        bound: the task, with the values to export.
        path: folder to make; it must not exist.

    Raises:
        ModelPatchError: the folder exists or cannot be made, or Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ModelPatchError(
            f"a SavedModel is written by TensorFlow and Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow; "
            "patch files are the same on all backends"
        )
    import tensorflow as tf

    path = Path(path)
    if path.exists():
        raise ModelPatchError(f"{path} exists: choose another --output, or delete it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Saved beside its final place and renamed, so that a folder of this name is always whole.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            labels = Path(scratch) / LABELS
            labels.write_text("".join(f"{label}\n" for label in bound.task.labels))
            module = _serving_module(bound, str(labels))
            signatures = {
                "serving_default": module.serve.get_concrete_function(),
                "encoded": module.serve_encoded.get_concrete_function(),
            }
            saved = Path(scratch) / "model"
            tf.saved_model.save(module, str(saved), signatures)
            shutil.move(saved, path)
    except OSError as error:
        raise ModelPatchError(f"{path} cannot be written ({error}): choose another --output or free the disk") from None


def _serving_module(bound: BoundTask, labels_path: str):
    import tensorflow as tf

    task, prepare, model = bound.task, bound.task.preprocessing, bound.model

    class Serving(tf.Module):
        def __init__(self):
            super().__init__()
            # As a tf.Module that holds the variables themselves, each is tracked, and so stored, once.
            self.weights = [variable.value for variable in model.variables]
            # What a layer computes with besides: the variables of a SavedModel that runs as it is.
            self.resources = [v for _, layer in walk(model) for v in getattr(layer, "resources", ())]
            self.labels_file = tf.saved_model.Asset(labels_path)

        @tf.function(input_signature=[tf.TensorSpec((None, prepare.image_size, prepare.image_size, 3), tf.float32)])
        def answer(self, resized):
            # One function for both signatures: the graph of the net is stored once, too.
            return task.answers(model(prepare.scale(resized), training=False))

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, name="images")])
        def serve(self, images):
            return self.answer(prepare.resize(images))

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="contents")])
        def serve_encoded(self, contents):
            def read(one):
                return prepare.resize(preprocessing.decode(one))

            spec = tf.TensorSpec((prepare.image_size, prepare.image_size, 3), tf.float32)
            return self.answer(tf.map_fn(read, contents, fn_output_signature=spec))

    return Serving()
