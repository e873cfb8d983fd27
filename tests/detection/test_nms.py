import numpy as np

from model_patch.detection.boxes import encode
from model_patch.detection.nms import IOU_THRESHOLD, MAX_DETECTIONS, detections

BOXES = np.array(
    [
        [0.1, 0.1, 0.5, 0.5],
        [0.1, 0.1, 0.5, 0.46],  # IoU 0.9 with the first.
        [0.1, 0.3, 0.5, 0.7],  # IoU 1/3 with the first.
        [0.8, 0.8, 1.2, 1.2],  # Sticks out of the image.
    ],
    "float32",
)


def found(scores, boxes=BOXES):
    """Detections in one image, whose default boxes are the boxes themselves."""
    codes = np.array(encode(boxes, boxes))[None]
    predictions = detections(codes, np.array(scores, "float32")[None], boxes)
    *parts, count = (np.array(prediction)[0] for prediction in predictions)
    assert all(len(part) == MAX_DETECTIONS and not part[count:].any() for part in parts)
    return [part[:count] for part in parts]


def test_of_two_boxes_of_a_class_that_overlap_the_better_stays():
    boxes, scores, classes = found([[0.6, 0], [0.8, 0], [0.3, 0], [0, 0]])
    assert IOU_THRESHOLD == 0.6
    np.testing.assert_allclose(boxes, BOXES[[1, 2]], atol=1e-6)
    np.testing.assert_allclose(scores, [0.8, 0.3])
    assert classes.tolist() == [0, 0]


def test_classes_do_not_suppress_one_another_and_the_best_come_first():
    boxes, scores, classes = found([[0.6, 0], [0, 0.8], [0, 0], [0, 0]])
    assert classes.tolist() == [1, 0]
    np.testing.assert_allclose(scores, [0.8, 0.6])


def test_boxes_end_at_the_image_and_low_scores_are_nothing():
    boxes, scores, _ = found([[0, 0], [0, 0.005], [0, 0], [0.5, 0]])
    np.testing.assert_allclose(boxes, [[0.8, 0.8, 1.0, 1.0]], atol=1e-6)
    assert len(found(np.zeros((4, 2)))[0]) == 0
