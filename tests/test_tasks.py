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
