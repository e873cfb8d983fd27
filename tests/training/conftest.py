"""Real images, digits, and a trunk for them, both as small as it takes."""

import dataclasses

import pytest

from model_patch import Preprocessing, Task, Trunk
from model_patch.data import open_data
from model_patch.training.recipe import Recipe
from tests.conftest import SIZE, smaller_net


@pytest.fixture
def trunk() -> Trunk:
    return Trunk(smaller_net(), "test", Preprocessing(SIZE, "tf"))


@pytest.fixture
def data():
    return open_data("digits")


@pytest.fixture
def digits(trunk, data):
    return Task("digits", data.labels, trunk.preprocessing)


@pytest.fixture
def recipe():
    return Recipe(epochs=2, batch_size=32, max_train_images=80, max_test_images=50)


@pytest.fixture
def longer(recipe):
    return dataclasses.replace(recipe, epochs=10, max_train_images=640, learning_rate=0.01)
