"""Ranges of the numbers that the library is given, and lists whose values each get results of their own."""

import numpy as np
import pytest

from model_patch import Bank, ModelPatchError, Preprocessing, Task, bind, join
from model_patch.data import open_data
from model_patch.data.pipeline import batches
from model_patch.data.sampling import Sampler
from model_patch.detection.boxes import DefaultBoxes
from model_patch.errors import require_each_once
from model_patch.predict import choose_tasks
from model_patch.training.recipe import Recipe
from model_patch.training.statistics import estimate_statistics
from model_patch.trunks import open_trunk


@pytest.mark.parametrize("given", [(0, 0), (1, 2, 1.0), ("a", "b", "a"), [None, None]])
def test_a_value_twice_is_refused(given):
    with pytest.raises(ModelPatchError, match=r"sizes has \S+ more than once: give each value once"):
        require_each_once("sizes", given)


def test_different_values_are_taken_and_none_is_refused():
    require_each_once("sizes", iter((1, 2, "1")))
    with pytest.raises(ModelPatchError, match="sizes is empty, so there is nothing to run: give at least one"):
        require_each_once("sizes", ())


NUMBERS = {
    "momentum of 1": (
        lambda trunk, task: bind(trunk, task, momentum=1.0),
        "momentum is 1.0: .* at least 0 and below 1",
    ),
    "momentum below 0": (lambda trunk, task: bind(trunk, task, momentum=-0.1), "momentum is -0.1"),
    "momentum that is NaN": (lambda trunk, task: bind(trunk, task, momentum=np.nan), "momentum is nan"),
    "momentum of a join": (lambda trunk, task: join(trunk, [task], train_trunk=True, momentum=1.5), "momentum is 1.5"),
    "negative seed": (
        lambda trunk, task: bind(trunk, task, seed=-1),
        "seed is -1: expected at least 0 and below 4294967296",
    ),
    "fraction as a seed": (lambda trunk, task: join(trunk, [task], seed=0.5), "seed is 0.5: .*, a whole number"),
    "no capacity": (lambda trunk, task: Bank(trunk, capacity=0), "capacity is 0: expected at least 1"),
    "half a row": (
        lambda trunk, task: Bank(trunk, capacity=2.5),
        "capacity is 2.5: expected at least 1, a whole number",
    ),
    "one class": (lambda trunk, task: Bank(trunk, classes=1), "classes is 1: expected at least 2"),
    "size of no pixel": (lambda trunk, task: Preprocessing(0, "tf"), "image_size is 0: expected at least 1"),
    "size as text": (lambda trunk, task: Preprocessing("32", "tf"), "image_size is 32: .*, a whole number"),
    "size of a trunk": (lambda trunk, task: open_trunk("bundled", -48), "image_size is -48: expected at least 1"),
    "half an epoch": (lambda trunk, task: Recipe(epochs=0.5), "epochs is 0.5: expected at least 1, a whole number"),
    "infinite rate": (lambda trunk, task: Recipe(learning_rate=np.inf), "learning_rate is inf"),
    "batches of none": (
        lambda trunk, task: batches(open_data("faces").train, task.preprocessing, 0),
        "batch_size is 0: expected at least 1",
    ),
    "steps of none": (lambda trunk, task: Sampler().sizes((5, 5), 0, 3), "batch_size is 0"),
    "no batch for statistics": (
        lambda trunk, task: estimate_statistics(bind(trunk, task), [], num_batches=0),
        "num_batches is 0: expected at least 1",
    ),
    "shape of no size": (lambda trunk, task: DefaultBoxes((3,), aspect_ratios=(1.0, np.inf)), "above 0"),
    "shape twice": (
        lambda trunk, task: DefaultBoxes((3,), aspect_ratios=(1, 1.0)),
        "aspect_ratios has 1 more than once",
    ),
    "task twice": (
        lambda trunk, task: choose_tasks([bind(trunk, task)], ["shapes", "shapes"]),
        "tasks has shapes more",
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_range_are_refused(trunk, task, name):
    call, message = NUMBERS[name]
    with pytest.raises(ModelPatchError, match=message):
        call(trunk, task)


def test_momentum_of_0_keeps_the_last_batch_alone(trunk, task, images):
    bound = bind(trunk, Task("a", ("x", "y"), task.preprocessing), "statistics+last", momentum=0)
    bound.model(images, training=True)
    norm = bound.features.get_layer("stem_bn")
    stem = bound.features.get_layer("stem")(images)
    np.testing.assert_allclose(norm.moving_mean, np.mean(stem, (0, 1, 2)), atol=1e-5)
    estimate_statistics(bound, [(images, None)])
    np.testing.assert_allclose(norm.moving_mean, np.mean(stem, (0, 1, 2)), atol=1e-5)
