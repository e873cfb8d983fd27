"""From images with boxes to batches for training a detector."""

import dataclasses
from collections.abc import Callable

from model_patch.data import pipeline
from model_patch.data.augment import AUGMENTATIONS as IMAGE_AUGMENTATIONS
from model_patch.data.augment import augmenter as image_augmenter
from model_patch.data.images import Split
from model_patch.detection.data.images import MAX_BOXES, tidy
from model_patch.preprocessing import Preprocessing

CROP_AREA = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
CROP_COVERED = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Random crops: area, aspect ratio, and how much of some box they must hold, one drawn each time (Liu et al. 2016, section
2.2, "Data augmentation")."""


def flip(image, boxes, seed):
    """Mirrors every second image, left to right."""
    import tensorflow as tf

    mirrored = tf.stack([boxes[:, 0], 1.0 - boxes[:, 3], boxes[:, 2], 1.0 - boxes[:, 1]], axis=-1)
    chosen = tf.random.stateless_uniform((), seed) < 0.5
    return tf.cond(chosen, lambda: (image[:, ::-1], mirrored), lambda: (image, boxes))


def crop(image, boxes, seed):
    """Cuts out a random part. Boxes whose centre is not in it become empty."""
    import tensorflow as tf

    covered = tf.gather(tf.constant(CROP_COVERED), tf.random.stateless_uniform((), seed, 0, len(CROP_COVERED), "int32"))
    begin, size, window = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=boxes[None],
        seed=seed,
        min_object_covered=covered,
        aspect_ratio_range=CROP_ASPECT,
        area_range=CROP_AREA,
        use_image_if_no_bounding_boxes=True,
    )
    low, high = window[0, 0, :2], window[0, 0, 2:]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = tf.reduce_all((centre >= low) & (centre <= high), axis=-1, keepdims=True)
    moved = (boxes - tf.concat([low, low], 0)) / tf.concat([high - low, high - low], 0)
    return tf.ensure_shape(tf.slice(image, begin, size), (None, None, 3)), tf.where(inside, moved, 0.0)


def colour(image, boxes, seed):
    """Changes brightness and contrast, as in classification."""
    return IMAGE_AUGMENTATIONS["colour"](image, seed), boxes


AUGMENTATIONS = {"none": lambda image, boxes, seed: (image, boxes), "flip": flip, "crop": crop, "colour": colour}
"""Augmentations by name: functions of an image, uint8 `(height, width, 3)`, its boxes, float32 `(boxes, 4)`, and a seed,
int64 `(2,)`; they return both. What makes a box empty leaves it out."""


def augmenter(names: str) -> Callable:
    """Returns a function of an image, its boxes and a seed, as `model_patch.data.augment.augmenter` does. Raises as that."""
    return image_augmenter(names, AUGMENTATIONS, "augmentation of detection")


def batches(split: Split, preprocessing: Preprocessing, batch_size: int, *, augmentation: str = "none", **options):
    """Returns preprocessed batches; every image comes once per epoch, in batches of nearly equal size.

    Args:
        split: a split of a detection task.
        preprocessing: image size and scaling.
        batch_size: the most images per batch.
        augmentation: names in `AUGMENTATIONS` joined by `+`; differs in every epoch.
        **options: further ones of `model_patch.data.pipeline.batches`.

    Returns:
        As that, with boxes in place of labels: float32 `(batch, MAX_BOXES, 5)`, boxes and their classes, of which negative ones
        are padding. Boxes to be ignored are not among them.

    Raises:
        ModelPatchError: an augmentation is unknown.
    """
    import tensorflow as tf

    augment = augmenter(augmentation)

    def stored(number: int):
        return split.stored(number).map(lambda form, *truth: (form, _packed(*truth)))

    def finish(image, packed, seed):
        boxes, classes, ignored = _unpacked(packed)
        image, boxes = augment(image, boxes, seed)
        boxes, classes, ignored = tidy(boxes, classes, ignored)
        rows = tf.boolean_mask(tf.concat([boxes, classes[:, None]], axis=-1), ~ignored)[:MAX_BOXES]
        padding = tf.constant([[0.0, 0.0, 0.0, 0.0, -1.0]])
        rows = tf.concat([rows, tf.repeat(padding, MAX_BOXES - tf.shape(rows)[0], axis=0)], axis=0)
        return preprocessing.resize(image), tf.ensure_shape(rows, (MAX_BOXES, 5))

    packed = dataclasses.replace(split, stored=stored)
    return pipeline.batches(packed, preprocessing, batch_size, finish=finish, **options)


def _packed(boxes, classes, ignored):
    """Returns what belongs to an image as a scalar string: examples with different numbers of boxes have one shape."""
    import tensorflow as tf

    others = [tf.cast(each, tf.float32)[:, None] for each in (classes, ignored)]
    return tf.io.serialize_tensor(tf.concat([boxes, *others], axis=-1))


def _unpacked(packed):
    import tensorflow as tf

    rows = tf.ensure_shape(tf.io.parse_tensor(packed, tf.float32), (None, 6))
    return rows[:, :4], rows[:, 4], rows[:, 5] > 0.0
