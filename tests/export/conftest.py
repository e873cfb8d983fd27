"""Tasks that differ in kind and number of classes, and the folders that hold them in each format."""

import functools

import numpy as np
import pytest

from model_patch import Preprocessing, Task, Trunk, bind
from model_patch.export import export
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, random_norms, small_net

LABELS = {"encoded": tuple("0123456789"), "serving_default": ("a", "b"), "-two words ☂": ("circle", "square", "star")}
"""By task; the names are those of signatures, or look like a flag."""


@pytest.fixture(scope="module")
def tasks():
    """Three tasks on one trunk, of different kinds and numbers of classes, each with values of its own."""
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    bounds = []
    for seed, (name, labels) in enumerate(LABELS.items()):
        kind = ("scale_bias+last", "depthwise+last", "last")[seed]
        bounds.append(bind(trunk, Task(name, labels, trunk.preprocessing), kind, seed=seed))
        for variable in bounds[-1].patch_variables.values():
            variable.assign(variable * np.random.default_rng(seed).uniform(0.7, 1.3, variable.shape))
    return bounds


@pytest.fixture(scope="module")
def written(tasks, tmp_path_factory):
    """A function from a format to the folder that holds the tasks in it, which is written once."""

    @functools.cache
    def folder(format):
        path = tmp_path_factory.mktemp(format) / "out"
        export(format, tasks, path)
        return path

    return folder


@pytest.fixture
def pixels():
    return np.random.default_rng(4).uniform(0, 255, (3, SIZE, SIZE, 3)).astype("float32")


def in_memory(bound, pixels):
    return np.array(bound.model(bound.task.preprocessing.scale(pixels), training=False))


def size(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def mobilenets():
    """Three tasks on MobileNetV2 1.0 at 96 px, with uneven values."""
    trunk = open_trunk("keras:MobileNetV2?weights=none", 96)
    random_norms(trunk.model)
    bounds = []
    for i, (name, labels) in enumerate(LABELS.items()):
        bound = bind(trunk, Task(name, labels, trunk.preprocessing), seed=i)
        random_norms(bound.model, seed=i + 1)
        bounds.append(bound)
    return bounds
