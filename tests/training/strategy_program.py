"""What the tests of strategies run in processes of their own: a few steps of each sort of training, and losses as JSON.

python -m tests.training.strategy_program STRATEGY FILE [TRAINING ...]
"""

import contextlib
import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import ImageData, Preprocessing, Task, Trunk, bind, evaluate, fit, join
from model_patch.data import pipeline
from model_patch.data.images import Split
from model_patch.detection.data import DetectionData
from model_patch.detection.data.images import ragged_split
from model_patch.detection.data.pipeline import batches as detection_batches
from model_patch.detection.task import DetectionTask
from model_patch.kinds import TrainSpec
from model_patch.training import replicated, strategies
from model_patch.training.loop import run_epochs, tester
from model_patch.training.recipe import Recipe
from tests.conftest import SIZE, small_net

NUMBER, BATCH, EPOCHS = 20, 8, 3
"""Images, the last batch of which is smaller."""


def trunk():
    return Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))


def random_images(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (NUMBER, SIZE, SIZE, 3)).astype("float32")


def predict(model, images):
    """Runs a model outside of any strategy's functions, so that what it learnt is looked at in one way only."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tf.function(lambda x: model(x, training=False))(images))


def cross_entropy(labels, logits):
    return float(np.mean(keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)))


class Cut(Exception):
    """What ends a training in the middle."""


class CutAt(keras.callbacks.Callback):
    """Ends a training after `steps` steps."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Cut


def one_task(train, statistics, checkpoint=None, steps=None):
    """Trains; the training is interrupted after a number of steps, if one is given."""
    images, labels = random_images(), np.arange(NUMBER) % 3
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    opened = trunk()
    bound = bind(
        opened, Task("shapes", ("circle", "square", "star"), opened.preprocessing), TrainSpec.parse(train, statistics)
    )
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.03)
    callbacks = [CutAt(steps)] if steps else []
    kept = run_epochs(
        bound,
        bound.model,
        lambda epochs: batches.repeat(len(epochs)),
        NUMBER,
        recipe,
        checkpoint=checkpoint,
        callbacks=callbacks,
    )
    tested = tester(bound)(batches, "testing", 3)
    assert tested["loss"] == pytest.approx(cross_entropy(labels, predict(bound.model, images)), abs=1e-4)
    return kept.history, tested["loss"]


def counted_split(images, classes, image_bytes=None, unreadable=()):
    """Returns a split of images that are decoded on demand, and the list of those that were, which grows.

    With unreadable images it is a split that leaves them out.
    """
    labels, decoded = np.arange(len(images)) % classes, []

    def stored(number):
        return tf.data.Dataset.range(number).map(lambda i: (i, tf.constant(labels)[i]))

    def load(i, *decoding):
        return tf.ensure_shape(tf.numpy_function(look_up, [i], tf.uint8), (SIZE, SIZE, 3))

    def decoded_or_none(path, *decoding):
        return None if int(path) in unreadable else look_up(int(path))

    def look_up(i):
        decoded.append(int(i))
        return images[i]

    split = Split(len(images), stored, load, len(images), image_bytes)
    if unreadable:
        paths = list(map(str, range(len(images))))

        def as_paths(number):
            return tf.data.Dataset.from_tensor_slices((paths[:number], labels[:number]))

        split = dataclasses.replace(split, stored=as_paths, skips=decoded_or_none, known_labels=labels, paths=paths)
    return split, decoded


def pixels(seed=0):
    return (255 * (random_images(seed) + 1) / 2).astype("uint8")


def joined_tasks(share, train_trunk):
    """Two tasks with parts of different sizes, one of which counts more."""
    opened = trunk()
    tasks = [Task("shapes", ("circle", "square", "star"), opened.preprocessing)]
    tasks.append(Task("colours", ("red", "green"), opened.preprocessing))
    joined = join(opened, tasks, TrainSpec.parse("scale_bias+last", "batch"), share=share, train_trunk=train_trunk)
    data, decoded = {}, []
    for i, (name, bound) in enumerate(joined.tasks.items()):
        split, of_task = counted_split(pixels(i)[:16], len(bound.task.labels))
        data[name] = ImageData(name, bound.task.labels, split, split, "none")
        decoded.append(of_task)
    sizes = np.array([[8, 4]] * (2 * EPOCHS))
    recipe = Recipe(epochs=EPOCHS, batch_size=6, optimizer="sgd", learning_rate=0.05, augmentation="none")
    fitted = fit(joined, data, recipe, sizes=sizes, weights={"shapes": 1.0, "colours": 0.5})
    losses = [tested["loss"] for tested in evaluate(joined, data, recipe).values()]
    return fitted.history | {"decoded": [*decoded[0], *decoded[1]]}, losses


