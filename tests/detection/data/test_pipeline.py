import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError, Preprocessing
from model_patch.detection.data.images import MAX_BOXES, ragged_split
from model_patch.detection.data.pipeline import AUGMENTATIONS, augmenter, batches

PREPROCESSING = Preprocessing(16, "unit")


def marked(number: int = 5, size: int = 40):
    """Images that are white exactly in their box, one each; box i has class i."""
    rng = np.random.default_rng(0)
    images, boxes = np.zeros((number, size, size, 3), "uint8"), []
    for image in images:
        top, left, height, width = *rng.integers(0, 20, 2), *rng.integers(8, 20, 2)
        image[top : top + height, left : left + width] = 255
        boxes.append(np.array([[top, left, top + height, left + width]]) / size)
    classes = [np.array([i]) for i in range(number)]
    return ragged_split(images, boxes, classes, [np.zeros(1, bool)] * number, lambda image, *_: image, images.nbytes)


def test_batches_hold_resized_images_and_padded_boxes():
    (images, boxes), (rest, _) = batches(marked(), PREPROCESSING, 3)  # Five images: no batch of one.
    assert images.shape == (3, 16, 16, 3) and rest.shape == (2, 16, 16, 3) and images.numpy().max() < 1.001
    assert boxes.shape == (3, MAX_BOXES, 5) and boxes[:, 0, 4].numpy().tolist() == [0, 1, 2]
    assert (boxes[:, 1:, 4] == -1).numpy().all()


def test_boxes_to_ignore_are_not_learnt_and_boxes_are_tidied():
    boxes = np.array([[-0.2, 0.1, 0.5, 1.4], [0.1, 0.1, 0.3, 0.3], [0.2, 0.4, 0.2, 0.6], [1.2, 0.1, 1.5, 0.4]])
    ignored = np.array([False, True, False, False])
    split = ragged_split(
        np.zeros((1, 8, 8, 3), "uint8"), [boxes], [np.arange(4)], [ignored], lambda image, *_: image, 1
    )
    ((_, rows),) = batches(split, PREPROCESSING, 1)
    assert (rows[0, :, 4] >= 0).numpy().sum() == 1
    np.testing.assert_allclose(rows[0, 0], [0, 0.1, 0.5, 1.0, 0], atol=1e-6)
    ((_, kept, classes, flags),) = split.dataset()
    assert classes.numpy().tolist() == [0, 1] and flags.numpy().tolist() == [False, True]


def test_images_without_boxes_and_with_too_many_both_come():
    many = np.tile([[0.1, 0.1, 0.2, 0.2]], (MAX_BOXES + 7, 1))
    boxes = [np.zeros((0, 4)), many]
    classes, ignored = [[np.zeros(len(each), kind) for each in boxes] for kind in (int, bool)]
    split = ragged_split(np.zeros((2, 8, 8, 3), "uint8"), boxes, classes, ignored, lambda image, *_: image, 1)
    for augmentation in ("none", "flip+colour"):
        ((_, rows),) = batches(split, PREPROCESSING, 2, augmentation=augmentation)
        assert (rows[..., 4] >= 0).numpy().sum(axis=1).tolist() == [0, MAX_BOXES]
    ((images, rows),) = batches(split, PREPROCESSING, 2, augmentation="crop")
    assert images.shape == (2, 16, 16, 3) and not (rows[0, :, 4] >= 0).numpy().any()


@pytest.mark.parametrize("names", ["flip", "crop", "flip+crop"])
def test_boxes_move_with_the_image(names):
    """Whatever is cut and mirrored, the image is white in its box and black around it."""
    augment, changed = augmenter(names), 0
    for seed in range(12):
        for image, boxes, _, _ in marked().dataset():
            after, moved = augment(image, boxes, tf.constant(seed, "int64"))
            moved = np.clip(moved.numpy()[0], 0, 1)
            changed += not np.array_equal(moved, boxes.numpy()[0])
            height, width = after.shape[:2]
            expected = np.zeros((height, width), bool)
            ymin, xmin, ymax, xmax = np.round(moved * [height, width, height, width]).astype(int)
            expected[ymin:ymax, xmin:xmax] = True
            if expected.any():  # Otherwise the box's centre was cut off, and so is the box.
                assert ((after.numpy()[..., 0] > 0) == expected).all()
            else:
                assert "crop" in names
    assert changed > 10


def test_colour_leaves_the_boxes():
    for image, boxes, _, _ in marked(1).dataset():
        after, moved = AUGMENTATIONS["colour"](image, boxes, tf.constant([0, 1], "int64"))
        assert np.array_equal(moved, boxes) and not np.array_equal(after, image)


def test_shuffling_depends_on_the_seed_and_changes_from_epoch_to_epoch():
    def order(seed):
        tf.random.set_seed(0)
        data = batches(marked(30), PREPROCESSING, 30, shuffle_seed=seed)
        return [next(iter(data))[1][:, 0, 4].numpy().tolist() for _ in range(2)]

    one, same, other = order(1), order(1), order(2)
    assert one == same != other and sorted(one[0]) == list(range(30))
    data = batches(marked(30), PREPROCESSING, 30, shuffle_seed=1, epochs=range(2))
    first, second = (boxes[:, 0, 4].numpy().tolist() for _, boxes in data)
    assert first != second


def test_unknown_augmentations_are_refused():
    with pytest.raises(
        ModelPatchError, match="unknown augmentation of detection 'shift': expected one of colour, crop"
    ):
        batches(marked(), PREPROCESSING, 2, augmentation="shift")
