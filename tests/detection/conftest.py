"""A small trunk with two feature maps, and a detection task on it."""

import keras
import numpy as np
import pytest

from model_patch import Preprocessing, Trunk
from model_patch.detection.task import DetectionTask
from tests.conftest import small_net

SIZE = 64


@pytest.fixture
def trunk() -> Trunk:
    return Trunk(small_net(size=SIZE), "test", Preprocessing(SIZE, "tf"))


@pytest.fixture
def task(trunk) -> DetectionTask:
    return DetectionTask.on(trunk, "shapes", ("circle", "square", "star"), num_maps=3, width=0.1)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (6, SIZE, SIZE, 3)).astype("float32")


@pytest.fixture
def boxes() -> np.ndarray:
    """A true box in each of 6 images, of a size for each of three maps, and a row of padding."""
    boxes = np.zeros((6, 2, 5), "float32")
    boxes[:, 0] = [[0.05, 0.05, 0.05 + side, 0.05 + side, i % 3] for i, side in enumerate([0.1, 0.5, 0.9] * 2)]
    boxes[:, 1, 4] = -1
    return boxes


def train_steps(bound, images, boxes, steps: int = 2):
    """Trains a bound detection task for a few real steps; returns the loss of each."""
    bound.model.compile(keras.optimizers.Adam(0.01), bound.task.loss(), run_eagerly=True)  # Tracing takes longer.
    return bound.model.fit(images, boxes, batch_size=len(images), epochs=steps, verbose=0).history["loss"]
