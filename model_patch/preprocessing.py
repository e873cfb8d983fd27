"""From images to what a trunk takes: resizing and scaling, the same in training, in prediction and inside a SavedModel.

TensorFlow is imported when a function runs, so that the core of the package also works where it is not installed.
"""

import dataclasses
import math
import re

import numpy as np

from model_patch.errors import ModelPatchError, require_number, unknown

MODES = {
    "tf": "to [-1, 1] (MobileNet, Inception, Xception, NASNet)",
    "torch": "to [0, 1], then by ImageNet's mean and standard deviation (DenseNet)",
    "caffe": "to BGR less ImageNet's mean, in 0..255 (ResNet V1, VGG)",
    "unit": "to [0, 1] (TensorFlow Hub modules)",
    "none": "left in 0..255 (EfficientNet, MobileNetV3, ConvNeXt: the net scales by itself)",
}
"""How pixel values are scaled. The first three names are those of `keras.applications`, and so are the numbers."""

RESIZE = {
    "squash": "without keeping the aspect ratio",
    "crop": "the central square",
    "pad": "the whole image, centred, with the colour of `alpha` around it; white where that is `drop`",
}
"""How an image that is not square is brought to a square."""

WHITE = (255, 255, 255)

REDUCED_MARGIN = 1.5
"""Images that are decoded at a fraction of their size keep this much more than what they are resized to, so that random
crops of them seldom enlarge and resizing still averages."""

CAFFE_MEAN = np.array([103.939, 116.779, 123.68], "float32")
"""ImageNet's mean, blue, green, red, in 0..255."""

TORCH_MEAN = np.array([0.485, 0.456, 0.406], "float32")
TORCH_DEVIATION = np.array([0.229, 0.224, 0.225], "float32")
"""ImageNet's mean and standard deviation, red, green, blue, in 0..1."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizes and scales images for one trunk.

    Attributes:
        image_size: height and width in pixels that the images are brought to.
        mode: how values are scaled, one of `MODES`.
        alpha: what transparent image files are laid on, see `background`.
        resizing: how the aspect ratio is treated, one of `RESIZE`.
        reduces: whether large JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, where both sides keep at least
            `REDUCED_MARGIN` times the image size. It changes the resized pixels a little, see docs/data.md.

    Raises:
        ModelPatchError: mode, alpha or resizing is unknown, or the size is not a whole number above 0.
    """

    image_size: int
    mode: str
    alpha: str = "white"
    resizing: str = "squash"
    reduces: bool = True

    @classmethod
    def from_json(cls, fields: dict) -> "Preprocessing":
        """Returns what a patch file holds; one that says nothing of alpha, or of reduced decoding, was trained without it."""
        return cls(**{"alpha": "drop", "reduces": False, **fields})

    @property
    def decoding(self) -> tuple[str, int]:
        """How image files are decoded for it: `alpha` and `least_side` of `data.decoding.decode`."""
        return self.alpha, math.ceil(REDUCED_MARGIN * self.image_size) if self.reduces else 0

    def __post_init__(self):
        background(self.alpha)
        if self.resizing not in RESIZE:
            raise unknown("resize", self.resizing, RESIZE)
        require_number("image_size", self.image_size, 1, whole=True)
        if self.mode not in MODES:
            raise unknown("preprocessing", self.mode, MODES)

    def resize(self, images):
        """Resizes bilinearly as `resizing` says, averaging where it shrinks, so that large photographs do not alias.

        Args:
            images: `(height, width, 3)` or `(batch, height, width, 3)`, any number type, in 0..255.

        Returns:
            float32 tensor `(..., image_size, image_size, 3)` in 0..255.
        """
        import tensorflow as tf

        images, size = tf.convert_to_tensor(images), self.image_size
        sides = tf.shape(images)[-3:-1]
        if self.resizing == "pad":
            longest = tf.reduce_max(sides)
            kept = tf.maximum(1, (2 * size * sides + longest) // (2 * longest))
            before = (size - kept) // 2
            around = tf.pad(tf.stack([before, size - kept - before], axis=1), [[tf.rank(images) - 3, 1], [0, 0]])
            colour = tf.constant(background(self.alpha) or WHITE, tf.float32)
            padded = tf.pad(tf.image.resize(images, kept, antialias=True) - colour, around) + colour
            return tf.ensure_shape(padded, (*images.shape[:-3], size, size, 3))
        if self.resizing == "crop":
            side = tf.reduce_min(sides)
            top, left = tf.unstack((sides - side) // 2)
            images = images[..., top : top + side, left : left + side, :]
        return tf.image.resize(images, (size, size), antialias=True)

    def scale(self, images):
        """Scales float32 pixel values `(..., 3)` from 0..255 to what the trunk takes. Shapes stay."""
        if self.mode == "none":
            return images
        if self.mode == "caffe":
            return images[..., ::-1] - CAFFE_MEAN
        unit = images / 255.0
        if self.mode == "tf":
            return unit * 2.0 - 1.0
        return (unit - TORCH_MEAN) / TORCH_DEVIATION if self.mode == "torch" else unit

    def __call__(self, images):
        """Applies `resize`, then `scale`."""
        return self.scale(self.resize(images))


def background(alpha: str) -> tuple[int, int, int] | None:
    """Returns the colour that transparent images are laid on.

    Args:
        alpha: `white`; `#RRGGBB`; or `drop` to show the colours that were transparent.

    Returns:
        Red, green and blue in 0..255; None for `drop`.

    Raises:
        ModelPatchError: it is none of these.
    """
    if alpha == "drop":
        return None
    if alpha == "white":
        return WHITE
    if not re.fullmatch("#[0-9a-fA-F]{6}", alpha):
        raise ModelPatchError(f"unknown alpha {alpha!r}: expected white, drop, or a colour such as #808080")
    red, green, blue = bytes.fromhex(alpha[1:])
    return red, green, blue
