import pytest

from model_patch import Preprocessing, Task
from model_patch.experiments.best_patch import choose

TASK = Task("task", ("a", "b"), Preprocessing(32, "tf"))
IMAGES = {"train": 900, "validation": 100, "test": 400}


def row(train, seed, accuracy, size, **fields):
    return {"train": train, "seed": seed, "test_accuracy": 0.5, "trained_parameters": size} | (
        {"validation_accuracy": accuracy} | fields
    )


def test_the_smallest_row_within_the_standard_error_of_the_best_is_chosen():
    rows = [row("full", 0, 0.90, 1000), row("scale_bias+last", 0, 0.88, 100), row("last", 0, 0.80, 10)]
    choice = choose(rows, IMAGES, TASK)
    assert (choice.train, choice.seed) == ("scale_bias+last", 0)
    assert choice.reason == (
        "scale_bias+last, seed 0: its validation accuracy of 0.8800 is within the standard error of 0.0300 of the best, "
        "full (0.9000), with 100 trained parameters instead of 1,000."
    )


def test_of_several_seeds_the_mean_decides_and_the_best_seed_is_taken():
    rows = [row("full", 0, 0.99, 1000), row("full", 1, 0.89, 1000), row("last", 0, 0.83, 10), row("last", 1, 0.87, 10)]
    assert (choose(rows, IMAGES, TASK).train, choose(rows, IMAGES, TASK).seed) == ("last", 1)
    assert "within the spread over seeds of 0.1000 of the best" in choose(rows, IMAGES, TASK).reason


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, "its validation accuracy of 0.9"), ({"fold_accuracy": [0.6, 0.8]}, "its cross-validated accuracy of 0.7")],
)
def test_folds_go_before_validation(fields, expected):
    assert expected in choose([row("last", 0, 0.9, 10, **fields)], IMAGES, TASK).reason


def test_without_either_the_test_images_decide():
    (only,) = [row("last", 0, 0.9, 10)]
    del only["validation_accuracy"]
    assert "its test accuracy of 0.5000 is the highest" in choose([only], IMAGES, TASK).reason
