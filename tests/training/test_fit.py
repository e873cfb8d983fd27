import dataclasses
import time

import keras
import numpy as np
import pytest
from tqdm import tqdm

import model_patch as mp
from model_patch import ModelPatchError, Trunk, bind
from model_patch.data.pipeline import batches
from model_patch.errors import TrainingError
from model_patch.graph.rewrite import walk
from model_patch.kinds import TrainSpec
from model_patch.training.callbacks import InputWait
from model_patch.training.fit import evaluate, features_and_head, fit
from model_patch.training.loop import run_epochs
from tests.conftest import same, snapshot


@pytest.mark.parametrize(
    ("train", "statistics"),
    [
        ("last", "batch"),
        ("scale_bias", "frozen"),
        ("scale_bias+last", "batch"),
        ("depthwise+last", "frozen"),
        ("statistics+last", "batch"),
        ("full", "batch"),
    ],
)
def test_training_learns_what_it_says_and_leaves_the_trunk_as_it_was(trunk, digits, data, recipe, train, statistics):
    before = snapshot(trunk.variables())
    bound = bind(trunk, digits, TrainSpec.parse(train, statistics))
    patch, head = snapshot(bound.patch_variables), snapshot(bound.head_variables)
    assert fit(bound, data, recipe).seconds > 0
    assert same(before, snapshot(trunk.variables()))
    assert same(head, snapshot(bound.head_variables)) == (not bound.train_spec.last)
    after = snapshot(bound.patch_variables)
    unmoved = {key for key in patch if np.array_equal(patch[key], after[key])}
    frozen = {key for key in patch if "moving" in key} if statistics == "frozen" else set()
    assert unmoved == frozen


def test_more_steps_test_better(trunk, digits, data, recipe, longer):
    bound, accuracies = bind(trunk, digits, "full"), []
    for each in (recipe, longer):
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
    assert same(one, again)
    assert same(one, other) == (train == "last"), "the last layer alone is a convex problem: no seed is involved"


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


def test_a_patch_starts_from_the_learnt_last_layer_and_scale_bias_alone_from_a_random_one(trunk, digits, data, recipe):
    last = bind(trunk, digits, "last")
    assert fit(last, data, recipe).history == {}
    learnt = evaluate(last, data, recipe)
    assert learnt["loss"] < np.log(len(digits.labels))
    tiny = dataclasses.replace(recipe, epochs=1, learning_rate=1e-9)
    random = bind(trunk, digits, "last", seed=7).head.kernel
    for options, start in (({"optimizer": "rmsprop"}, "random"), ({"schedule": "paper"}, "random"), ({}, "learnt")):
        both = bind(trunk, digits, "scale_bias+last", seed=7)
        fit(both, data, dataclasses.replace(tiny, **options))
        assert np.allclose(both.head.kernel, random, atol=1e-4) == (start == "random")
    assert evaluate(both, data, recipe)["loss"] == pytest.approx(learnt["loss"], rel=1e-4)
    alone = bind(trunk, digits, "scale_bias", seed=7)
    fit(alone, data, tiny)
    assert np.array_equal(alone.head.kernel, random)


