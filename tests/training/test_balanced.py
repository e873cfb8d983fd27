import dataclasses

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, bind, open_data
from model_patch.data.images import array_split
from model_patch.join import join
from model_patch.training.balanced import Weighted
from model_patch.training.fit import evaluate, fit


def test_a_weighted_loss_counts_images_by_their_class():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    labels, outputs = np.array([0, 1, 1]), np.random.RandomState(0).randn(3, 2).astype("float32")
    each = np.array([float(loss(labels[i : i + 1], outputs[i : i + 1])) for i in range(3)])
    weighted = Weighted(loss, np.array([3.0, 0.5], "float32"))
    assert float(weighted(labels, outputs)) == pytest.approx(np.mean(each * [3, 0.5, 0.5]), rel=1e-5)


@pytest.fixture(scope="module")
def uneven():
    """Digits with 200 training images of 0, and 6 of each other class."""
    data = open_data("digits")
    images, labels = (np.array(part) for part in zip(*data.train.dataset().as_numpy_iterator(), strict=True))
    kept = np.concatenate([np.flatnonzero(labels == label)[: 6 if label else 200] for label in range(10)])
    images, labels = images[kept], labels[kept]
    return dataclasses.replace(data, train=array_split(images, labels))


@pytest.mark.parametrize(("train", "rate", "epochs"), [("last", 0.0, 1), ("last", 0.2, 15), ("bias+last", 0.01, 4)])
def test_balanced_classes_raise_macro_accuracy(trunk, digits, uneven, recipe, train, rate, epochs):
    recipe = dataclasses.replace(recipe, epochs=epochs, max_train_images=0, max_test_images=300, learning_rate=rate)
    found = {}
    for balance in ("none", "weights", "sampling"):
        keras.utils.set_random_seed(0)
        bound = bind(trunk, digits, train)
        fit(bound, uneven, dataclasses.replace(recipe, balance=balance))
        found[balance] = evaluate(bound, uneven, recipe)["macro_accuracy"]
    assert min(found["weights"], found["sampling"]) > found["none"]


def test_joined_tasks_are_not_balanced(trunk, digits, data, recipe):
    with pytest.raises(ModelPatchError, match="balance is weights: expected none for joined tasks"):
        fit(join(trunk, [digits]), {"digits": data}, dataclasses.replace(recipe, balance="weights"))


def test_a_model_that_was_compiled_with_it_is_saved_and_loaded(tmp_path):
    loss = Weighted(keras.losses.SparseCategoricalCrossentropy(from_logits=True), np.array([3.0, 0.5], "float32"))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss)
    images, labels = np.random.RandomState(0).randn(8, 3), np.arange(8) % 2
    before = model.evaluate(images, labels, verbose=0, return_dict=True)
    model.save(tmp_path / "net.keras")
    after = keras.models.load_model(tmp_path / "net.keras").evaluate(images, labels, verbose=0, return_dict=True)
    assert after == pytest.approx(before)
