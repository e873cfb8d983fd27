"""From images to what a trunk takes: resizing and scaling, the same in training, in prediction and inside a SavedModel.

TensorFlow is imported when a function runs, so that the core of the package also works where it is not installed.
"""

import dataclasses

import numpy as np

from model_patch.errors import require_number, unknown

MODES = {
    "tf": "to [-1, 1] (MobileNet, Inception, Xception, NASNet)",
    "torch": "to [0, 1], then by ImageNet's mean and standard deviation (DenseNet)",
    "caffe": "to BGR less ImageNet's mean, in 0..255 (ResNet V1, VGG)",
    "unit": "to [0, 1] (TensorFlow Hub modules)",
    "none": "left in 0..255 (EfficientNet, MobileNetV3, ConvNeXt: the net scales by itself)",
}
"""How pixel values are scaled. The first three names are those of `keras.applications`, and so are the numbers."""

ALPHA = ("white", "drop")
"""Transparent images are laid on white, or shown in the colours that were transparent."""

CAFFE_MEAN = np.array([103.939, 116.779, 123.68], "float32")
"""ImageNet's mean, blue, green, red, in 0..255."""

TORCH_MEAN = np.array([0.485, 0.456, 0.406], "float32")
TORCH_DEVIATION = np.array([0.229, 0.224, 0.225], "float32")
"""ImageNet's mean and standard deviation, red, green, blue, in 0..1."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizes and scales images for one trunk.

    Attributes:
        image_size: height and width in pixels that the images are brought to, without keeping the aspect ratio.
        mode: how values are scaled, one of `MODES`.
        alpha: what becomes of an image file's transparency, one of `ALPHA`, see `data.decoding.decode`.

    Raises:
        ModelPatchError: the mode or alpha is unknown, or the size is not a whole number above 0.
    """

    image_size: int
    mode: str
    alpha: str = "white"

    @classmethod
    def from_json(cls, fields: dict) -> "Preprocessing":
        """Returns what a patch file holds; one that says nothing of alpha was trained without it."""
        return cls(**{"alpha": "drop", **fields})

    def __post_init__(self):
        if self.alpha not in ALPHA:
            raise unknown("alpha", self.alpha, ALPHA)
        require_number("image_size", self.image_size, 1, whole=True)
        if self.mode not in MODES:
            raise unknown("preprocessing", self.mode, MODES)

    def resize(self, images):
        """Resizes bilinearly, averaging where it shrinks, so that large photographs do not alias.

        Args:
            images: `(height, width, 3)` or `(batch, height, width, 3)`, any number type, in 0..255.

        Returns:
            float32 tensor `(..., image_size, image_size, 3)` in 0..255.
        """
        import tensorflow as tf

        return tf.image.resize(images, (self.image_size, self.image_size), antialias=True)

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