class CountsCalls(keras.layers.Layer):
    """Passes its input on, and counts how often Python does so: once per traced graph."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize("train", ["last", "scale_bias+last", pytest.param("full", marks=pytest.mark.slow)])
def test_nothing_is_traced_after_the_first_epoch_nor_for_a_test(trunk, digits, data, recipe, train):
    net, counter = trunk.model, CountsCalls()
    trunk = Trunk(keras.Model(net.input, counter(net.output)), "counted", digits.preprocessing)
    traced = []
    for epochs in (1, 4):
        bound = bind(trunk, digits, train)
        # A copy of the layer is made where the task owns everything.
        layers = [layer for _, layer in walk(bound.model) if isinstance(layer, CountsCalls)]
        counter.calls = 0
        fit(bound, data, dataclasses.replace(recipe, epochs=epochs))
        traced.append(layers[0].calls)
    assert traced[0] == traced[1] > 0 and (train != "last" or traced[0] == 1)
    first = evaluate(bound, data, recipe)
    once = layers[0].calls
    assert once == traced[1]
    assert evaluate(bound, data, recipe) == first
    fit(bound, data, recipe)
    again = layers[0].calls
    evaluate(bound, data, dataclasses.replace(recipe, max_test_images=70))
    assert layers[0].calls == again
    bound.model.compile(loss="mse", metrics=["mae"])
    assert evaluate(bound, data, recipe).keys() == first.keys(), "what others compiled is not taken for ours"


def test_waiting_for_batches_is_measured():
    import tensorflow as tf

    def slow(i):
        return tf.numpy_function(lambda x: (time.sleep(0.1), np.float32(x))[1], [i], "float32")

    wait, start = InputWait(), time.perf_counter()
    number = sum(1 for _ in wait.measured(tf.data.Dataset.range(10).map(slow)))
    assert number == 10 and 1.0 <= wait.seconds <= time.perf_counter() - start
    late, start = InputWait(), time.perf_counter()
    for _ in late.measured(tf.data.Dataset.range(10).prefetch(10)):
        time.sleep(0.1)  # The reader is the slow one.
    assert 0 < late.seconds < time.perf_counter() - start - 1.0


@pytest.mark.parametrize("train", ["last", "scale_bias+last"])
def test_the_share_of_waiting_is_told(trunk, digits, data, recipe, tmp_path, train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted = fit(bind(trunk, digits, train), data, dataclasses.replace(recipe, learning_rate=0.01), log_dir=tmp_path)
    assert 0 < fitted.input_wait < 1
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    assert {"epoch_seconds", "epoch_input_wait"} <= set(events.Tags()["tensors"])


def test_an_epoch_in_one_call_computes_the_same(trunk, digits, data, recipe, monkeypatch):
    few = dataclasses.replace(recipe, epochs=3, max_train_images=70)  # Three batches, the last one small.
    steps, kernels = [], []
    for in_one_call in (True, False):
        bound = bind(trunk, digits, "last")
        wait = InputWait()
        images = batches(data.train, digits.preprocessing, 32, max_images=70)
        train, head = features_and_head(bound, images, 32, 70, seed=5)
        monkeypatch.setattr(tqdm, "update", lambda bar, n=1: steps.append(n))
        kept = run_epochs(bound, head, train, 70, few, wait=wait, one_call_per_epoch=in_one_call)
        kernels.append(np.array(bound.head.kernel))
        assert [len(values) for values in kept.history.values()] == [3] * 4
    assert np.array_equal(*kernels)
    assert [n for n in steps if n == 3] == [3] * 3 and sum(steps) == 2 * 9


def test_joined_tasks_and_detectors_are_fitted_and_tested_by_the_same_functions(trunk, digits, data):
    few = mp.Recipe(epochs=1, batch_size=8, max_train_images=16, max_test_images=8)
    tasks = [dataclasses.replace(digits, name=name) for name in ("one", "two")]
    joined, both = mp.join(trunk, tasks), dict.fromkeys(("one", "two"), data)
    before = snapshot(joined.tasks["two"].head_variables)
    assert mp.fit(joined, both, few).history["two_loss"]
    assert not same(before, snapshot(joined.tasks["two"].head_variables))
    assert mp.evaluate(joined, both, few)["one"].keys() == {"loss", "accuracy", "macro_accuracy"}
    scenes = mp.open_detection_data("scenes:digits?size=32&train=8&test=8")
    detector = mp.bind(
        trunk, mp.DetectionTask.on(trunk, "found", scenes.labels, layers=("depthwise_relu",), num_maps=2), "last"
    )
    means = {key: np.array(v) for key, v in detector.head_variables.items() if "moving_mean" in key}
    assert len(mp.fit(detector, scenes, few).history["loss"]) == 1
    assert means and all(not np.array_equal(each, detector.head_variables[key]) for key, each in means.items())
    assert mp.evaluate(detector, scenes, few).keys() == {"mAP", "mAP@50", "mAP@75"}


@pytest.mark.parametrize("train", ["last", "scale_bias+last"])
def test_the_best_epoch_on_validation_images_stays_and_patience_ends_the_training(trunk, digits, data, recipe, train):
    """At this rate epochs get worse and better."""
    data = data.with_validation(0.5, 160)
    wild = dataclasses.replace(recipe, epochs=6, optimizer="sgd", schedule="constant", learning_rate=0.6)
    fitted = fit(bind(trunk, digits, train), data, wild)
    accuracies, losses = fitted.history["val_accuracy"], fitted.history["val_loss"]
    best = max(range(6), key=lambda epoch: (accuracies[epoch], -losses[epoch]))
    assert fitted.best_epoch == best < 5
    bound = bind(trunk, digits, train)
    stopped = fit(bound, data, dataclasses.replace(wild, patience=1))
    assert len(stopped.history["loss"]) == min(6, stopped.best_epoch + 2)
    kept = evaluate(bound, data, split="validation")
    assert kept["accuracy"] == pytest.approx(stopped.history["val_accuracy"][stopped.best_epoch])
