"""Scenes: real images of a classification data set, placed at random places and sizes on larger canvases, with their boxes.

A detection data set that is on any computer, as the images are: `scenes:mnist`, `scenes:digits`, or `scenes:idx:FOLDER` with
Fashion-MNIST. Which image is where and how large depends on the seed and on nothing else.
"""

import numpy as np
from PIL import Image

from model_patch.data import open_data
from model_patch.data.images import Split
from model_patch.detection.data.images import DetectionData, ragged_split
from model_patch.errors import ModelPatchError
from model_patch.spec import Spec

SIDES = (0.2, 0.5)
"""Smallest and largest side of a placed image, as a fraction of the canvas; evenly distributed."""

MAX_OVERLAP = 0.1
TRIES = 20
"""An image covers at most this share of another's box; if no place is found in this many tries, it is skipped."""

BATCH = 1000
"""Images that are read at once."""

SOURCES = ("digits", "mnist", "idx")
"""Data whose images are grey, on black and of one size."""

NOISE = 40
"""The canvas holds even noise from 0 to a level of at most this, in 0..255."""

INK = 24
"""Pixels of a placed image are part of it from this value on; its box is the smallest that holds them."""


def open_scenes(spec: Spec) -> DetectionData:
    """Opens `scenes:DATA[?size=96&train=8000&test=1000&objects=4&seed=0]`.

    DATA is the spec of grey images on black in `model_patch.data`, such as `mnist`; its training images are on the `train`
    canvases to train on, its test images on the others. A canvas has `size` pixels along each side and from 0 to `objects`
    images, all numbers equally likely; the same image may be on several.

    Raises:
        ModelPatchError: an option is not a whole number in its range, or DATA cannot be opened.
    """
    options = {
        name: _whole(spec, name, text, least)
        for (name, text), least in zip(
            spec.take(size="96", train="8000", test="1000", objects="4", seed="0").items(),
            (16, 1, 1, 1, 0),
            strict=True,
        )
    }
    if spec.rest.partition(":")[0] not in SOURCES:
        raise ModelPatchError(
            f"{spec.text!r} does not name images to place: expected scenes:DATA, where DATA is digits, mnist or idx:FOLDER"
        )
    data = open_data(spec.rest)
    # RandomState's stream never changes between versions of NumPy; that of newer generators may.
    seed = options["seed"]
    train, test = (
        _split(split, options["size"], options[name], options["objects"], np.random.RandomState([seed, i]))
        for i, (name, split) in enumerate((("train", data.train), ("test", data.test)))
    )
    return DetectionData(f"{data.name}-scenes", data.labels, train, test, "none")


def _whole(spec: Spec, name: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ModelPatchError(f"{name}={text} in {spec.text!r} is not a whole number of at least {least}")
    return int(text)


def _split(source: Split, size: int, number: int, objects: int, random: np.random.RandomState) -> Split:
    images, labels = (np.concatenate(part) for part in zip(*source.dataset().batch(BATCH), strict=True))
    grey = images[..., 0]
    scenes = [_scene(grey, labels, size, random.randint(objects + 1), random) for _ in range(number)]
    canvases, boxes, classes = zip(*scenes, strict=True)

    def load(canvas, *decoding):
        import tensorflow as tf

        return tf.stack([canvas] * 3, axis=-1)

    stored = np.stack(canvases)
    ignored = [np.zeros(len(each), bool) for each in boxes]
    return ragged_split(stored, list(boxes), list(classes), ignored, load, stored.nbytes)


def _scene(images, labels, size: int, objects: int, random: np.random.RandomState):
    """Returns a canvas uint8 `(size, size)`, and the boxes `(objects, 4)` and classes `(objects,)` of what is on it."""
    canvas = random.randint(0, random.randint(NOISE) + 1, (size, size), "uint8")
    boxes = np.zeros((0, 4), "float32")
    classes: list[int] = []
    for _ in range(objects):
        index = random.randint(len(images))
        side = max(1, round(size * random.uniform(*SIDES)))
        image = np.asarray(Image.fromarray(images[index]).resize((side, side), Image.Resampling.BILINEAR))
        rows, columns = (np.flatnonzero((image >= INK).any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            continue
        for _ in range(TRIES):
            top, left = random.randint(0, size - side + 1, 2)
            box = np.array([[top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1]], "float32")
            box /= size
            if _overlap(box[0], boxes).max(initial=0.0) <= MAX_OVERLAP:
                place = canvas[top : top + side, left : left + side]
                np.maximum(place, image, out=place)
                boxes, classes = np.concatenate([boxes, box]), [*classes, int(labels[index])]
                break
    return canvas, boxes, np.array(classes, "int32")


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns what part of each of `boxes` a box covers, `(boxes,)`."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return sides.clip(0.0).prod(axis=-1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
