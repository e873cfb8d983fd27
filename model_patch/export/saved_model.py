"""Tasks as SavedModels, one each: images in, logits, probabilities and labels out."""

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.data.decoding import decode
from model_patch.errors import ModelPatchError
from model_patch.export.verify import Run
from model_patch.files import new_folder, require_no_pattern
from model_patch.graph.rewrite import walk
from model_patch.preprocessing import Preprocessing
from model_patch.tasks import Task

DEFAULT = "serving_default"
"""TensorFlow's name of the signature that is meant where none is named."""

LABELS = "labels.txt"
"""Name of the asset with the class names, one per line, in the order of the logits."""

TASK = "task.json"
"""Name of the asset with all of the task."""


def export_saved_model(bound: BoundTask, path: str | Path):
    """Writes a task as a SavedModel that plain TensorFlow loads.

    Preprocessing is part of it. The signatures:

    - `serving_default`: `images`, float32 `(batch, height, width, 3)` in 0..255, any height and width;
    - `encoded`: `contents`, string `(batch,)`, each a JPEG, PNG, BMP, GIF or WebP file of any size;
    - `resized`: `images`, float32 `(batch, image_size, image_size, 3)` in 0..255, for converters to other runtimes: it has no
      resizing and no labels, which these often cannot read.

    All return what `Task.predictions` does: of a classification `logits` and `probabilities`, float32 `(batch, classes)`,
    and `label`, string `(batch,)`, the most probable class; `resized` leaves out `label`. The class names are also in
    `assets/labels.txt`, and all of the task in `assets/task.json`. Each weight
    is stored once: `model.export` of Keras would store it twice (keras-team/keras issue 23553).

    Args:
        bound: the task, with the values to export.
        path: folder to make; it must not exist.

    Raises:
        ModelPatchError: the folder exists or cannot be made, or Keras runs on another backend than TensorFlow.
    """
    require_no_pattern(path)
    with new_folder(path) as folder:
        export([bound.in_float32()], folder)


def export(tasks: Sequence[BoundTask], folder: Path):
    """Writes the SavedModel of one task as `folder`, those of several as `folder/NAME`. Raises as `export_saved_model`."""
    require_tensorflow("a SavedModel")
    written: dict[Hashable, Path] = {}
    for bound in tasks:
        own, graph = _of(folder, bound, tasks), _graph_of(bound)
        _save(bound, own, written.get(graph))
        written.setdefault(graph, own)


