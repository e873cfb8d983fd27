"""Tasks of every type: trained alone and joined, in a bank, in patch files, predicted with, and in every export."""

import keras
import numpy as np
import pytest

import model_patch as mp
from model_patch.export import FORMATS, check, check_on, clean_saved_model, export
from model_patch.export.bank import export_bank
from model_patch.export.signatures import ask_by_name
from tests.conftest import SIZE, small_net

RECIPE = mp.Recipe(epochs=2, batch_size=32, learning_rate=0.01)


@pytest.fixture(scope="module")
def small_trunk() -> mp.Trunk:
    return mp.Trunk(small_net(), "test", mp.Preprocessing(SIZE, "tf"))


@pytest.fixture(scope="module")
def data(specs):
    return {name: mp.open_data(spec) for name, spec in specs.items()}


@pytest.fixture(scope="module")
def tasks(data, small_trunk):
    return {name: mp.Task.of(each, small_trunk.preprocessing, name) for name, each in data.items()}


@pytest.fixture(scope="module")
def trained(data, tasks, small_trunk):
    """A task of each type, its patch trained, and what `calibrate` fits."""
    bounds = {}
    for name, task in tasks.items():
        keras.utils.set_random_seed(0)
        bound = mp.bind(small_trunk, task, "scale_bias+last")
        mp.fit(bound, data[name], RECIPE)
        bounds[name] = mp.calibrate(bound, data[name], RECIPE)
    return bounds


def test_the_type_of_a_task_is_that_of_its_data(tasks):
    assert {name: type(task) for name, task in tasks.items()} == {
        "classification": mp.Task,
        "multi_label": mp.MultiLabelTask,
        "regression": mp.RegressionTask,
    }
    assert tasks["multi_label"].labels == ("bright", "left", "red") and tasks["regression"].labels == ("width",)


def test_each_type_is_learnt(trained, data):
    found = {name: mp.evaluate(bound, data[name]) for name, bound in trained.items()}
    assert found["classification"]["accuracy"] > 0.9
    assert found["multi_label"]["mAP"] > 0.9 and found["multi_label"]["macro_F1"] > 0.8
    assert found["regression"]["R2"] > 0.5 and found["regression"]["MAE"] < 12


def test_what_is_fitted_on_validation_images_is_in_the_patch_file(trained, small_trunk, tmp_path):
    for name, bound in trained.items():
        bound.patch().save(tmp_path / name)
        assert mp.Patch.load(tmp_path / name).task == bound.task
    assert trained["classification"].task.temperature > 0
    assert len(trained["multi_label"].task.thresholds) == 3 and trained["regression"].task.temperature is None
    with pytest.raises(mp.ModelPatchError, match="has no temperature: train it with validation images"):
        mp.Task("a", ("x", "y"), small_trunk.preprocessing, use_temperature=True)


def test_joined_tasks_of_three_types_learn(data, tasks, small_trunk):
    joined = mp.join(small_trunk, list(tasks.values()))
    history = mp.fit(joined, data, mp.Recipe(epochs=2, batch_size=16, learning_rate=0.003)).history
    assert {"val_regression_R2", "val_multi_label_mAP", "val_classification_accuracy"} < history.keys()
    found = mp.evaluate(joined, data)
    assert found["classification"]["accuracy"] > 0.9 and found["multi_label"]["mAP"] > 0.9
    assert found["regression"]["R2"] > 0.5


def largest(bound, images) -> float:
    """The largest number that a task says of images, 1 at least: what differences are relative to."""
    found = bound.task.read(np.asarray(bound.model(images, training=False)))
    return max(1.0, *(float(np.abs(each).max()) for each in found.values()))


@pytest.mark.parametrize(
    "format",
    [name if name in ("saved_model", "litert") else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS],
)
def test_every_export_says_the_same_in_a_fresh_process(trained, tmp_path, format, one_clean_process):
    bounds = list(trained.values())
    export(format, bounds, tmp_path / "out")
    images = np.random.default_rng(0).uniform(-1, 1, (8, SIZE, SIZE, 3)).astype("float32")
    for name, difference in check(format, bounds, tmp_path / "out").items():
        assert difference <= 1e-5 * largest(trained[name], images), (name, difference)


@pytest.mark.slow
def test_exports_agree_on_images(trained, specs, tmp_path):
    for name, bound in trained.items():
        export("litert", [bound], tmp_path / name)
        assert check_on(specs[name], "litert", [bound], tmp_path / name) == {name: 1.0}


def test_a_bank_holds_all_types(trained, small_trunk, tmp_path, one_clean_process):
    bank = mp.Bank(small_trunk, "scale_bias", capacity=4, classes=4)
    for bound in trained.values():
        bank.add(bound)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, SIZE, SIZE, 3)).astype("float32")
    images = np.asarray(small_trunk.preprocessing.scale(pixels))
    outputs = np.asarray(bank(images, list(trained)))
    for i, bound in enumerate(trained.values()):
        expected = np.asarray(bound.model(images[i : i + 1], training=False))[0]
        assert outputs[i, : len(expected)] == pytest.approx(expected, rel=1e-4)
    export_bank(bank, tmp_path / "bank")
    with one_clean_process(clean_saved_model.__file__) as run:
        predictions = ask_by_name(run, tmp_path / "bank", list(trained.values()), pixels)
    for bound, found in zip(trained.values(), predictions, strict=True):
        expected = bound.task.read(np.asarray(bound.model(images, training=False)))
        number = len(bound.task.labels)
        for key, each in expected.items():
            assert found[key][:, :number] == pytest.approx(each, abs=1e-5 * largest(bound, images))
        labels = bound.task.texts(expected) if bound.task.type != "regression" else [""] * 3
        assert [each.decode() for each in found["label"]] == labels


def test_predictions_name_labels_or_values(trained, pictures):
    first = {each.task: each for each in mp.predict(list(trained.values()), [str(pictures / "0.png")])}
    tags, width, colour = (first[name] for name in ("multi_label", "regression", "classification"))
    assert colour.label == colour.top[0][0] and colour.probability == colour.top[0][1]
    assert [name for name, _ in tags.top] == sorted(tags.label.split(";"), key=lambda each: -tags.probabilities[each])
    assert set(tags.probabilities) == {"bright", "left", "red"} and width.probability is None
    assert float(width.label) == pytest.approx(width.probabilities["width"], rel=1e-5)
