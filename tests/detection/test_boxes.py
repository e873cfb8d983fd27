import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from model_patch import ModelPatchError
from model_patch.detection.boxes import BACKGROUND, DefaultBoxes, decode, encode, iou, match


def random_boxes(number, seed=0):
    rng = np.random.default_rng(seed)
    low, side = rng.uniform(0, 0.7, (number, 2)), rng.uniform(0.05, 0.3, (number, 2))
    return np.concatenate([low, low + side], axis=-1).astype("float32")


def test_default_boxes_of_two_maps_worked_out_by_hand():
    boxes = DefaultBoxes((2, 1), 0.2, 0.8, aspect_ratios=(1.0, 4.0), reduce_lowest=False)
    # The first map: sides 0.2, then 4:1 (half the height, twice the width), then sqrt(0.2 * 0.8) = 0.4.
    first, second = boxes.shapes()
    np.testing.assert_allclose(first, [(0.2, 0.2), (0.1, 0.4), (0.4, 0.4)], rtol=1e-6)
    np.testing.assert_allclose(second, [(0.8, 0.8), (0.4, 1.6), (np.sqrt(0.8), np.sqrt(0.8))], rtol=1e-6)
    corners = boxes.corners()
    assert corners.shape == (4 * 3 + 3, 4) and corners.dtype == np.float32
    np.testing.assert_allclose(corners[0], [0.15, 0.15, 0.35, 0.35], rtol=1e-5)  # Cell (0, 0), centre (0.25, 0.25).
    np.testing.assert_allclose(corners[4], [0.2, 0.55, 0.3, 0.95], rtol=1e-5)  # Cell (0, 1), 4:1.
    np.testing.assert_allclose(corners[8], [0.55, 0.05, 0.95, 0.45], rtol=1e-5)  # Cell (1, 0), the largest.
    np.testing.assert_allclose(corners[12], [0.1, 0.1, 0.9, 0.9], rtol=1e-5)


def test_ssdlite_at_320_px_has_the_2034_boxes_of_the_object_detection_api():
    boxes = DefaultBoxes((20, 10, 5, 3, 2, 1))
    assert [len(shapes) for shapes in boxes.shapes()] == [3, 6, 6, 6, 6, 6]
    assert len(boxes.corners()) == 3 * 400 + 6 * (100 + 25 + 9 + 4 + 1) == 2034
    np.testing.assert_allclose(
        boxes.shapes()[0], [(0.1, 0.1), (0.2 / 2**0.5, 0.2 * 2**0.5), (0.2 * 2**0.5, 0.2 / 2**0.5)]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grids": ()}, "expected at least one grid"),
        ({"grids": (3,), "min_scale": 0.9, "max_scale": 0.5}, "expected 0 < min <= max <= 1"),
        ({"grids": (3,), "aspect_ratios": (1.0, 0.0)}, "expected at least one, above 0"),
    ],
)
def test_default_boxes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ModelPatchError, match=message):
        DefaultBoxes(**fields)


def test_overlap_by_hand():
    boxes = np.array([[0.0, 0.0, 0.4, 0.4], [0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 0.5, 0.9]], "float32")
    # 0.04 in common of 0.16 + 0.16 - 0.04; the last has no area.
    expected = [[1, 0.04 / 0.28, 0], [0.04 / 0.28, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(iou(boxes, boxes), expected, atol=1e-6)


def test_overlap_is_that_of_pycocotools():
    first, second = random_boxes(13), random_boxes(7, seed=1)

    def xywh(boxes):
        return np.concatenate([boxes[:, 1::-1], boxes[:, :1:-1] - boxes[:, 1::-1]], axis=-1).astype("float64")

    expected = mask.iou(xywh(first), xywh(second), [0] * 7)
    assert (expected > 0.1).any() and (expected == 0).any()
    np.testing.assert_allclose(iou(first, second), expected, atol=1e-6)


DEFAULTS = np.array([[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.1, 0.1, 0.5, 0.5]], "float32")


def matched(boxes, padding=0, threshold=0.5):
    boxes = np.array(boxes, "float32").reshape(1, -1, 4)
    boxes = np.concatenate([boxes, np.zeros((1, padding, 4), "float32")], axis=1)
    is_box = np.arange(boxes.shape[1])[None] < boxes.shape[1] - padding
    return np.array(match(boxes, is_box, DEFAULTS, threshold))[0].tolist()


def test_default_boxes_match_the_true_box_that_they_overlap_by_half():
    # With the first default box: IoU 1; with the last: 0.16 / 0.25 = 0.64.
    assert matched([[0, 0, 0.5, 0.5]]) == [0, BACKGROUND, BACKGROUND, 0]
    assert matched([[0, 0, 0.5, 0.5]], threshold=0.7) == [0, BACKGROUND, BACKGROUND, BACKGROUND]


def test_every_true_box_gets_its_best_default_box_however_small_the_overlap():
    # A box of 0.01 inside the second default box: IoU 0.04.
    assert matched([[0.2, 0.7, 0.3, 0.8]]) == [BACKGROUND, 0, BACKGROUND, BACKGROUND]
    # It takes that box even from a better one that has another.
    boxes = [[0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]]  # The second one's best is the last: IoU 0.01 / 0.16.
    assert matched(boxes) == [0, BACKGROUND, BACKGROUND, 1]


def test_if_two_want_one_default_box_it_goes_to_the_larger_overlap():
    boxes = [[0, 0.6, 0.1, 0.7], [0, 0.5, 0.4, 1.0]]
    assert matched(boxes) == [BACKGROUND, 1, BACKGROUND, BACKGROUND]


def test_padding_matches_nothing():
    assert matched([[0, 0, 0.5, 0.5]], padding=3) == matched([[0, 0, 0.5, 0.5]])
    assert matched([], padding=2) == [BACKGROUND] * 4


def test_codes_by_hand():
    default = np.array([0.2, 0.2, 0.6, 0.4], "float32")  # Centre (0.4, 0.3), size (0.4, 0.2).
    box = np.array([0.3, 0.2, 0.7, 0.6], "float32")  # Centre (0.5, 0.4), size (0.4, 0.4).
    expected = [0.1 / 0.4 / 0.1, 0.1 / 0.2 / 0.1, 0, np.log(2) / 0.2]
    np.testing.assert_allclose(encode(box, default), expected, atol=1e-5)
    np.testing.assert_allclose(decode(np.zeros(4, "float32"), default), default, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_decoding_undoes_encoding(seed):
    boxes, defaults = random_boxes(11, seed), random_boxes(11, seed + 1)
    np.testing.assert_allclose(decode(encode(boxes, defaults), defaults), boxes, atol=1e-5)


def test_wild_codes_do_not_make_infinite_boxes():
    boxes = np.array(decode(np.full((1, 4), 1e6, "float32"), np.array([[0, 0, 1, 1]], "float32")))
    assert np.isfinite(boxes).all() and boxes[0, 2] - boxes[0, 0] == pytest.approx(62.5, rel=1e-3)
