"""Rematerialisation: the same values and gradients as without, from fewer maps that are kept."""

import concurrent.futures
import multiprocessing

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.experiments.benchmark.timing import forget_peak, peak_bytes, resident_bytes
from model_patch.graph.remat import Segments, segments
from model_patch.kinds import TrainSpec
from tests.conftest import random_norms

SIZE = 24


def deep_net(dropout: float = 0.0, size: int = SIZE) -> Trunk:
    """Blocks as MobileNetV2's: wide inside, narrow between them, some with a shortcut."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    for _ in range(4):
        y = layers.BatchNormalization()(layers.Conv2D(48, 1, use_bias=False)(x))
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(layers.ReLU(6.0)(y))
        y = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(y))
        x = layers.Add()([x, layers.Dropout(dropout)(y) if dropout else y])
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x), name="deep")
    random_norms(model)
    return Trunk(model, "deep", Preprocessing(size, "tf"))


@pytest.fixture
def images():
    return np.random.default_rng(2).uniform(-1, 1, (6, SIZE, SIZE, 3)).astype("float32")


def test_a_net_is_cut_between_its_blocks():
    parts = segments(deep_net().model)
    assert len(parts) >= 4
    assert all(part.output.shape[-1] == 8 for part in parts), "never within a block, where maps are wide"
    names = [layer.name for part in parts for layer in part.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert len(names) == len(set(names)) and len(names) == 30, "each layer is in one of them"
    branches = keras.Input((8, 8, 3))
    crossing = keras.layers.Concatenate()([branches, keras.layers.Conv2D(3, 3, padding="same")(branches)])
    assert len(segments(keras.Model(branches, crossing))) == 1


@pytest.mark.parametrize(
    ("train", "statistics", "dropout"),
    [("scale_bias+last", "batch", 0.5), ("full", "batch", 0.0), ("full", "frozen", 0.5), ("depthwise", "frozen", 0.0)],
)
def test_training_takes_the_same_steps(images, train, statistics, dropout):
    task = Task("t", ("a", "b", "c"), Preprocessing(SIZE, "tf"))
    labels, values = np.arange(6) % 3, []
    for remat in (False, True):
        bound = bind(deep_net(dropout), task, TrainSpec.parse(train, statistics), remat=remat)
        bound.model.compile(keras.optimizers.SGD(0.05), task.loss(), jit_compile=False)
        losses = [bound.model.train_on_batch(images, labels) for _ in range(3)]
        values.append(losses + [np.array(v) for v in bound.model.variables])
        assert bool(getattr(bound.model, "remat", False)) == remat
    assert isinstance(bound.model._fused_graph, Segments) and len(bound.model._fused_graph.parts) > 3
    for plain, again in zip(*values, strict=True):
        np.testing.assert_allclose(again, plain, rtol=2e-4, atol=2e-5)


def peak(remat: bool) -> int:
    """Returns the bytes that two steps take at most beside the process with the net in it."""
    trunk = deep_net(size=64)
    task = Task("t", ("a", "b", "c"), trunk.preprocessing)
    images, labels = np.zeros((48, 64, 64, 3), "float32"), np.zeros(48, "int64")
    bound = bind(trunk, task, TrainSpec.parse("full", "batch"), remat=remat)
    bound.model.compile("sgd", task.loss(), jit_compile=False)
    before = resident_bytes()
    forget_peak()
    for _ in range(2):
        bound.model.train_on_batch(images, labels)
    return peak_bytes() - before


@pytest.mark.slow
def test_less_memory_is_taken():
    taken = []
    for remat in (True, False):
        # In a process of its own: memory that was freed, by this test or one before it, would be taken again unseen.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            taken.append(process.submit(peak, remat).result())
    assert taken[0] < 0.6 * taken[1]


def test_another_backend_is_refused(trunk, task, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelPatchError, match="remat works on TensorFlow, not on jax"):
        bind(trunk, task, remat=True)
