"""Joint training on real digits and textures."""

import dataclasses

import keras
import numpy as np
import pytest
from tensorflow import make_ndarray

from model_patch import Task, bind
from model_patch.data import open_data
from model_patch.data.sampling import Sampler, joint_batches
from model_patch.errors import TrainingError
from model_patch.join import join
from model_patch.kinds import TrainSpec
from model_patch.training.callbacks import VALIDATION
from model_patch.training.fit import evaluate, fit_task
from model_patch.training.joint import fit_joined
from model_patch.training.statistics import estimate_statistics
from tests.conftest import same, snapshot

STEPS = 6


@pytest.fixture
def sources():
    return {"digits": open_data("digits"), "textures": open_data("textures")}


@pytest.fixture
def tasks(trunk, sources):
    return [Task(name, data.labels, trunk.preprocessing) for name, data in sources.items()]


@pytest.fixture
def sizes():
    return Sampler().sizes([80, 80], 8, STEPS)


def everything(joined):
    owned = {name: bound.patch_variables | bound.head_variables for name, bound in joined.tasks.items()}
    return joined.trunk.variables() | {f"{name}:{k}": v for name, each in owned.items() for k, v in each.items()}


@pytest.mark.parametrize(("share", "train_trunk"), [("trunk", False), ("trunk+patch", True)])
def test_training_changes_what_it_says_and_nothing_else(trunk, tasks, sources, recipe, sizes, share, train_trunk):
    joined = join(trunk, tasks, share=share, train_trunk=train_trunk)
    before = snapshot(everything(joined))
    assert fit_joined(joined, sources, recipe, sizes).seconds > 0
    after = snapshot(everything(joined))
    unmoved = {key for key in before if np.array_equal(before[key], after[key])}
    if train_trunk:  # What the patch stands in for.
        assert unmoved == set(joined.tasks["digits"].patch_variables) & set(trunk.variables())
    else:  # The statistics of S/B on a frozen trunk stay those of the trunk.
        assert unmoved == set(trunk.variables()) | {key for key in before if "moving" in key}


