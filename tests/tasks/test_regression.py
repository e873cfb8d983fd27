import keras
import numpy as np
import pytest
from sklearn import metrics

from model_patch import ModelPatchError, Preprocessing, RegressionTask, Task


@pytest.fixture
def task():
    return RegressionTask("size", ("kg", "cm"), Preprocessing(32, "tf"), mean=(70.0, 170.0), deviation=(10.0, 5.0))


def test_values_are_in_their_own_units_and_the_loss_in_deviations(task):
    outputs = np.array([[0.0, 0.0], [1.0, -2.0]], "float32")
    assert task.read(outputs)["values"].tolist() == [[70.0, 170.0], [80.0, 160.0]]
    true = np.array([[80.0, 170.0], [80.0, 165.0]], "float32")
    assert np.asarray(task.loss().call(true, outputs)).tolist() == [0.5, 0.5]
    assert task.targets(true).tolist() == [[1.0, 0.0], [1.0, -1.0]]
    assert task.errors(true, task.read(outputs)).tolist() == [1.0, 1.0]
    assert task.texts(task.read(outputs)) == ["70;170", "80;160"]


def test_figures_are_those_of_scikit_learn(task):
    random = np.random.RandomState(0)
    true = random.randn(50, 2).astype("float32") * (10, 5) + (70, 170)
    values = true + random.randn(50, 2)
    found = task.measure(true, {"values": values})
    assert found == {
        "R2": pytest.approx(metrics.r2_score(true, values)),
        "MAE": pytest.approx(metrics.mean_absolute_error(true, values)),
    }
    assert [row["label"] for row in task.per_label(true, {"values": values})] == ["kg", "cm"]
    assert task.standard_error(0.5, 100) == pytest.approx(0.0707, abs=1e-4)


def test_the_loss_is_saved_with_a_model(task, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", task.loss())
    images, numbers = np.random.RandomState(0).randn(8, 3), np.full((8, 2), 75.0)
    before = model.evaluate(images, numbers, verbose=0)
    model.save(tmp_path / "net.keras")
    assert keras.models.load_model(tmp_path / "net.keras").evaluate(images, numbers, verbose=0) == pytest.approx(before)


def test_a_task_is_written_to_json_and_back(task):
    assert Task.from_json(task.to_json()) == task


@pytest.mark.parametrize("field", [{"deviation": (1.0, 0.0)}, {"mean": (1.0,)}, {"mean": (float("nan"), 0.0)}])
def test_standards_that_cannot_be_are_refused(field):
    with pytest.raises(
        ModelPatchError, match="expected finite numbers, a positive deviation, for each of 2 quantities"
    ):
        RegressionTask("size", ("kg", "cm"), Preprocessing(32, "tf"), **field)