def predictions(
    run: Run, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Returns the predictions of each task's SavedModel, see `model_patch.export.Format`."""
    calls = [(_of(folder, bound, tasks), batch, ()) for bound, batch in zip(tasks, images, strict=True)]
    return run(calls)


def _of(folder: Path, bound: BoundTask, tasks: Sequence[BoundTask]) -> Path:
    return folder if len(tasks) == 1 else folder / bound.task.name


def require_tensorflow(what: str):
    """Checks that Keras runs on TensorFlow, which `what` is written by.

    Raises:
        ModelPatchError: it runs on another backend.
    """
    if keras.backend.backend() != "tensorflow":
        raise ModelPatchError(
            f"{what} is written by TensorFlow and Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow; "
            "patch files are the same on all backends"
        )


def _graph_of(bound: BoundTask) -> Hashable:
    """Returns what is the same for tasks whose SavedModels differ in values only: those of variables, labels and constants."""
    task = bound.task
    if task.link is None:
        return id(bound)  # It may keep more in its graph.
    variables = tuple((variable.path, *variable.shape) for variable in bound.model.variables)
    return type(task), task.preprocessing, task.pooling, bound.train_spec, id(bound.trunk), len(task.labels), variables


def _save(bound: BoundTask, folder: Path, like: Path | None = None):
    """Writes a task as a SavedModel. Where there is one with the same graph, `like`, nothing is traced, and values are written."""
    import tensorflow as tf

    task, model = bound.task, bound.model
    module = tf.Module()
    # As a tf.Module that holds the variables themselves, each is tracked, and so stored, once.
    module.weights = [variable.value for variable in model.variables]
    # What a layer computes with besides: the variables of a SavedModel that runs as a single layer.
    module.resources = [v for _, layer in walk(model) for v in getattr(layer, "_mp_resources", ())]
    module.labels = tf.Variable(task.labels, trainable=False)
    module.constants = {name: tf.Variable(value, trainable=False) for name, value in task.constants().items()}
    assets = {LABELS: labels_text(task), TASK: json.dumps(task.to_json())}
    if like:
        shutil.copytree(like, folder, ignore=shutil.ignore_patterns("variables.*", "fingerprint.pb"))
        for name, text in assets.items():
            (folder / "assets" / name).write_text(text, "utf-8")
        tf.train.Checkpoint(module).write(str(folder / "variables" / "variables"))
        return

    def predict(resized):
        outputs = model(task.preprocessing.scale(resized), training=False)
        return task.predictions(outputs, module.labels, module.constants)

    with asset(LABELS, assets[LABELS]) as module.labels_file, asset(TASK, assets[TASK]) as module.task:
        tf.saved_model.save(module, str(folder), serving(task.preprocessing, predict))


def read_task(folder: Path) -> Task:
    """Returns the task of a SavedModel of one task; of an earlier one a classification with its labels.

    Raises:
        OSError: it is no such folder.
        ModelPatchError: its description is not one that this package wrote.
    """
    described = folder / "assets" / TASK
    if described.exists():
        try:
            return Task.from_json(json.loads(described.read_text("utf-8")))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelPatchError(f"{described} does not describe a task ({error!r}): export it again") from None
    labels = (folder / "assets" / LABELS).read_text("utf-8").splitlines()
    return Task(folder.resolve().name, tuple(labels), Preprocessing(1, "none"))


def labels_text(task: Task) -> str:
    """Returns the names of the labels, one per line."""
    return "".join(f"{label}\n" for label in task.labels)


@contextlib.contextmanager
def asset(name: str, text: str):
    """Yields a text as an asset, for the time of saving."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        path.write_text(text, "utf-8")
        yield tf.saved_model.Asset(str(path))


def serving(prepare: Preprocessing, predict: Callable):
    """Returns the functions that call a task by the names of their signatures, see `export_saved_model`.

    Args:
        prepare: the task's.
        predict: resized images, float32 `(batch, image_size, image_size, 3)` in 0..255, to a dict of tensors.

    Returns:
        Concrete functions. The graph of `predict` is stored once for all.
    """
    import tensorflow as tf

    size = prepare.image_size
    resized = tf.TensorSpec((None, size, size, 3), tf.float32)
    # Concrete: a tf.function is traced again by each function that calls it.
    predict = tf.function(predict, autograph=False).get_concrete_function(resized)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, name="images")], autograph=False)
    def serve(images):
        return predict(prepare.resize(images))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="contents")], autograph=False)
    def serve_encoded(contents):
        return predict(reader(prepare)(contents))

    @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32, name="images")], autograph=False)
    def serve_resized(images):
        return {name: each for name, each in predict(images).items() if each.dtype != tf.string}

    functions = {DEFAULT: serve, "encoded": serve_encoded, "resized": serve_resized}
    return {name: function.get_concrete_function() for name, function in functions.items()}


@functools.cache
def reader(prepare: Preprocessing):
    """Returns a function from encoded images, string `(batch,)`, to resized ones, float32 `(batch, image_size, image_size, 3)`.

    It is one and the same for all tasks with one preprocessing, so that a SavedModel holds its graph once.
    """
    import tensorflow as tf

    resized = tf.TensorSpec((prepare.image_size, prepare.image_size, 3), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def read(contents):
        return tf.map_fn(
            lambda one: prepare.resize(decode(one, *prepare.decoding)), contents, fn_output_signature=resized
        )

    return read.get_concrete_function()
