"""Tasks as LiteRT files, one each: small, fast, without TensorFlow."""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError, reason
from model_patch.export import clean_litert
from model_patch.export.saved_model import require_classification, require_tensorflow
from model_patch.export.verify import run_in_clean_process
from model_patch.files import write_bytes
from model_patch.fold import fold
from model_patch.preprocessing import Preprocessing

MANIFEST = "model_patch.json"
"""Name of the description inside the file: a zip archive behind the net, as in TensorFlow Lite's own metadata."""


def export(tasks: Sequence[BoundTask], folder: Path, quantize: str = "none"):
    """Writes `folder/NAME.tflite` for each task, its batch norms folded.

    The signature `serving_default` takes `images`, float32 `(batch, image_size, image_size, 3)` in 0..255: LiteRT has no
    resizing that averages, so this is left to the caller. It returns `logits` and `probabilities`, float32 `(batch,
    classes)`. Labels, image size and how to resize are in `model_patch.json`, in a zip archive at the end of the file:
    `unzip -p NAME.tflite model_patch.json`.

    Args:
        tasks: classifications, on any trunks.
        folder: exists, and is empty.
        quantize: one of `model_patch.export.QUANTIZE`.

    Raises:
        ModelPatchError: a task is no classification, cannot be folded, see `fold`, or Keras runs on another backend than
            TensorFlow.
    """
    require_tensorflow("a LiteRT file")
    for bound in tasks:
        require_classification(bound)
    for bound in tasks:
        contents = _converted(fold(bound).model, bound.task.preprocessing, quantize)
        manifest = {"task": bound.task.to_json(), "input": input_of(bound), "quantize": quantize}
        write_bytes(folder / f"{bound.task.name}.tflite", with_manifest(contents, manifest))


def answers(folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns what each task's file answers, see `model_patch.export.Format`."""
    files = [folder / f"{bound.task.name}.tflite" for bound in tasks]
    return [run_in_clean_process(clean_litert.__file__, *each) for each in zip(files, images, strict=True)]


def _converted(model: keras.Model, prepare: Preprocessing, quantize: str) -> bytes:
    def answer(images):
        return probable(model(prepare.scale(images), training=False))

    return convert(answer, {"images": (None, prepare.image_size, prepare.image_size, 3)}, model.variables, quantize)


def probable(logits) -> dict:
    """Returns logits and their probabilities by name, as tensors of TensorFlow."""
    import tensorflow as tf

    return {"logits": logits, "probabilities": tf.nn.softmax(logits)}


def input_of(bound: BoundTask) -> dict:
    """Describes the images that a file takes, for people and programs without this package."""
    size = bound.task.preprocessing.image_size
    return {
        "shape": ["batch", size, size, 3],
        "dtype": "float32",
        "range": [0, 255],
        "channels": "RGB",
        "resize": "bilinear, averaging where it shrinks, without keeping the aspect ratio",
    }


def convert(answer: Callable, inputs: dict[str, tuple], variables: Sequence[keras.Variable], quantize: str) -> bytes:
    """Returns a function as the contents of a LiteRT file with one signature, `serving_default`.

    Args:
        answer: takes the inputs in their order, gives a dict of tensors.
        inputs: shapes by name; all are float32.
        variables: that it reads.
        quantize: one of `model_patch.export.QUANTIZE`.

    Raises:
        ModelPatchError: the net has an operation that LiteRT lacks.
    """
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_net = [variable.value for variable in variables]
    module.answer = tf.function(
        answer, input_signature=[tf.TensorSpec(shape, tf.float32, name=name) for name, shape in inputs.items()]
    )
    with tempfile.TemporaryDirectory() as scratch:
        tf.saved_model.save(module, scratch, {"serving_default": module.answer.get_concrete_function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=["serving_default"])
        if quantize == "dynamic":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        try:
            return converter.convert()
        except Exception as error:  # The converter raises whatever its parts do, with the whole graph as the message.
            raise ModelPatchError(
                f"LiteRT cannot hold this net ({reason(error)}): export it as saved_model or signatures"
            ) from None


def with_manifest(contents: bytes, manifest: dict) -> bytes:
    """Returns the contents of a LiteRT file with a description behind the net."""
    file = io.BytesIO(contents)
    with zipfile.ZipFile(file, "a") as archive:
        # Without the time of day: what is exported again is the same file.
        archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest, indent=2) + "\n", zipfile.ZIP_DEFLATED)
    return file.getvalue()


def read_manifest(path: str | Path) -> dict:
    """Returns the description inside a LiteRT file that this package wrote.

    Raises:
        ModelPatchError: the file cannot be read, or holds none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(MANIFEST))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelPatchError(f"{path} is not a LiteRT file of model_patch ({error}): export it again") from None
