"""Fixtures that several tests share: small real nets, and images."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import resource
import tempfile
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Folder indexes of tests go into a folder of their own, which processes started by tests share.
os.environ.setdefault("MODEL_PATCH_CACHE", tempfile.mkdtemp(prefix="model_patch-tests-"))

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:  # The process that hands tests out to others reads this file, too, and needs no Keras.
    import keras

    from model_patch import Task, Trunk

SIZE = 32


def pytest_collection_finish():
    """Tracing makes many objects and little garbage: collected seldom, and without what the imports made, tests take a tenth less."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _first_layers(seed: int, size: int, filters: int, strides: int) -> tuple:
    """Seeds Keras; returns the input of a net and the map after its first convolution, norm and activation."""
    import keras

    keras.utils.set_random_seed(seed)
    image = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(filters, 3, strides=strides, use_bias=False, name="stem")(image)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    return image, keras.layers.ReLU(name="stem_relu")(x)


def small_net(seed: int = 0, size: int = SIZE) -> keras.Model:
    """A net with every layer that patches know, small enough to trace and train in a second.

    Its batch norms hold uneven values, as after training. 3 of them, 1 depthwise and 1 separable convolution.
    """
    import keras

    image, x = _first_layers(seed, size, filters=8, strides=2)
    y = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    y = keras.layers.BatchNormalization(scale=False, name="depthwise_bn")(y)
    x = keras.layers.Add(name="add")([x, keras.layers.ReLU(name="depthwise_relu")(y)])
    x = keras.layers.SeparableConv2D(12, 3, strides=2, name="separable")(x)
    x = keras.layers.BatchNormalization(name="separable_bn")(x)
    x = keras.layers.Conv2D(16, 1, activation="relu", name="project")(x)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="small")
    random_norms(model, seed)
    return model


def smaller_net(seed: int = 0, size: int = SIZE) -> keras.Model:
    """A net of half as many layers, for what trains: every layer is traced several times in each training.

    Its features differ enough between images for patches to start from a learnt last layer. 2 batch norms, 1 depthwise
    convolution.
    """
    import keras

    image, x = _first_layers(seed, size, filters=16, strides=4)
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="depthwise_bn")(x)
    x = keras.layers.ReLU(name="depthwise_relu")(x)
    model = keras.Model(image, keras.layers.GlobalMaxPooling2D(name="pool")(x), name="smaller")
    random_norms(model, seed)
    return model


def random_norms(model: keras.Model, seed: int = 0, scale: float = 1.0):
    """Gives every batch norm scales, `scale` on average, biases and statistics as uneven as a trained net's."""
    import keras

    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                low, high = (0.5, 1.5) if variable.name in ("gamma", "moving_variance") else (-0.3, 0.3)
                factor = scale if variable.name == "gamma" else 1.0
                variable.assign(factor * rng.uniform(low, high, variable.shape))


@pytest.fixture
def trunk() -> Trunk:
    from model_patch import Preprocessing, Trunk

    return Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))


@pytest.fixture
def task() -> Task:
    from model_patch import Preprocessing, Task

    return Task("shapes", ("circle", "square", "star"), Preprocessing(SIZE, "tf"))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (12, SIZE, SIZE, 3)).astype("float32")


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(12) % 3


@pytest.fixture(scope="module")
def trained():
    """A task whose patch two steps have trained. Tests leave it unchanged."""
    from model_patch import Preprocessing, Task, Trunk, bind

    trunk, images = Trunk(small_net(), "test", Preprocessing(SIZE, "tf")), np.random.default_rng(1)
    bound = bind(trunk, Task("shapes", ("circle", "square", "star"), trunk.preprocessing), "scale_bias+last")
    train_steps(bound, images.uniform(-1, 1, (12, SIZE, SIZE, 3)).astype("float32"), np.arange(12) % 3)
    return bound


def snapshot(variables) -> dict[str, np.ndarray]:
    """Copies the values of a dict of variables."""
    from keras import ops

    return {key: np.array(ops.convert_to_numpy(v)) for key, v in variables.items()}


def same(before: dict, after: dict) -> bool:
    """Whether two snapshots are equal to the last bit."""
    return before.keys() == after.keys() and all(before[k].tobytes() == after[k].tobytes() for k in before)


def train_steps(bound, images, labels, steps: int = 2, learning_rate: float = 0.05, eager: bool = True):
    """Trains a bound task for a few real steps; a graph takes longer to trace than these take."""
    import keras

    optimizer = keras.optimizers.Adam(learning_rate)
    bound.model.compile(optimizer, bound.task.loss(), jit_compile=False, run_eagerly=eager)
    bound.model.fit(images, labels, batch_size=len(images), epochs=steps, verbose=0)


@contextlib.contextmanager
def full_disk(room: int = 8):
    """Within it no file that this process writes can become longer than this many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def clean_runs():
    """The session's clean processes: a function that starts one for a script, once."""
    from model_patch.export.verify import clean_process

    with contextlib.ExitStack() as processes:
        yield functools.cache(lambda script: processes.enter_context(clean_process(script)))


@pytest.fixture
def one_clean_process(clean_runs, monkeypatch):
    """Exports of the test are verified in the one clean process of the session, which saves importing TensorFlow again."""

    @contextlib.contextmanager
    def started(script):
        yield clean_runs(script)

    monkeypatch.setattr(importlib.import_module("model_patch.export"), "clean_process", started)
    return started


TAGS = ("bright", "left", "red")


def rectangles(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images, uint8 `(n, 16, 16, 3)`; which of `TAGS` they have, int64 `(n, 3)`; and the width, float32 `(n, 1)`."""
    random = np.random.RandomState(0)
    images = random.randint(40, 60, (number, 16, 16, 3)).astype("uint8")
    tags, widths = random.randint(0, 2, (number, len(TAGS))), random.randint(3, 9, number)
    for image, (bright, left, red), width in zip(images, tags, widths, strict=True):
        if bright:
            image += 60
        start = 0 if left else 16 - width
        image[4:12, start : start + width] = (250, 30, 30) if red else (30, 30, 250)
    return images, tags, widths[:, None].astype("float32")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folder of PNG files of rectangles, and a table of their tags, widths, colours and splits."""
    root = tmp_path_factory.mktemp("rectangles")
    lines = ["path,tags,width,colour,split"]
    for i, (image, tags, (width,)) in enumerate(zip(*rectangles(160), strict=True)):
        Image.fromarray(image).save(root / f"{i}.png")
        names = ";".join(name for name, given in zip(TAGS, tags, strict=True) if given)
        split = ("test", "validation", "train")[min(i % 5, 2)]
        lines.append(f"{i}.png,{names},{10 * width + 100:g},{'red' if tags[2] else 'blue'},{split}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def specs(pictures) -> dict[str, str]:
    """The spec of the data of each type of task."""
    table = f"csv:{pictures}/table.csv"
    return {
        "classification": f"{table}?label=colour",
        "multi_label": f"{table}?label=tags&type=multi_label",
        "regression": f"{table}?label=width&type=regression",
    }
