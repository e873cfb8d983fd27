"""From image files to what a trunk takes, the same operations in training, in prediction and inside a SavedModel.

TensorFlow is imported when a function runs, so that the core of the package also works where it is not installed.
"""

import dataclasses

import numpy as np

from model_patch.errors import ModelPatchError, unknown

MODES = {
    "tf": "to [-1, 1] (MobileNet, Inception, Xception, NASNet)",
    "torch": "to [0, 1], then by ImageNet's mean and standard deviation (DenseNet)",
    "caffe": "to BGR less ImageNet's mean, in 0..255 (ResNet V1, VGG)",
    "unit": "to [0, 1] (TensorFlow Hub modules)",
    "none": "left in 0..255 (EfficientNet, MobileNetV3, ConvNeXt: the net scales by itself)",
}
"""How pixel values are scaled. The first three names are those of `keras.applications`, and so are the numbers."""

CAFFE_MEAN = np.array([103.939, 116.779, 123.68], "float32")
"""ImageNet's mean, blue, green, red, in 0..255."""

TORCH_MEAN = np.array([0.485, 0.456, 0.406], "float32")
TORCH_DEVIATION = np.array([0.229, 0.224, 0.225], "float32")
"""ImageNet's mean and standard deviation, red, green, blue, in 0..1."""


EXIF_BYTES = 2**17
"""How far into a JPEG file the note on its orientation is looked for."""

PALETTE_BYTES = 4 * 256
"""Of a BMP file of 8 bits."""

FORMATS = "JPEG, PNG, BMP, GIF or WebP"
"""What `decode` reads, in words."""


def decode(contents, upright: bool = True):
    """Decodes one encoded image.

    Args:
        contents: scalar string tensor: JPEG, PNG, BMP, GIF (its first frame) or WebP (not animated).
        upright: turn a JPEG as its EXIF orientation says. Not where boxes are given in the pixels as they are stored.

    Returns:
        uint8 tensor `(height, width, 3)` in 0..255.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image, or end too early.
    """
    import tensorflow as tf

    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, (None, None, 3))
    is_bmp = tf.equal(tf.strings.substr(contents, 0, 2), b"BM")
    image = tf.cond(is_bmp, lambda: _coloured(image, contents), lambda: image)
    image = tf.ensure_shape(image, (None, None, 3))
    if not upright:
        return image
    orientation = _orientation(contents)
    return tf.ensure_shape(tf.cond(orientation > 1, lambda: _turn(image, orientation), lambda: image), (None, None, 3))


def _coloured(image, contents):
    """Returns a BMP image in its palette's colours, which TensorFlow does not look up; one without a palette as it is.

    Source: Microsoft's BITMAPFILEHEADER and BITMAPINFOHEADER.
    """
    import tensorflow as tf

    padded = tf.strings.join([contents, bytes(PALETTE_BYTES)])  # A palette may have fewer colours than there could be.
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(padded, 0, 54), tf.uint8), tf.int32)

    def number(at: int, size: int):
        return sum(head[at + i] * 256**i for i in range(size))

    header_bytes, bits, compression = number(14, 4), number(28, 2), number(30, 4)
    # Masks (3) are taken for the usual ones. Older headers have their fields at other places.
    known = (header_bytes >= 40) & ((compression == 0) | ((compression == 3) & (bits == 32)))
    tf.debugging.Assert(known, ["BMP files that are compressed, or of OS/2, are not read"])

    def looked_up():
        palette = tf.io.decode_raw(tf.strings.substr(padded, 14 + header_bytes, PALETTE_BYTES), tf.uint8)
        palette = tf.reshape(palette, (256, 4))[:, 2::-1]  # Stored as blue, green, red and a spare byte.
        return tf.gather(palette, tf.cast(image[..., 0], tf.int32))

    return tf.cond(bits == 8, looked_up, lambda: image)


def _orientation(contents):
    """Returns the EXIF orientation of a JPEG file, int32 scalar in 1..8; 1, upright, where there is none (EXIF 2.3, 4.6.4)."""
    import tensorflow as tf

    is_jpeg = tf.equal(tf.strings.substr(contents, 0, 2), b"\xff\xd8")
    start = tf.strings.substr(contents, 0, tf.where(is_jpeg, EXIF_BYTES, 0))
    # Zeros behind the end: a note that is cut off or points anywhere reads as none.
    head = tf.cast(tf.io.decode_raw(tf.strings.join([start, bytes(32)]), tf.uint8), tf.int32)
    last = tf.size(head) - 1

    def number(at, size: int, little):
        at = tf.convert_to_tensor(at)
        read = [tf.gather(head, tf.clip_by_value(at + i, 0, last)) for i in range(size)]
        forward = sum(byte * 256**i for i, byte in enumerate(read))
        backward = sum(byte * 256**i for i, byte in enumerate(reversed(read)))
        return tf.where(little, forward, backward)

    mark = [head[i : last - 31 + i] == byte for i, byte in enumerate(b"Exif\0\0")]
    found = tf.reshape(tf.where(tf.reduce_all(mark, axis=0)), [-1])
    tiff = tf.cast(tf.reduce_min(tf.concat([found, [2**20]], axis=0)), tf.int32) + 6
    little = number(tiff, 1, True) == ord("I")
    directory = tiff + tf.clip_by_value(number(tiff + 4, 4, little), 0, EXIF_BYTES)
    entries = directory + 2 + 12 * tf.range(number(directory, 2, little))
    values = tf.boolean_mask(number(entries + 8, 2, little), number(entries, 2, little) == 0x0112)
    orientation = tf.concat([values, [1]], axis=0)[0]
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)


def _turn(image, orientation):
    """Returns an image as it is meant to be seen: transposed from 5 on, then mirrored."""
    import tensorflow as tf

    def flipped_if(orientations, image, axis: int):
        chosen = tf.reduce_any(tf.equal(orientation, orientations))
        return tf.cond(chosen, lambda: tf.reverse(image, [axis]), lambda: image)

    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.ensure_shape(image, (None, None, 3))
    return flipped_if((3, 4, 7, 8), flipped_if((2, 3, 6, 7), image, 1), 0)


def decode_file(path: str):
    """Reads one image file, as `decode` does.

    Raises:
        ModelPatchError: the file is missing, or is not an image that can be read.
    """
    import tensorflow as tf

    try:
        return decode(tf.io.read_file(path))
    except tf.errors.NotFoundError:
        raise ModelPatchError(f"the image {path} does not exist") from None
    except tf.errors.OpError:
        raise ModelPatchError(f"{path} is not a readable image: expected a whole {FORMATS} file") from None


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizes and scales images for one trunk.

    Attributes:
        image_size: height and width in pixels that the images are brought to, without keeping the aspect ratio.
        mode: how values are scaled, one of `MODES`.

    Raises:
        ModelPatchError: the mode is unknown.
    """

    image_size: int
    mode: str

    def __post_init__(self):
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