def test_last_layers_are_solved_as_for_each_task_alone(trunk, tasks, sources, recipe):
    joined = join(trunk, tasks, "last")
    fit_joined(joined, sources, recipe)
    for name, bound in joined.tasks.items():
        alone = bind(trunk, bound.task, "last")
        fit_task(alone, sources[name], recipe)
        for one, other in zip(bound.head.get_weights(), alone.head.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_shared_last_layer_is_solved_for_all_tasks_that_share_it(trunk, sources, recipe):
    digits = sources["digits"]
    tasks = [Task(name, digits.labels, trunk.preprocessing) for name in ("first", "second")]
    halves = dict(zip(("first", "second"), (digits, digits.folds(2)[0]), strict=True))
    joined = join(trunk, tasks, "last", share_head=True)
    fit_joined(joined, halves, recipe)
    bound = joined.tasks["second"]
    assert bound.head is joined.tasks["first"].head and evaluate(bound, digits, recipe)["accuracy"] > 0.4


def test_patches_of_tasks_begin_at_their_last_layers_and_keep_the_weight_decay_of_each(trunk, tasks, sources, recipe):
    joined = join(trunk, tasks)
    fit_joined(joined, sources, dataclasses.replace(recipe, epochs=1, learning_rate=1e-9))
    optimizer = joined.model.optimizer
    kernels = [bound.head.kernel for bound in joined.tasks.values()]
    for bound, kernel in zip(joined.tasks.values(), kernels, strict=True):
        alone = bind(trunk, bound.task, "last")
        fit_task(alone, sources[bound.task.name], recipe)
        np.testing.assert_allclose(kernel, alone.head.kernel, rtol=1e-3, atol=1e-3)
    assert optimizer.relative and len(optimizer.decays) == 2
    decays = {id(v): decay for v, decay in zip(joined.model.trainable_variables, optimizer._decay_of, strict=True)}
    assert not np.allclose(*(decays[id(kernel)] for kernel in kernels))


def test_more_steps_test_better_on_every_task(trunk, tasks, sources, recipe):
    joined = join(trunk, tasks, train_trunk=True)
    few = dataclasses.replace(recipe, learning_rate=0.02, max_train_images=0, max_test_images=200)

    def accuracies():
        return [evaluate(bound, sources[name], few)["accuracy"] for name, bound in joined.tasks.items()]

    none = accuracies()
    fit_joined(joined, sources, few, Sampler().sizes([1, 1], 24, 80))
    many = accuracies()
    assert all(a < b for a, b in zip(none, many, strict=True)) and min(many) > 0.3


def test_the_same_seed_gives_the_same_values(trunk, tasks, sources, recipe, sizes):
    def trained(seed):
        keras.utils.set_random_seed(seed)
        joined = join(trunk, tasks, "bias+last", seed=seed)
        fit_joined(joined, sources, recipe, sizes, seed=seed)
        return snapshot(everything(joined))

    one, again, other = trained(1), trained(1), trained(2)
    assert same(one, again) and not same(one, other)


def test_a_task_that_counts_nothing_to_speak_of_learns_little(trunk, tasks, sources, recipe, sizes):
    moves = []
    sgd = dataclasses.replace(recipe, optimizer="sgd", schedule="constant", learning_rate=0.05)
    for weights in ({"digits": 1.0, "textures": 1.0}, {"digits": 1.0, "textures": 1e-6}):
        joined = join(trunk, tasks)
        before = {name: np.array(bound.head.kernel) for name, bound in joined.tasks.items()}
        fit_joined(joined, sources, sgd, sizes, weights=weights)
        moves.append({n: np.abs(b.head.kernel - before[n]).max() for n, b in joined.tasks.items()})
    alike, unlike = moves
    assert unlike["digits"] == alike["digits"] and unlike["textures"] < 1e-4 * alike["textures"]


def logged(folder, tag) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [float(make_ndarray(e.tensor_proto)) for e in EventAccumulator(str(folder)).Reload().Tensors(tag)]


def test_the_best_epoch_stays(trunk, tasks, sources, recipe, tmp_path):
    """A learning rate that lets no epoch be better than the one before for long."""
    wild = dataclasses.replace(recipe, epochs=5, optimizer="sgd", schedule="constant", learning_rate=1.0)
    joined = join(trunk, tasks, "last")
    sizes = Sampler().sizes([1, 1], 8, 10)
    sources = {name: data.with_validation(0.5, 80) for name, data in sources.items()}
    fitted = fit_joined(joined, sources, wild, sizes, log_dir=tmp_path)
    means = logged(tmp_path / "validation", "epoch_accuracy")
    assert len(means) == 5 and means[fitted.best_epoch] == max(means) > means[-1]
    accuracies = []
    for name, bound in joined.tasks.items():
        assert sources[name].validation.num_images == 40
        accuracies.append(evaluate(bound, sources[name], split="validation")["accuracy"])
    assert np.mean(accuracies) == pytest.approx(max(means))


def test_tensorboard_gets_losses_accuracies_and_counts_of_images_of_each_task(trunk, tasks, sources, recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = Sampler("proportional", 1.0).sizes([300, 100], 8, STEPS)
    sources = {name: data.with_validation(0.1, 80) for name, data in sources.items()}
    fit_joined(join(trunk, tasks), sources, recipe, sizes, log_dir=tmp_path)
    train = EventAccumulator(str(tmp_path / "train")).Reload()
    per_task = {f"epoch_{name}_{what}" for name in sources for what in ("loss", "accuracy", "images")}
    assert per_task | {"epoch_loss"} <= set(train.Tags()["tensors"])
    for k, name in enumerate(sources):
        counts = logged(tmp_path / "train", f"epoch_{name}_images")
        assert counts == [sizes[:3, k].sum(), sizes[:, k].sum()]
    tested = EventAccumulator(str(tmp_path / "validation")).Reload().Tags()["tensors"]
    assert {f"epoch_{VALIDATION.removeprefix('val_')}", "epoch_digits_accuracy"} <= set(tested)


def test_a_loss_that_is_no_number_stops_the_training_and_is_explained(trunk, tasks, sources, recipe, sizes):
    diverging = dataclasses.replace(recipe, optimizer="sgd", learning_rate=1e38)
    with pytest.raises(
        TrainingError, match=r"the loss of digits, textures \(share=trunk\) became .* lower --learning_rate"
    ):
        fit_joined(join(trunk, tasks), sources, diverging, sizes)


def plain_batches(sources, tasks, sizes):
    splits = {name: data.train for name, data in sources.items()}
    return joint_batches(splits, {task.name: task.preprocessing for task in tasks}, sizes, cache=False)


def test_private_statistics_are_re_estimated_as_for_each_task_alone(trunk, tasks, sources, sizes):
    images = list(plain_batches(sources, tasks, sizes))
    joined = join(trunk, tasks, TrainSpec.parse("scale_bias+last", "batch"))
    alone = join(trunk, tasks, TrainSpec.parse("scale_bias+last", "batch"))
    estimate_statistics(joined, images)
    for name, bound in alone.tasks.items():
        estimate_statistics(bound, [(x[name], y[name]) for x, y in images])
        for key, variable in bound.patch_variables.items():
            np.testing.assert_allclose(
                joined.tasks[name].patch_variables[key], variable, rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}"
            )


def test_shared_statistics_are_re_estimated_on_merged_batches(trunk, tasks, sources, sizes):
    images = list(plain_batches(sources, tasks, sizes))
    joined = join(trunk, tasks, "last", train_trunk=True)
    estimate_statistics(joined, images)
    parts = [np.array(trunk.model.get_layer("stem")(np.concatenate(list(x.values())))) for x, _ in images]
    mean = np.mean([x.mean((0, 1, 2)) for x in parts], 0)
    square = np.mean([x.var((0, 1, 2)) + x.mean((0, 1, 2)) ** 2 for x in parts], 0)
    norm = trunk.model.get_layer("stem_bn")
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, square - mean**2, rtol=1e-4, atol=1e-5)
