import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.detection.evaluation import Detections, average_precision

BOXES = np.array([[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.9, 0.7], [0.2, 0.6, 0.4, 0.9]], "float32")


def truth(classes, ignored=None):
    number = len(classes)
    return BOXES[:number], np.array(classes), np.zeros(number, bool) if ignored is None else np.array(ignored)


def found(boxes, scores, classes):
    return Detections(
        np.array(boxes, "float32").reshape(-1, 4), np.array(scores, "float32"), np.array(classes, "int32")
    )


NOTHING = found([], [], [])


def test_a_perfect_detector_has_1_and_a_blind_one_0():
    true = [truth([0, 1]), truth([]), truth([1, 0, 1])]
    perfect = [found(boxes, [0.9] * len(boxes), classes) for boxes, classes, _ in true]
    assert average_precision(true, perfect, 2) == pytest.approx({"mAP": 1.0, "mAP@50": 1.0, "mAP@75": 1.0})
    assert set(average_precision(true, [NOTHING] * 3, 2).values()) == {0.0}


def test_average_precision_by_hand():
    """Two of class 0 and one of class 1. Class 0: found, then a false one, then the other: precision 1, 1/2, 2/3."""
    true = [truth([0, 1]), truth([0])]
    wrong = [0.0, 0.8, 0.1, 0.9]
    guesses = [found([BOXES[0], wrong], [0.9, 0.8], [0, 0]), found([BOXES[0]], [0.7], [0])]
    # COCO samples recall at 0, 0.01, ..., 1: 51 points up to 0.5 at precision 1, 50 at 2/3; class 1 is never found.
    class_0 = (51 * 1 + 50 * 2 / 3) / 101
    assert average_precision(true, guesses, 2)["mAP@50"] == pytest.approx(class_0 / 2, abs=1e-4)


def test_a_loose_box_counts_at_50_and_not_at_75():
    low, high = BOXES[0][:2], BOXES[0][2:]
    loose = np.concatenate([low, high + (high - low) * [0.6, 0.0]])  # IoU 1 / 1.6.
    metrics = average_precision([truth([0])], [found([loose], [0.5], [0])], 1)
    assert metrics["mAP@50"] == pytest.approx(1.0) and metrics["mAP@75"] == 0.0
    assert metrics["mAP"] == pytest.approx(3 / 10)  # At 0.5, 0.55 and 0.6.


def test_ignored_boxes_are_neither_asked_for_nor_counted_against():
    true = [truth([0, 0], ignored=[False, True])]
    assert average_precision(true, [found([BOXES[0]], [0.5], [0])], 1)["mAP"] == pytest.approx(1.0)
    assert average_precision(true, [found(BOXES[:2][::-1], [0.9, 0.5], [0, 0])], 1)["mAP"] == pytest.approx(1.0)


def test_classes_without_boxes_do_not_enter_and_nothing_to_find_is_an_error():
    assert average_precision([truth([0])], [found([BOXES[0]], [0.5], [0])], 7)["mAP"] == pytest.approx(1.0)
    with pytest.raises(ModelPatchError, match="there is no box to find in 2 test images"):
        average_precision([truth([]), truth([0], ignored=[True])], [NOTHING] * 2, 1)


def test_the_first_true_box_counts_as_any_other():
    # COCOeval takes a match with annotation 0 for none: ids must start at 1.
    assert average_precision([truth([0])], [found([BOXES[0]], [0.5], [0])], 1)["mAP"] == pytest.approx(1.0)
