"""Several tasks as one SavedModel: the trunk once, and a signature per task."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError
from model_patch.export.saved_model import DEFAULT, LABELS, asset, labels_text, require_tensorflow, serving
from model_patch.export.vector_net import vector_net
from model_patch.export.verify import Run

ENDINGS = (".encoded", ".resized")
"""What the names of a task's further signatures end in."""

RESERVED = "__saved_model_"
"""How the names of TensorFlow's own signatures begin."""


def export(tasks: Sequence[BoundTask], folder: Path):
    """Writes tasks on one trunk as one SavedModel.

    The signatures of a task are `NAME`, `NAME.encoded` and `NAME.resized`: what they take and return is that of
    `serving_default`, `encoded` and `resized` of `export_saved_model`. The class names are in `assets/NAME.labels.txt`. There is one graph of the net, which all
    signatures call with the vector of their task, see `vector_net`, so that a task more adds little more than its values.

    Raises:
        ModelPatchError: as `vector_net`, a name ends in `.encoded` or `.resized` or begins with `__saved_model_`, or Keras runs on another backend than TensorFlow.
    """
    require_tensorflow("a SavedModel")
    import tensorflow as tf

    for bound in tasks:
        if bound.task.name.endswith(ENDINGS):
            ending = bound.task.name.rpartition(".")[2]
            raise ModelPatchError(
                f"the task name {bound.task.name!r} ends in .{ending}: further signatures are named so"
            )
        if bound.task.name.startswith(RESERVED):
            raise ModelPatchError(
                f"the task name {bound.task.name!r} begins with {RESERVED}: TensorFlow names its own signatures so; train "
                "it with another --task_name, or export it as saved_model"
            )
    net = vector_net(tasks)
    module = tf.Module()
    module.weights = [variable.value for variable in net.constants]
    module.vectors = {name: tf.Variable(vector, trainable=False) for name, vector in net.vectors.items()}

    size = tasks[0].task.preprocessing.image_size
    specs = tf.TensorSpec((None, size, size, 3), tf.float32), tf.TensorSpec((net.num_values,), tf.float32)
    call = tf.function(lambda scaled, vector: net.model([scaled, vector], training=False), autograph=False)
    logits = call.get_concrete_function(*specs)

    def predictor(bound):
        task, vector = bound.task, module.vectors[bound.task.name]
        return lambda resized: task.predictions(
            logits(task.preprocessing.scale(resized), vector.read_value())[:, : len(task.labels)]
        )

    signatures = {}
    for bound in tasks:
        for name, function in serving(bound.task.preprocessing, predictor(bound)).items():
            signatures[bound.task.name if name == DEFAULT else f"{bound.task.name}.{name}"] = function
    with contextlib.ExitStack() as assets:
        module.labels_files = [
            assets.enter_context(asset(f"{bound.task.name}.{LABELS}", labels_text(bound.task))) for bound in tasks
        ]
        tf.saved_model.save(module, str(folder), signatures)


def predictions(
    run: Run, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Returns the predictions of each task's signature, see `model_patch.export.Format`."""
    return ask_by_name(run, folder, tasks, images[0])


def ask_by_name(run: Run, folder: Path, tasks: Sequence[BoundTask], images: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Runs one SavedModel on the same images for each task, in one process; returns the predictions in the tasks' order."""
    names = [bound.task.name for bound in tasks]
    (given,) = run([(folder, images, names)])
    return [
        {key.removeprefix(f"{name}/"): each for key, each in given.items() if key.startswith(f"{name}/")}
        for name in names
    ]
