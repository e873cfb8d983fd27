"""The images of one detection task: what every source of them opens.

The stored examples of its splits are `(stored form, boxes, classes, ignored)`: float32 `(boxes, 4)`, `(ymin, xmin, ymax, xmax)`
as fractions; int32 `(boxes,)`; bool `(boxes,)`, true for boxes that are neither trained on nor, in tests, counted: crowds
(COCO) and difficult objects (VOC).

Images are upright wherever they are used. Boxes that were drawn on the pixels as stored are turned with their image.
Rules for boxes, in every source: boxes are clipped to the image; boxes without area, before or after that, are left
out; images without boxes stay, and teach what background is. Sources that see all their boxes when they are opened say in a
note how many there were, and refuse boxes that lie wholly outside, as these are mostly in other coordinates.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from model_patch.data.decoding import is_turned
from model_patch.data.images import Split

MAX_BOXES = 100
"""Training uses at most this many boxes of an image, the first ones. COCO's have up to 93."""


@dataclasses.dataclass(frozen=True)
class DetectionData:
    """The images of a detection task.

    Attributes:
        name: what to call the task if the user does not.
        labels: class names; a box's class is an index into them.
        train: the images to learn from.
        test: the images to test on; none of them is in `train`.
        augmentation: the recommended one, see `model_patch.detection.data.pipeline`.
        notes: sentences that the user should read.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    test: Split
    augmentation: str
    notes: tuple[str, ...] = ()


def tidy(boxes, classes, ignored):
    """Applies the rules for boxes inside `tf.data`: `(boxes, 4)`, `(boxes,)` and `(boxes,)`, perhaps fewer afterwards."""
    import tensorflow as tf

    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    has_area = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=-1)
    return tuple(tf.boolean_mask(each, has_area) for each in (boxes, classes, ignored))


def turned(boxes, orientation):
    """Turns boxes with their image: from fractions of the pixels as stored to fractions of the upright image.

    Args:
        boxes: float32 `(boxes, 4)`, `(ymin, xmin, ymax, xmax)` in 0..1.
        orientation: the image's EXIF orientation, int32 scalar in 1..8.
    """
    import tensorflow as tf

    transposed, mirrored, upside_down = is_turned(orientation)
    low, high = (tf.where(transposed, each[:, ::-1], each) for each in (boxes[:, :2], boxes[:, 2:]))
    from_other_side = tf.stack([upside_down, mirrored])
    return tf.concat([tf.where(from_other_side, 1.0 - high, low), tf.where(from_other_side, 1.0 - low, high)], axis=-1)


def ragged_split(forms, boxes: list[np.ndarray], classes: list, ignored: list, load: Callable, stored_bytes: int):
    """Makes a split of images whose boxes are all in memory.

    Args:
        forms: the stored forms, an array or a list, one per image.
        boxes, classes, ignored: for each image, arrays `(boxes, 4)`, `(boxes,)` and `(boxes,)`.
        load, stored_bytes: see `Split`.
    """
    ends = np.cumsum([0, *map(len, boxes)])
    flat_boxes = np.concatenate([np.zeros((0, 4), "float32"), *boxes]).astype("float32")
    flat_classes = np.concatenate([np.zeros(0, "int32"), *classes]).astype("int32")
    flat_ignored = np.concatenate([np.zeros(0, bool), *ignored]).astype(bool)

    def stored(number: int):
        import tensorflow as tf

        with tf.device("CPU"):
            held = tf.data.Dataset.from_tensor_slices((forms[:number], ends[:number], ends[1 : number + 1]))
            flat = [tf.constant(each) for each in (flat_boxes, flat_classes, flat_ignored)]
        return held.map(lambda form, start, end: (form, *tidy(*(each[start:end] for each in flat))))

    return Split(len(boxes), stored, load, stored_bytes, None)
