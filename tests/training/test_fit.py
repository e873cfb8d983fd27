import dataclasses

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, bind
from model_patch.errors import TrainingError
from model_patch.kinds import Trained
from model_patch.training.fit import evaluate, fit
from tests.conftest import same, snapshot


@pytest.mark.parametrize(
    "train", ["last", "scale_bias", "scale_bias+last", "depthwise+last", "statistics+last", "full"]
)
@pytest.mark.parametrize("statistics", ["batch", "frozen"])
def test_training_learns_what_it_says_and_leaves_the_trunk_as_it_was(trunk, digits, data, recipe, train, statistics):
    if train.startswith("statistics") and statistics == "frozen":
        pytest.skip("nothing of the trunk would change")
    before = snapshot(trunk.variables())
    bound = bind(trunk, digits, Trained.parse(train, statistics))
    patch, head = snapshot(bound.patch_variables), snapshot(bound.head_variables)
    assert fit(bound, data, recipe) > 0
    assert same(before, snapshot(trunk.variables()))
    assert same(head, snapshot(bound.head_variables)) == (not bound.trained.last)
    after = snapshot(bound.patch_variables)
    unmoved = {key for key in patch if np.array_equal(patch[key], after[key])}
    frozen = {key for key in patch if "moving" in key} if statistics == "frozen" else set()
    assert unmoved == frozen


def test_more_steps_test_better(trunk, digits, data, recipe, longer):
    accuracies = []
    for each in (recipe, longer):
        bound = bind(trunk, digits, "full")
        fit(bound, data, each)
        accuracies.append(evaluate(bound, data, dataclasses.replace(each, max_test_images=0))["accuracy"])
    assert accuracies[0] < accuracies[1] and accuracies[1] > 0.4


@pytest.mark.parametrize("train", ["last", "scale_bias+last"])
def test_the_same_seed_gives_the_same_values(trunk, digits, data, recipe, train):
    def trained(seed):
        keras.utils.set_random_seed(seed)
        bound = bind(trunk, digits, train, seed=seed)
        fit(bound, data, recipe, seed=seed)
        return snapshot(bound.patch_variables | bound.head_variables)

    one, again, other = trained(1), trained(1), trained(2)
    assert same(one, again) and not same(one, other)


def test_cached_features_train_the_last_layer_as_the_whole_net_would(trunk, digits, data, recipe):
    once = dataclasses.replace(recipe, batch_size=80, epochs=3, optimizer="sgd", schedule="constant", learning_rate=0.1)
    cached = bind(trunk, digits, "last")
    fit(cached, data, once)
    plain = bind(trunk, digits, "last")
    images, labels = zip(*data.train.dataset(80).as_numpy_iterator(), strict=True)
    plain.model.compile(keras.optimizers.SGD(0.1, 0.9, nesterov=True), digits.loss(), jit_compile=False)
    plain.model.fit(digits.preprocessing(np.stack(images)), np.array(labels), batch_size=80, epochs=3, verbose=0)
    np.testing.assert_allclose(cached.head.kernel, plain.head.kernel, atol=1e-5)


def test_a_loss_that_is_no_number_stops_the_training_and_is_explained(trunk, digits, data, recipe):
    bound = bind(trunk, digits, "scale_bias+last")
    diverging = dataclasses.replace(recipe, optimizer="sgd", learning_rate=1e38)
    with pytest.raises(
        TrainingError, match=r"loss of 'digits' \(scale_bias\+last\) became .* use a lower --learning_rate"
    ):
        fit(bound, data, diverging)


def test_tensorboard_gets_loss_and_accuracy(trunk, digits, data, recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(bind(trunk, digits, "scale_bias+last"), data, recipe, log_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    assert {"epoch_loss", "epoch_accuracy"} <= set(events.Tags()["tensors"])
    assert len(events.Tensors("epoch_loss")) == recipe.epochs


def test_an_unknown_augmentation_is_refused(trunk, digits, data, recipe):
    with pytest.raises(ModelPatchError, match="unknown augmentation 'turn'"):
        fit(bind(trunk, digits, "full"), data, dataclasses.replace(recipe, augmentation="turn"))
