import dataclasses

import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task


def test_a_task_is_written_to_json_and_back(task):
    assert Task.from_json(task.to_json()) == task


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("", ("a", "b"), "the task name '' cannot name a file"),
        ("../up", ("a", "b"), "the task name '../up' cannot name a file"),
        ("one", ("a",), "'one' has 1 class: expected at least two"),
        ("twice", ("a", "b", "a"), "'twice' has the label 'a' more than once"),
    ],
)
def test_tasks_that_cannot_be_are_refused(name, labels, message):
    with pytest.raises(ModelPatchError, match=message):
        Task(name, labels, Preprocessing(32, "tf"))


def test_unknown_preprocessing_is_refused():
    with pytest.raises(
        ModelPatchError, match="unknown preprocessing 'imagenet': expected one of caffe, none, tf, torch, unit"
    ):
        Preprocessing(32, "imagenet")


def test_the_macro_accuracy_is_the_mean_recall_of_the_classes_seen(task):
    labels, logits = np.array([0, 0, 0, 1]), np.eye(3, dtype="float32")[[0, 0, 1, 1]]
    assert task.measure(labels, task.read(logits)) == {
        "accuracy": 0.75,
        "macro_accuracy": pytest.approx((2 / 3 + 1) / 2),
    }


def test_a_temperature_is_fitted_and_used_if_asked(task):
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, 500)
    sure = 6 * (np.eye(3)[labels] + 0.6 * random.randn(500, 3)).astype("float32")  # Much too sure.
    fitted = task.calibrate(labels, sure)
    assert 1.5 < fitted.temperature < 5
    used = dataclasses.replace(fitted, use_temperature=True)
    before, after = (each.read(sure) for each in (fitted, used))
    assert np.array_equal(before["logits"], after["logits"])
    loss = [-np.log(each["probabilities"][np.arange(500), labels]).mean() for each in (before, after)]
    assert loss[1] < loss[0] - 0.1 and Task.from_json(used.to_json()) == used
