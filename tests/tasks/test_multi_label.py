import numpy as np
import pytest
from sklearn import metrics

from model_patch import ModelPatchError, MultiLabelTask, Preprocessing, Task

LABELS = ("a", "b", "c")


@pytest.fixture
def task():
    return MultiLabelTask("tags", LABELS, Preprocessing(32, "tf"))


@pytest.fixture
def examples():
    """Which labels 60 images have, and logits that tell them: those of `b` are 3 too low."""
    random = np.random.RandomState(0)
    labels = random.randint(0, 2, (60, 3))
    logits = (2.0 * labels - 1 + 0.7 * random.randn(60, 3) - [0, 3, 0]).astype("float32")
    return labels, logits


def test_figures_are_those_of_scikit_learn(task, examples):
    labels, logits = examples
    found = task.measure(labels, task.read(logits))
    assert found["mAP"] == pytest.approx(metrics.average_precision_score(labels, logits, average="macro"))
    assert found["macro_F1"] == pytest.approx(metrics.f1_score(labels, logits >= 0, average="macro"))
    assert [row["label"] for row in task.per_label(labels, task.read(logits))] == list(LABELS)
    nobody = np.zeros_like(labels)
    assert task.measure(nobody, task.read(logits)) == {"mAP": 0.0, "macro_F1": 0.0}


def test_thresholds_are_tuned_for_each_label(task, examples):
    labels, logits = examples
    tuned = task.calibrate(labels, logits)
    assert tuned.thresholds[1] < 0.2 < tuned.thresholds[0]
    for k in range(3):
        scores = 1 / (1 + np.exp(-logits[:, k]))
        best = max(metrics.f1_score(labels[:, k], scores >= each) for each in scores)
        assert metrics.f1_score(labels[:, k], scores >= tuned.thresholds[k]) == pytest.approx(best)
    before, after = (each.measure(labels, each.read(logits))["macro_F1"] for each in (task, tuned))
    assert after > before + 0.1
    assert task.calibrate(np.zeros_like(labels), logits).thresholds == (0.5, 0.5, 0.5)


def test_labels_do_not_depend_on_the_temperature_and_probabilities_do_if_asked(task, examples):
    tuned = task.calibrate(*examples)
    used = Task.from_json({**tuned.to_json(), "use_temperature": True})
    found, calibrated = tuned.read(examples[1]), used.read(examples[1])
    assert tuned.texts(found) == used.texts(calibrated) and np.array_equal(found["logits"], calibrated["logits"])
    assert calibrated["probabilities"] == pytest.approx(1 / (1 + np.exp(-examples[1] / tuned.temperature)), abs=1e-5)
    assert np.abs(calibrated["probabilities"] - found["probabilities"]).max() > 0.01


def test_texts_and_strings_are_the_labels_that_are_predicted(task):
    found = task.read(np.array([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]], "float32"))
    assert task.texts(found) == ["a;c", ""]
    assert [each.decode() for each in task.strings(found, np.array(LABELS)).numpy()] == ["a;c", ""]
    assert task.top({"a": 0.7, "b": 0.1, "c": 0.9}, "a;c", 1) == [("c", 0.9), ("a", 0.7)]


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (0.5, 0.5, 1.0), (0.0, 0.5, 0.5)])
def test_thresholds_that_cannot_be_are_refused(thresholds):
    with pytest.raises(ModelPatchError, match=r"expected one in \(0, 1\) for each of 3 labels"):
        MultiLabelTask("tags", LABELS, Preprocessing(32, "tf"), thresholds=thresholds)
