import numpy as np
import pytest

from model_patch.data.balance import class_weights, imbalance
from model_patch.data.images import array_split
from model_patch.data.pipeline import batches
from model_patch.preprocessing import Preprocessing


def test_weights_make_classes_equal_and_are_one_on_average():
    labels = np.repeat([0, 1, 3], [60, 30, 10])
    weights = class_weights(labels, 4)
    assert weights[2] == 0 and weights[labels].mean() == pytest.approx(1)
    assert np.bincount(labels, weights[labels])[[0, 1, 3]] == pytest.approx(100 / 3)


def test_a_class_of_ten_times_another_is_noted():
    assert imbalance(np.repeat([0, 1], [29, 3]), ("cat", "dog")) == ""
    note = imbalance(np.repeat([0, 1], [30, 3]), ("cat", "dog"))
    assert note.startswith("the class 'cat' has 30 training images and 'dog' only 3: ") and "--balance" in note


@pytest.mark.parametrize("cache", [True, False])
def test_sampled_classes_come_equally_often_in_epochs_of_the_same_length(cache):
    labels = np.repeat([0, 1, 2], [200, 80, 20])
    split = array_split(np.arange(300).astype("uint8")[:, None, None] * np.ones((1, 4, 4), "uint8"), labels)
    options = {"shuffle_seed": 3, "class_weights": class_weights(labels, 3), "cache": cache}

    def epochs(first, last):
        found = batches(split, Preprocessing(4, "none"), 50, epochs=range(first, last), **options)
        return np.concatenate([y.numpy() for _, y in found])

    both = epochs(0, 2)
    for epoch in (both[:300], both[300:]):
        assert np.bincount(epoch).tolist() == pytest.approx([100, 100, 100], abs=20)
    assert not np.array_equal(both[:300], both[300:])
    assert np.array_equal(epochs(1, 2), both[300:]), "an epoch depends on its number alone"