def detector():
    opened = trunk()
    task = DetectionTask.on(opened, "objects", ("circle", "square"), layers=("project",), num_maps=1)
    bound = bind(opened, task, "full")
    rng = np.random.default_rng(2)
    corners = np.sort(rng.uniform(0, 1, (NUMBER, 3, 2, 2)), axis=2).reshape(NUMBER, 3, 4)
    number = rng.integers(1, 4, NUMBER)  # Images differ in how many boxes they have.
    boxes = [each[:some] for each, some in zip(corners, number, strict=True)]
    classes, ignored = [rng.integers(0, 2, some) for some in number], [np.zeros(some, bool) for some in number]
    counting, decoded = counted_split(pixels(), 1)
    split = ragged_split(np.arange(NUMBER), boxes, classes, ignored, counting.load, NUMBER)
    data = DetectionData("objects", task.labels, split, split, "flip")
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, optimizer="sgd", learning_rate=0.001, augmentation="flip")
    fitted = fit(bound, data, recipe, seed=5)
    found = evaluate(bound, data, recipe)
    counted = list(decoded)
    ((images, truth),) = detection_batches(split, opened.preprocessing, NUMBER)
    loss = float(np.mean(task.loss().call(truth, predict(bound.model, images))))
    return fitted.history | {"decoded": counted, "mAP": [found["mAP"]]}, loss


def cut_off(train, statistics):
    """One task, cut off in its second epoch, which then goes on."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "row.safetensors"
        with contextlib.suppress(Cut):
            one_task(train, statistics, checkpoint, steps=4)
        assert checkpoint.exists()
        return one_task(train, statistics, checkpoint)


def counted(augmentation, cache):
    """Trains on images that are shuffled, and counted as they are decoded."""
    images = pixels()
    split, decoded = counted_split(images, 3, lambda least_side: images.nbytes)
    opened = trunk()
    task = Task("shapes", ("circle", "square", "star"), opened.preprocessing)
    bound = bind(opened, task, TrainSpec.parse("scale_bias+last", "batch"))
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.03)
    options = {"augmentation": augmentation, "shuffle_seed": 5, "cache": cache, "share": replicated.own_share()}
    train = functools.partial(pipeline.batches, split, opened.preprocessing, BATCH, **options)
    kept = run_epochs(bound, bound.model, lambda epochs: train(epochs=epochs), NUMBER, recipe)
    return kept.history | {"decoded": decoded}, cross_entropy(
        np.arange(NUMBER) % 3, predict(bound.model, random_images())
    )


def whole(train, unreadable=(), **options):
    """All that `fit` and `evaluate` do: the last layer, epochs, validation, statistics, and the test."""
    split, decoded = counted_split(pixels(), 3, unreadable=unreadable)
    opened = trunk()
    task = Task("shapes", ("circle", "square", "star"), opened.preprocessing)
    bound = bind(opened, task, TrainSpec.parse(train, "batch"))
    data = ImageData("shapes", task.labels, split, split, "shift", validation=split)
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, augmentation="shift", **options)
    fitted = fit(bound, data, recipe, seed=5)
    return fitted.history | {"decoded": decoded}, evaluate(bound, data, recipe)["loss"]


TRAININGS = {
    "a task, from fit to evaluate": lambda: whole("scale_bias+last", learning_rate=0.03),
    "the last layer": lambda: whole("last"),
    "two unreadable images": lambda: whole("scale_bias+last", (3, 11), learning_rate=0.03),
    "decoded in each epoch": lambda: counted("shift", cache=False),
    "decoded once": lambda: counted("none", cache=True),
    "frozen statistics": lambda: one_task("scale_bias+last", "frozen"),
    "batch statistics": lambda: one_task("scale_bias+last", "batch"),
    "joined tasks, own patches": lambda: joined_tasks("trunk", False),
    "joined tasks, one patch, trunk learnt": lambda: joined_tasks("trunk+patch", True),
    "detector": detector,
}

OF_DEVICES = {"batch statistics, cut off": lambda: cut_off("scale_bias+last", "batch")}
"""What devices of one computer train besides; it must end as without the end of the name."""


def main(strategy: str, file: str, *names: str):
    """Runs trainings, all by default; writes by name the history of the epochs, a loss at the end, and the number of replicas."""
    if strategy == "mirrored":
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    found = {}
    with strategies.devices(strategy):  # Before any operation runs: TensorFlow joins the workers at program start only.
        trainings = TRAININGS | OF_DEVICES
        for name in names or TRAININGS:
            keras.utils.set_random_seed(0)
            history, tested = trainings[name]()
            replicas = getattr(strategies.current(), "num_replicas_in_sync", 1)
            for measured in ("seconds", "input_wait"):
                history.pop(measured, None)  # It is never the same.
            decoded = history.pop("decoded", [])
            found[name] = {"history": history, "tested": tested, "replicas": replicas, "decoded": decoded}
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
