import numpy as np
import pytest

from model_patch.data.images import array_split
from model_patch.experiments.findings import Predictions, cross_validated, duplicates, measure, mislabelled

NAMES = ("a", "b", "c")


def predictions(labels, probabilities):
    return Predictions([f"{i}.png" for i in range(len(labels))], np.array(labels), np.array(probabilities, "float32"))


def test_figures_are_those_of_counting():
    found = measure(predictions([0, 0, 0, 1], [[0.9, 0.1, 0], [0.8, 0.2, 0], [0.05, 0.95, 0], [0.4, 0.6, 0]]), NAMES)
    assert found["accuracy"] == 0.75 and found["macro_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    a, b, c = found["classes"]
    assert (a["images"], a["precision"], a["recall"]) == (3, 1.0, pytest.approx(2 / 3))
    assert (b["precision"], b["recall"], b["f1"]) == (0.5, 1.0, pytest.approx(2 / 3)) and c["images"] == 0
    bins = [(0.6, 1.0, 1), (0.8, 1.0, 1), (0.925, 0.5, 2)]
    assert [tuple(each.values()) for each in found["reliability"]] == [pytest.approx(each) for each in bins]
    assert found["expected_calibration_error"] == pytest.approx((0.4 + 0.2 + 2 * 0.425) / 4)
    assert [each["path"] for each in found["mistakes"]] == ["2.png"]
    assert [each["path"] for each in found["uncertain"]] == ["3.png", "1.png", "0.png", "2.png"]


def test_swapped_labels_are_listed_first():
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, 300)
    features = np.eye(3)[labels] * 3 + random.randn(300, 3)
    swapped = random.choice(300, 15, replace=False)
    labels[swapped] = (labels[swapped] + 1) % 3
    found = mislabelled([predictions(labels, cross_validated(features, labels, 3))], NAMES)
    assert found["checked"] == 300 and len(found["images"]) == 30
    listed = {each["path"] for each in found["images"]}
    assert sum(f"{i}.png" in listed for i in swapped) >= 13
    assert 8 <= found["suspected"] <= 30 and all(each["label"] != each["predicted"] for each in found["images"][:8])


def test_images_of_a_class_with_one_image_are_not_judged():
    labels = np.array([0] * 20 + [1] * 20 + [2])
    features = np.eye(3)[labels] + np.random.RandomState(0).randn(41, 3) / 9
    found = mislabelled([predictions(labels, cross_validated(features, labels, 3))], NAMES)
    assert found["checked"] >= 40


def test_equal_and_resized_images_in_two_splits_are_found_and_others_are_not():
    from PIL import Image

    random = np.random.RandomState(0)
    noise = [
        np.asarray(Image.fromarray(random.randint(0, 256, (6, 6, 3), "uint8")).resize((48, 48))) for _ in range(40)
    ]
    resized = np.asarray(Image.fromarray(noise[3]).resize((40, 40)).resize((48, 48)))
    train = array_split(np.array(noise[:20]), np.zeros(20))
    test = array_split(np.array([*noise[20:], noise[2], resized]), np.zeros(22))
    found = duplicates({"train": train, "test": test})
    assert (found["checked"], found["hashed"]) == (42, 42)
    assert [pair["distance"] < 0 for pair in found["pairs"]] == [True, False]
    assert all(pair["path"].startswith("train ") and pair["other"].startswith("test ") for pair in found["pairs"])


def test_small_images_are_compared_by_content_alone():
    images = np.random.RandomState(0).randint(0, 256, (6, 8, 8), "uint8")
    found = duplicates({"train": array_split(images[:3], np.zeros(3)), "test": array_split(images[2:], np.zeros(4))})
    assert found["hashed"] == 0 and [pair["distance"] for pair in found["pairs"]] == [-1]
