"""From images with boxes to batches that a detector learns from."""

from collections.abc import Callable

from model_patch.data.augment import AUGMENTATIONS as IMAGE_AUGMENTATIONS
from model_patch.data.augment import augmenter as image_augmenter
from model_patch.data.epochs import in_epochs, numbered, shuffled
from model_patch.data.pipeline import CACHE_BYTES, SHUFFLE_BYTES
from model_patch.detection.data.images import MAX_BOXES, DetectionSplit, tidy
from model_patch.errors import require_number
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


def batches(
    split: DetectionSplit,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    max_images: int | None = None,
    augmentation: str = "none",
    shuffle_seed: int | None = None,
    epochs: range = range(1),
    cache: bool = True,
):
    """Returns preprocessed batches; every image comes once per epoch, in batches of nearly equal size.

    Args:
        split: where the images come from.
        preprocessing: image size and scaling.
        batch_size: the most images per batch, at least 1; see `model_patch.data.epochs.batch_sizes`.
        max_images: use at most this many images, the first of the split; None for all.
        augmentation: names in `AUGMENTATIONS` joined by `+`; differs in every epoch.
        shuffle_seed: reshuffles in every epoch; None keeps the split's order.
        epochs: numbers of the epochs, whose batches follow one another, as in `model_patch.data.pipeline`.
        cache: whether images are kept in memory in their stored form, where that takes little.

    Returns:
        `tf.data.Dataset` of `(images, boxes)`, float32 `(batch, image_size, image_size, 3)`, and float32 `(batch, MAX_BOXES,
        5)`: boxes and their classes, of which negative ones are padding. Boxes to be ignored are not among them.

    Raises:
        ModelPatchError: an augmentation is unknown.
    """
    import tensorflow as tf

    require_number("batch_size", batch_size, 1, whole=True)
    augment = augmenter(augmentation)
    number = split.take(max_images)

    def prepare(example, seed):
        image, boxes, classes, ignored = example
        image, boxes = augment(split.load(image), boxes, seed)
        boxes, classes, ignored = tidy(boxes, classes, ignored)
        rows = tf.concat([boxes, tf.cast(classes, "float32")[:, None]], axis=-1)
        rows = tf.boolean_mask(rows, ~ignored)[:MAX_BOXES]
        padding = tf.constant([[0.0, 0.0, 0.0, 0.0, -1.0]])
        rows = tf.concat([rows, tf.repeat(padding, MAX_BOXES - tf.shape(rows)[0], axis=0)], axis=0)
        return preprocessing.resize(image), tf.ensure_shape(rows, (MAX_BOXES, 5))

    examples = split.stored(number)
    if cache and split.stored_bytes * number // max(1, split.num_images) <= CACHE_BYTES:
        examples = examples.cache()

    def one_epoch(epoch):
        chosen = examples
        if shuffle_seed is not None:
            at_once = split.num_images * SHUFFLE_BYTES // max(1, split.stored_bytes)
            chosen = shuffled(chosen, max(1, min(number, at_once)), shuffle_seed, epoch)
        return numbered(chosen, shuffle_seed or 0, epoch).map(prepare, tf.data.AUTOTUNE)

    chosen = in_epochs(one_epoch, epochs, number, batch_size)
    return chosen.map(lambda x, y: (preprocessing.scale(x), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
