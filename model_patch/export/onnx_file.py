"""Tasks as ONNX files, one each, through Keras' own exporter: for ONNX Runtime and the converters that read ONNX."""

import contextlib
import functools
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError, reason
from model_patch.export.litert_file import input_of
from model_patch.export.saved_model import require_tensorflow
from model_patch.export.verify import Run
from model_patch.files import write_bytes
from model_patch.fold import fold
from model_patch.graph.rewrite import walk
from model_patch.tasks import require_one_output_per_label

PACKAGES = ("onnx", "onnxruntime", "tf2onnx")

MANIFEST = "model_patch"
"""Key in the file's metadata of the same description as in a LiteRT file, as JSON."""


def export(tasks: Sequence[BoundTask], folder: Path):
    """Writes `folder/NAME.onnx` for each task, its batch norms folded.

    The input is `images`, float32 `(batch, image_size, image_size, 3)` in 0..255: resizing is left to the caller, scaling is
    part of the file. The outputs are what `Task.decode` returns: of a classification `logits` and `probabilities`, float32 `(batch, classes)`. The file's metadata hold
    `labels`, a JSON list, `image_size`, and under `model_patch` the task and how to resize, as JSON.

    Args:
        tasks: on any trunks.
        folder: exists, and is empty.

    Raises:
        ModelPatchError: a package is not installed; a task has not one output for each label, cannot be folded, see `fold`, or has an
            operation that ONNX lacks; or Keras runs on another backend than TensorFlow.
    """
    require_tensorflow("an ONNX file")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelPatchError(f"ONNX files need {' and '.join(missing)}: pip install 'model_patch[onnx]'")
    for bound in tasks:
        require_one_output_per_label(bound.task, "an ONNX file")
    for bound in tasks:
        write_bytes(folder / f"{bound.task.name}.onnx", _converted(bound))


def predictions(
    run: Run, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Returns the predictions of each task's file, see `model_patch.export.Format`."""
    calls = [(folder / f"{bound.task.name}.onnx", batch, ()) for bound, batch in zip(tasks, images, strict=True)]
    return run(calls)


def _converted(bound: BoundTask) -> bytes:
    import onnx
    import onnxruntime

    task, size = bound.task, bound.task.preprocessing.image_size
    images = keras.Input((size, size, 3), name="images")
    logits = fold(bound).model(task.preprocessing.scale(images))
    found = task.decode(logits, **task.constants())
    model = keras.Model(images, list(found.values()))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "task.onnx"
        try:
            signature = [keras.InputSpec(shape=(None, size, size, 3), dtype="float32", name="images")]
            _teach_erfc()
            with _arrays_for_tensors(model):
                model.export(str(file), format="onnx", verbose=False, input_signature=signature)
            net = onnx.load(str(file))
            onnx.checker.check_model(net)  # The converter keeps operations that ONNX lacks.
            if len(net.graph.input) > 1:
                raise ModelPatchError(f"{net.graph.input[1].name} would be an input")
            # Sizes that the converter rounds otherwise than TensorFlow show only when the file runs.
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            session.run(None, {net.graph.input[0].name: np.zeros((1, size, size, 3), "float32")})
        except Exception as error:  # The converter raises whatever its parts do.
            raise ModelPatchError(
                f"ONNX cannot hold this net ({reason(error)}): export it as saved_model or signatures"
            ) from None
    _rename(net.graph, {net.graph.input[0].name: "images"})
    _rename(net.graph, dict(zip((o.name for o in net.graph.output), found, strict=True)))
    for value in (*net.graph.input, *net.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    description = {"task": task.to_json(), "input": input_of(bound)}
    metadata = {"labels": list(task.labels), "image_size": size, MANIFEST: description}
    onnx.helper.set_model_props(net, {key: json.dumps(value) for key, value in metadata.items()})
    return net.SerializeToString()


@functools.cache
def _teach_erfc():
    """Registers TensorFlow's Erfc, of which exact GELUs are made and which the converter lacks: erfc(x) = 1 - erf(x)."""
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, ctx, node, **kwargs):
            (x,), output = node.input, node.output[0]
            shape, dtype = ctx.get_shape(output), ctx.get_dtype(output)
            one = ctx.make_const(f"{node.name}/one", np.ones((), "float32")).output[0]
            ctx.remove_node(node.name)
            erf = ctx.make_node("Erf", [x], shapes=[shape], dtypes=[dtype]).output[0]
            ctx.make_node("Sub", [one, erf], name=node.name, outputs=[output], shapes=[shape], dtypes=[dtype])


@contextlib.contextmanager
def _arrays_for_tensors(model: keras.Model) -> Iterator[None]:
    """Layers hold NumPy arrays instead of tensors, as Normalization does its mean: the converter makes tensors inputs."""
    import tensorflow as tf

    tensors = [
        (vars(layer), name, value)
        for _, layer in walk(model)
        for name, value in vars(layer).items()
        if isinstance(value, tf.Tensor)
    ]
    for fields, name, value in tensors:
        fields[name] = value.numpy()
    try:
        yield
    finally:
        for fields, name, value in tensors:
            fields[name] = value


def _rename(graph, names: dict[str, str]):
    """Renames tensors of an ONNX graph, wherever they are used."""
    for node in graph.node:
        for fields in (node.input, node.output):
            fields[:] = [names.get(name, name) for name in fields]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
