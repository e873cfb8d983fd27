import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, bind
from model_patch.kinds import TrainSpec
from model_patch.training.statistics import estimate_statistics
from tests.conftest import same, snapshot


def batches(images, *sizes):
    ends = np.cumsum(sizes)
    return [(images[end - size : end], None) for size, end in zip(sizes, ends, strict=True)]


def test_statistics_are_those_of_the_mixture_of_batches(trunk, task, images):
    """Against the layer's inputs in training mode, read off a second net, batch by batch."""
    bound = bind(trunk, task, TrainSpec.parse("scale_bias+last", "batch"))
    layers = {layer.name: layer for layer in bound.features.layers if "_bn" in layer.name}
    reader = keras.Model(bound.features.input, [layer.input for layer in layers.values()])
    parts = [reader(x, training=True) for x, _ in batches(images, 5, 7)]
    estimate_statistics(bound, batches(images, 5, 7))
    for name, *inputs in zip(layers, *parts, strict=True):
        flat = [np.reshape(x, (-1, x.shape[-1])).astype("float64") for x in inputs]
        mean = np.mean([x.mean(0) for x in flat], 0)
        square = np.mean([x.var(0) + x.mean(0) ** 2 for x in flat], 0)
        np.testing.assert_allclose(layers[name].moving_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layers[name].moving_variance, square - mean**2, rtol=1e-4, atol=1e-5)


def test_nothing_but_the_tasks_own_statistics_moves(trunk, task, images):
    before = snapshot(trunk.variables())
    bound = bind(trunk, task, TrainSpec.parse("scale_bias+last", "batch"))
    learnt = {key: v for key, v in bound.patch_variables.items() if "moving" not in key} | bound.head_variables
    values = snapshot(learnt)
    estimate_statistics(bound, batches(images, 12))
    assert same(before, snapshot(trunk.variables())) and same(values, snapshot(learnt))


@pytest.mark.parametrize("train", ["last", "scale_bias+last", "depthwise+last"])
def test_the_trunks_statistics_stay(trunk, task, images, train):
    bound = bind(trunk, task, TrainSpec.parse(train, "frozen"))
    before = snapshot(bound.patch_variables)
    estimate_statistics(bound, batches(images, 12))
    assert same(before, snapshot(bound.patch_variables))


def test_no_batch_is_refused(trunk, task):
    with pytest.raises(ModelPatchError, match="no image came"):
        estimate_statistics(bind(trunk, task, TrainSpec.parse("scale_bias", "batch")), [])
