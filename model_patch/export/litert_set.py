"""Several tasks as one LiteRT file that holds the trunk once, and a vector of values per task that is handed to it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError
from model_patch.export.litert_file import convert, input_of, with_manifest
from model_patch.export.mixed import Mixed
from model_patch.export.saved_model import require_tensorflow
from model_patch.export.vector_net import vector_net
from model_patch.export.verify import Run
from model_patch.files import write_bytes

NET = "net.tflite"
VECTOR = "vector"
"""Name of the second input, and of the tensor in a task's file."""


def export(tasks: Sequence[BoundTask], folder: Path, quantize: str = "none"):
    """Writes `folder/net.tflite`, the net of all tasks, and `folder/NAME.safetensors`, the values of each.

    The signature `serving_default` takes `images`, as a task's own file does (see `model_patch.export.litert_file`), and `vector`,
    float32 `(values,)`, of the task. It returns `logits` and `probabilities`, float32 `(batch, classes)`,
    as wide as the largest head: where a task has fewer classes, the further logits are minus infinity and their
    probabilities 0. Tasks of several types have all that `Task.decode` says of any, 0 where a task's type does not say it;
    how its outputs are read is then at the end of its vector. Nothing is kept between calls: outputs depend on the inputs alone.

    `net.tflite` holds `model_patch.json`: the images it takes, the length of a vector, and its `slots`, which say what is
    where in it. A task's file holds the one tensor `vector`, and in its metadata, under `model_patch`, the task with its
    labels, and the SHA-256 of the `net.tflite` that it belongs to.

    Arguments as `model_patch.export.litert_file.export`. With `dynamic`, the vector remains float32.

    Raises:
        ModelPatchError: as `vector_net`, the tasks scale images differently, or Keras runs on another backend than TensorFlow.
    """
    require_tensorflow("a LiteRT file")
    net = vector_net(tasks)
    prepare = tasks[0].task.preprocessing
    for task in (bound.task for bound in tasks):
        if task.preprocessing.mode != prepare.mode:
            raise ModelPatchError(
                f"the tasks {tasks[0].task.name!r} and {task.name!r} scale images differently ({prepare.mode} and "
                f"{task.preprocessing.mode}), and one net scales them for all: export them as litert or signatures"
            )

    mixed = Mixed([bound.task for bound in tasks], net.num_classes)

    def predict(images, vector):
        values = vector[: net.num_values] if mixed.size else vector
        return mixed.decode(net.model([prepare.scale(images), values], training=False), vector[net.num_values :])

    num_values = net.num_values + mixed.size
    inputs = {"images": (None, prepare.image_size, prepare.image_size, 3), VECTOR: (num_values,)}
    manifest = {
        "input": input_of(tasks[0]),
        "num_values": num_values,
        "num_classes": net.num_classes,
        "slots": [{"key": slot.key, "offset": slot.offset, "shape": slot.shape} for slot in net.slots],
        "quantize": quantize,
    }
    contents = with_manifest(convert(predict, inputs, net.constants, quantize), manifest)
    write_bytes(folder / NET, contents)
    digest = hashlib.sha256(contents).hexdigest()
    for bound in tasks:
        metadata = {"model_patch": json.dumps({"task": bound.task.to_json(), "net": digest})}
        tensors = {VECTOR: np.concatenate([net.vectors[bound.task.name], mixed.row(bound.task)])}
        write_bytes(folder / f"{bound.task.name}.safetensors", safetensors.numpy.save(tensors, metadata))


def predictions(
    run: Run, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Returns the net's outputs with the vector of each task, see `model_patch.export.Format`."""
    vectors = [folder / f"{bound.task.name}.safetensors" for bound in tasks]
    calls = [(folder / NET, batch, (vector,)) for batch, vector in zip(images, vectors, strict=True)]
    given = run(calls)
    return [
        {name: each[:, : len(bound.task.labels)] for name, each in outputs.items()}
        for bound, outputs in zip(tasks, given, strict=True)
    ]
