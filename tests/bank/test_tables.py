"""Heads of a bank against a plain product; the table of patches is tested with the layers that read it."""

import numpy as np
import pytest
from keras import ops

from model_patch.bank.tables import BankedHead

BATCH, CHANNELS, FILTERS, TASKS = 7, 3, 5, 17


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def rows(random):
    return random.integers(0, TASKS, BATCH).astype("int32")


def test_the_head_is_each_tasks_own_whatever_its_width(rows, random):
    head, features = BankedHead(TASKS, CHANNELS, FILTERS), random.normal(size=(BATCH, CHANNELS)).astype("float32")
    plain = []
    for row in range(TASKS):
        classes = 2 + row % (FILTERS - 1)
        plain.append((random.normal(size=(CHANNELS, classes)), random.normal(size=classes)))
        head.write(row, *plain[-1])
    out = ops.convert_to_numpy(head(features, rows))
    for x, row, got in zip(features, rows, out, strict=True):
        kernel, bias = plain[row]
        np.testing.assert_allclose(got[: len(bias)], x @ kernel + bias, atol=1e-5)
        assert np.isneginf(got[len(bias) :]).all()


def test_a_row_without_a_task_predicts_nan(random):
    head = BankedHead(TASKS, CHANNELS, FILTERS)
    assert np.isnan(head(np.ones((1, CHANNELS), "float32"), np.array([2], "int32"))).all()
