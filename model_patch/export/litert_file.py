"""Tasks as LiteRT files, one each: small, fast, without TensorFlow."""

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError, reason
from model_patch.export.saved_model import require_tensorflow
from model_patch.export.verify import Run
from model_patch.files import write_bytes
from model_patch.fold import fold
from model_patch.tasks import Task, require_one_output_per_label

MANIFEST = "model_patch.json"
"""Name of the description inside the file: a zip archive after the net, as in TensorFlow Lite's own metadata."""

_SPELT_OUT = {
    "Rsqrt": [("Sqrt", [""], "y"), ("Reciprocal", ["Sqrt"], "y")],
    "Softplus": [
        ("Abs", [""], "y"),
        ("Neg", ["Abs"], "y"),
        ("Exp", ["Neg"], "y"),
        ("Log1p", ["Exp"], "y"),
        ("Relu", [""], "activations"),
        ("AddV2", ["Relu", "Log1p"], "z"),
        ("Relu", ["AddV2"], "activations"),
    ],
}
"""Operations that LiteRT computes wrong where TensorFlow does not, and what replaces them: operation, inputs, its output.

With XNNPACK, the interpreter's default, 1 / sqrt(0) is NaN, not infinity: `keras.ops.normalize` of zeros, and so
`UnitNormalization` after a ReLU, were NaN. Its softplus is infinity from 89 on.
"""


def export(tasks: Sequence[BoundTask], folder: Path, quantize: str = "none"):
    """Writes `folder/NAME.tflite` for each task, its batch norms folded.

    The signature `serving_default` takes `images`, float32 `(batch, image_size, image_size, 3)` in 0..255: LiteRT has no
    resizing that averages, so this is left to the caller. It returns what `Task.decode` does: of a classification `logits` and
    `probabilities`, float32 `(batch, classes)`. Labels, image size and how to resize are in `model_patch.json`, in a zip archive at the end of the file:
    `unzip -p NAME.tflite model_patch.json`.

    Args:
        tasks: on any trunks.
        folder: exists, and is empty.
        quantize: one of `model_patch.export.QUANTIZE`.

    Raises:
        ModelPatchError: a task has not one output for each label, cannot be folded, see `fold`, or Keras runs on another backend than
            TensorFlow.
    """
    require_tensorflow("a LiteRT file")
    for bound in tasks:
        require_one_output_per_label(bound.task, "a LiteRT file")
    for bound in tasks:
        contents = _converted(fold(bound).model, bound.task, quantize)
        manifest = {"task": bound.task.to_json(), "input": input_of(bound), "quantize": quantize}
        write_bytes(folder / f"{bound.task.name}.tflite", with_manifest(contents, manifest))


def predictions(
    run: Run, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Returns the predictions of each task's file, see `model_patch.export.Format`."""
    calls = [(folder / f"{bound.task.name}.tflite", batch, ()) for bound, batch in zip(tasks, images, strict=True)]
    return run(calls)


def _converted(model: keras.Model, task: Task, quantize: str) -> bytes:
    size = task.preprocessing.image_size

    def predict(images):
        return task.decode(model(task.preprocessing.scale(images), training=False), **task.constants())

    return convert(predict, {"images": (None, size, size, 3)}, model.variables, quantize)


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


def convert(predict: Callable, inputs: dict[str, tuple], variables: Sequence[keras.Variable], quantize: str) -> bytes:
    """Returns a function as the contents of a LiteRT file with one signature, `serving_default`.

    Args:
        predict: takes the inputs in their order, gives a dict of tensors.
        inputs: shapes by name; all are float32.
        variables: that it reads; they become constants.
        quantize: one of `model_patch.export.QUANTIZE`.

    Raises:
        ModelPatchError: the net has an operation that LiteRT lacks.
    """
    import tensorflow as tf

    values = [(variable, keras.ops.convert_to_numpy(variable)) for variable in variables]

    def of_constants(*given):
        with keras.StatelessScope(values):
            return predict(*given)

    specs = [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in inputs.items()]
    function = tf.function(of_constants, specs, autograph=False).get_concrete_function()
    with tempfile.TemporaryDirectory() as scratch:
        tf.saved_model.save(tf.Module(), scratch, {"serving_default": function})
        _spell_out(Path(scratch) / tf.saved_model.SAVED_MODEL_FILENAME_PB)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=["serving_default"])
        if quantize == "dynamic":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        try:
            return converter.convert()
        except Exception as error:  # The converter raises whatever its parts do, with the whole graph as the message.
            missing = re.search(r"(?:TF Select|Custom) ops: (.*)", str(error))
            why = f"it has no {missing[1]}" if missing else reason(error)
            raise ModelPatchError(
                f"LiteRT cannot hold this net ({why}): export it as saved_model or signatures"
            ) from None


def _spell_out(saved_model: Path):
    """Replaces the operations of a SavedModel that LiteRT computes wrong by what replaces them, see `_SPELT_OUT`."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString(saved_model.read_bytes())
    for graph in (meta.graph_def for meta in saved.meta_graphs):
        _spell_out_nodes(graph.node, in_function=False)
        for function in graph.library.function:
            _spell_out_nodes(function.node_def, in_function=True)
    saved_model.write_bytes(saved.SerializeToString())


def _spell_out_nodes(nodes, in_function: bool):
    for node in [node for node in nodes if node.op in _SPELT_OUT]:
        given = {"": node.input[0]}
        *steps, last = _SPELT_OUT[node.op]
        for op, inputs, output in steps:
            step = nodes.add(name=f"{node.name}/{op}", op=op, input=[given[each] for each in inputs])
            step.attr["T"].CopyFrom(node.attr["T"])
            given[op] = f"{step.name}:{output}:0" if in_function else step.name
        node.op = last[0]  # Its output has the name of the operation's that it replaces.
        node.input[:] = [given[each] for each in last[1]] + [each for each in node.input if each.startswith("^")]


def with_manifest(contents: bytes, manifest: dict) -> bytes:
    """Returns the contents of a LiteRT file with a description after the net."""
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
