"""Tasks for which there are several batches run folded, with the outputs that they have in the bank's graph."""

import logging

import keras
import numpy as np
import pytest
from keras import layers

from model_patch import Preprocessing, Task, Trunk, bind
from model_patch.bank.bank import Bank
from model_patch.bank.folded import TIMES
from tests.bank.test_bank import bound_task, gated_net, layer_norm_net, no_norm_net
from tests.conftest import SIZE, small_net


def assert_same_outputs(bank, bound, images):
    expected = np.array(bound.model(images, training=False))
    given = np.array(bank(images, [bound.task.name] * len(images)))
    np.testing.assert_allclose(given[:, : expected.shape[1]], expected, rtol=0, atol=1e-5 * max(1, abs(expected).max()))
    assert np.isneginf(given[:, expected.shape[1] :]).all()


@pytest.mark.parametrize(
    ("net", "kinds", "trained"),
    [
        (small_net, "scale_bias", ("scale_bias+last", "last")),
        (small_net, "scale_bias+depthwise+bias", ("scale_bias+depthwise+last", "depthwise+bias+last")),
        (gated_net, "scale_bias", ("scale_bias+last",)),
        (no_norm_net, "scale_bias", ("scale_bias+last",)),
        (layer_norm_net, "scale_bias", ("scale_bias+last",)),
    ],
)
def test_a_task_is_folded_after_some_batches_and_predicts_the_same(net, kinds, trained, images):
    trunk = Trunk(net(), net.__name__, Preprocessing(SIZE, "tf"))
    tasks = [bound_task(trunk, train, 2 + i, train, i) for i, train in enumerate(trained)]
    bank = Bank(trunk, kinds, capacity=3, classes=5)
    for bound in tasks:
        bank.add(bound)
    for bound in tasks:
        for number in range(1, TIMES + 2):
            assert_same_outputs(bank, bound, images[:number])
            assert (bound.task.name in bank.folded) == (number >= TIMES)
    mixed = np.array(bank(images, [tasks[i % len(tasks)].task.name for i in range(len(images))]))
    np.testing.assert_allclose(mixed[0, :2], tasks[0].model(images)[0], atol=1e-4)


def test_a_replaced_or_removed_task_leaves_with_its_kernels(trunk, images):
    old, new, other = (bound_task(trunk, name, 3, "scale_bias+last", i) for i, name in enumerate(("a", "a", "b")))
    bank = Bank(trunk, capacity=2)
    bank.add(old)
    for bound in (old, new):
        bank.add(bound, replace=True)
        assert bank.folded == set()
        for _ in range(TIMES + 1):
            assert_same_outputs(bank, bound, images)
        assert bank.folded == {"a"}
    bank.remove("a")
    bank.add(other)
    assert bank.folded == set()
    for _ in range(TIMES + 1):
        assert_same_outputs(bank, other, images)
    assert bank.folded == {"b"} and bank.capacity == 2


def test_no_more_tasks_are_folded_than_memory_is_for(trunk, images):
    tasks = [bound_task(trunk, name, 3, "scale_bias+last", i) for i, name in enumerate("abc")]
    bank, without = (Bank(trunk, capacity=3, folded_bytes=n * 4 * trunk.num_parameters()) for n in (2, 0))
    for bound in tasks:
        bank.add(bound)
        without.add(bound)
    for name in "a" * TIMES + "b" * TIMES:
        bank(images, [name] * len(images))
    assert bank.folded == {"a", "b"}
    for name in "abca" * TIMES:  # Of c there are too few in a row to be worth it.
        bank(images, [name] * len(images))
    assert bank.folded == {"a", "b"}
    for name in "c" * TIMES:
        bank(images, [name] * len(images))
        without(images, [name] * len(images))
    assert bank.folded == {"a", "c"} and without.folded == set()
    for bound in tasks:
        assert_same_outputs(bank, bound, images)


def test_nothing_is_traced_after_warming(trunk, images, monkeypatch, caplog):
    bank, bound = Bank(trunk, capacity=2, classes=3), bound_task(trunk, "a", 3, "scale_bias+last", 0)
    bank.add(bound)
    with caplog.at_level(logging.INFO):
        bank.warm([1, 12])
    assert "warmed batches of 1, 12 in" in caplog.text
    traces = []
    call = type(bank.model).call
    monkeypatch.setattr(type(bank.model), "call", lambda self, *args, **kw: traces.append(1) or call(self, *args, **kw))
    for _ in range(TIMES + 1):
        bank(images, ["a"] * len(images))
    assert bank.folded == {"a"} and not traces


def test_a_net_that_has_no_folded_form_is_computed_as_before(images, caplog):
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.LayerNormalization(scale=False)(layers.Conv2D(8, 3)(image))
    trunk = Trunk(keras.Model(image, x), "no scale", Preprocessing(SIZE, "tf"))
    bound = bind(trunk, Task("a", ("x", "y"), trunk.preprocessing), "bias+last")
    bank = Bank(trunk, "bias", capacity=1, classes=2)
    bank.add(bound)
    with caplog.at_level(logging.INFO):
        for _ in range(TIMES + 1):
            assert_same_outputs(bank, bound, images)
    assert bank.folded == set()
    assert "computed as mixed ones: the folded net has no place for layer_normalization" in caplog.text
