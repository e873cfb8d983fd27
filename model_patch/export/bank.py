"""A bank as one SavedModel: images and the names of their tasks in, each image predicted by its own task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_patch.bank.bank import Bank
from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError
from model_patch.export.mixed import Mixed
from model_patch.export.saved_model import reader, require_tensorflow
from model_patch.export.signatures import ask_by_name
from model_patch.export.verify import Run
from model_patch.files import new_folder, require_no_pattern
from model_patch.kinds import KINDS
from model_patch.tasks import require_one_output_per_label


def export_bank(bank: Bank, path: str | Path):
    """Writes a bank, with the tasks that it holds now, as a SavedModel that plain TensorFlow loads.

    Preprocessing is part of it. The signatures, with `tasks`, string `(batch,)`, the name of each image's task:

    - `serving_default`: `images`, float32 `(batch, height, width, 3)` in 0..255, any height and width, and `tasks`;
    - `encoded`: `contents`, string `(batch,)`, each a JPEG, PNG, BMP, GIF or WebP file of any size, and `tasks`.

    Both return `logits` and `probabilities`, float32 `(batch, classes)`, as wide as the bank's widest head: after a task's
    own classes come minus infinity and 0; and `label`, string `(batch,)`. Where tasks of other types are in the bank they
    also return what `Task.decode` says of these, `present` or `values`; what a task's type does not say is 0, its label empty. A
    name that is not in the bank is an
    `InvalidArgumentError`. The trunk's values are stored once.

    Args:
        bank: holds at least one task.
        path: folder to make; it must not exist.

    Raises:
        ModelPatchError: the folder exists or cannot be made, or Keras runs on another backend than TensorFlow.
    """
    require_no_pattern(path)
    with new_folder(path) as folder:
        _save(bank, folder)


def export(tasks: Sequence[BoundTask], folder: Path):
    """Writes tasks on one trunk as a bank. Raises as `export_bank` and `Bank.add`."""
    for bound in tasks:
        require_one_output_per_label(bound.task, "a bank")
    kinds = [kind for kind in KINDS if any(kind in bound.train_spec.kinds for bound in tasks)]
    classes = max(len(bound.task.labels) for bound in tasks)
    first = tasks[0]
    bank = Bank(
        first.trunk,
        "+".join(kinds) or "scale_bias",
        capacity=len(tasks),
        classes=classes,
        pooling=first.task.pooling,
    )
    for bound in tasks:
        bank.add(bound)
    _save(bank, folder)


def predictions(
    run: Run, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Returns the bank's predictions for each task, its own classes only, see `model_patch.export.Format`."""
    own = (
        {key: each[:, : len(bound.task.labels)] if each.ndim == 2 else each for key, each in given.items()}
        for bound, given in zip(tasks, ask_by_name(run, folder, tasks, images[0]), strict=True)
    )
    return list(own)


def _save(bank: Bank, folder: Path):
    require_tensorflow("a SavedModel")
    import tensorflow as tf

    model, tasks = bank.model, bank.tasks
    first, *others = tasks.values()
    prepare = first.preprocessing
    for task in others:
        if task.preprocessing != prepare:
            raise ModelPatchError(
                f"the tasks {first.name!r} and {task.name!r} bring images to the net differently ({prepare} and "
                f"{task.preprocessing}): export them in a bank each, or as signatures"
            )
    size = prepare.image_size
    labels = np.full((bank.capacity, bank.classes), "", dtype=object)
    mixed = Mixed(list(tasks.values()), bank.classes)
    constants = np.zeros((bank.capacity, mixed.size), "float32")
    for name, task in tasks.items():
        labels[bank.row(name), : len(task.labels)] = task.labels
        constants[bank.row(name)] = mixed.row(task)
    rows = tf.lookup.KeyValueTensorInitializer(list(tasks), [bank.row(name) for name in tasks], tf.string, tf.int32)

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.row_of = tf.lookup.StaticHashTable(rows, default_value=-1)
    module.labels, module.constants = tf.constant(labels, tf.string), tf.constant(constants)

    def predict(resized, names):
        row = module.row_of.lookup(names)
        unknown = tf.boolean_mask(names, row < 0)
        known = tf.debugging.Assert(tf.size(unknown) == 0, ["the bank has no task of the name", unknown])
        with tf.control_dependencies([known]):
            row = tf.identity(row)
        logits = model([prepare.scale(resized), row], training=False)
        return mixed.predictions(logits, tf.gather(module.constants, row), tf.gather(module.labels, row))

    names, resized_images = (
        tf.TensorSpec((None,), tf.string, name="tasks"),
        tf.TensorSpec((None, size, size, 3), tf.float32),
    )
    predict = tf.function(predict, autograph=False).get_concrete_function(resized_images, names)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, name="images"), names], autograph=False
    )
    def serve(images, tasks):
        return predict(prepare.resize(images), tasks)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="contents"), names], autograph=False)
    def serve_encoded(contents, tasks):
        return predict(reader(prepare)(contents), tasks)

    tf.saved_model.save(module, str(folder), {"serving_default": serve, "encoded": serve_encoded})
