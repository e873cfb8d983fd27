"""From image files to pixels, by the same TensorFlow operations in training, in prediction and inside a SavedModel.

Every image is turned upright as its EXIF orientation says, wherever it is used; boxes follow, see
`model_patch.detection.data`.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model_patch.errors import ModelPatchError
from model_patch.files import read_bytes
from model_patch.preprocessing import background

EXIF_BYTES = 2**17
"""How far into a JPEG file its EXIF block is searched for."""

EXIF_MARK = b"Exif\0\0"
JPEG_MARK = b"\xff\xd8"

REDUCTIONS = (1, 2, 4, 8)
"""Divisors of the sides of a JPEG image that its decoder knows."""

PALETTE_BYTES = 4 * 256
"""Palette size of an 8-bit BMP, in bytes."""

FORMATS = "JPEG, PNG, BMP, GIF or WebP"
"""Names of the formats that `decode` reads."""


def read_file(path, read: Callable[[str], bytes] | None = None):
    """Reads a file inside `tf.data`.

    Args:
        path: scalar string tensor.
        read: returns the contents of a path that TensorFlow itself does not read, such as a URL.

    Returns:
        Scalar string tensor.
    """
    import tensorflow as tf

    if read is None:
        return tf.io.read_file(path)

    def contents(path: bytes) -> np.ndarray:
        return np.array(read(os.fsdecode(path)), dtype=object)

    return tf.ensure_shape(tf.numpy_function(contents, [path], tf.string), ())


def decode(contents, alpha: str = "white", least_side: int = 0):
    """Decodes one encoded image and turns it upright.

    Args:
        contents: scalar string tensor: JPEG, PNG, BMP, GIF (its first frame) or WebP (not animated).
        alpha: what transparent PNG and WebP images are laid on, see `preprocessing.background`. `drop` is for patches whose
            files say nothing of alpha. Transparent pixels of a GIF are black: TensorFlow's decoder does not mark them.
        least_side: JPEG files are decoded at the smallest of 1, 1/2, 1/4 and 1/8 of their size at which both sides have at
            least this many pixels, see `reduction`; 0 for their whole size.

    Returns:
        uint8 tensor `(height, width, 3)` in 0..255.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image, or end too early.
    """
    return _decoder(alpha, least_side)(contents)


@functools.cache
def _decoder(alpha: str, least_side: int):
    """Returns `decode` as a TensorFlow function, which is traced once in a process: every pipeline calls it."""
    import tensorflow as tf

    spec = tf.TensorSpec((), tf.string)
    one = functools.partial(_decode, alpha=alpha, least_side=least_side)
    return tf.function(one, input_signature=[spec], autograph=False)


def reduction(contents, least_side: int):
    """Returns by how much `decode` divides the sides of an image, rounding up: an int32 scalar, one of `REDUCTIONS`.

    The decoder computes fewer pixels of each block of 8 x 8, which is faster than to average them afterwards.
    """
    import tensorflow as tf

    if not least_side:
        return tf.constant(1)
    is_jpeg = tf.equal(tf.strings.substr(contents, 0, 2), JPEG_MARK)
    sides = tf.cond(is_jpeg, lambda: tf.io.extract_jpeg_shape(contents)[:2], lambda: tf.constant([0, 0]))
    least = tf.reduce_min(sides)
    return tf.reduce_max([tf.where(least >= each * least_side, each, 1) for each in REDUCTIONS])


def _decode(contents, alpha: str, least_side: int):
    import tensorflow as tf

    colour = background(alpha)

    def decoded(channels: int):
        image = tf.io.decode_image(contents, channels=channels, expand_animations=False)
        return tf.ensure_shape(image, (None, None, channels))

    def laid_on():
        image = decoded(4)
        if colour is None:
            return image[..., :3]
        opacity = tf.cast(image[..., 3:], tf.float32) / 255.0
        return tf.cast(tf.round(tf.cast(image[..., :3], tf.float32) * opacity + colour * (1.0 - opacity)), tf.uint8)

    def opaque():
        if not least_side:
            return decoded(3)
        divisor = reduction(contents, least_side)

        def reduced(by: int):
            return lambda: tf.ensure_shape(tf.io.decode_jpeg(contents, 3, by), (None, None, 3))

        smaller = REDUCTIONS[1:]
        at = tf.reduce_sum([tf.cast(divisor >= each, tf.int32) for each in smaller])
        return tf.switch_case(at, [lambda: decoded(3), *map(reduced, smaller)])

    # TensorFlow decodes a WebP image with alpha to four channels only, and another one to three only.
    is_transparent = _webp_has_alpha(contents)
    if colour is not None:
        is_transparent |= _png_has_alpha(contents)
    image = tf.cond(is_transparent, laid_on, opaque)
    is_bmp = tf.equal(tf.strings.substr(contents, 0, 2), b"BM")
    image = tf.cond(is_bmp, lambda: _coloured(image, contents), lambda: image)
    image = tf.ensure_shape(image, (None, None, 3))
    turn = orientation(contents)
    return tf.ensure_shape(tf.cond(turn > 1, lambda: _turned(image, turn), lambda: image), (None, None, 3))


def _png_has_alpha(contents):
    """Whether a file is a PNG with an alpha channel, or with transparent colours (chunk `tRNS`); a bool scalar.

    Other PNGs must not be decoded to four channels: TensorFlow's decoder makes some of 16 bits, and of small palettes,
    transparent.
    """
    import tensorflow as tf

    colour_type = _bytes(contents, 25, 1)
    is_png = tf.equal(_bytes(contents, 0, 4), b"\x89PNG")
    has_channel = tf.equal(colour_type, b"\x04") | tf.equal(colour_type, b"\x06")

    def has_colours():
        values = tf.io.decode_raw(contents, tf.uint8)
        marks = [
            [values[i : tf.size(values) - 3 + i] == byte for i, byte in enumerate(name)] for name in (b"tRNS", b"IDAT")
        ]
        colours, pixels = (tf.reshape(tf.where(tf.reduce_all(mark, axis=0)), [-1]) for mark in marks)
        end = tf.concat([pixels, [tf.size(values, tf.int64)]], axis=0)[0]
        return tf.reduce_any(colours < end)  # Within the compressed pixels the four letters say nothing.

    return is_png & (has_channel | tf.cond(is_png & ~has_channel, has_colours, lambda: False))


def _webp_has_alpha(contents):
    """Whether a file is a WebP image with an alpha channel, a bool scalar. Source: RFC 9649, 2.7.1 and 3.4."""
    import tensorflow as tf

    chunk, at = _bytes(contents, 12, 4), tf.constant([20, 24])  # Flags of VP8X; the last byte of VP8L's header.
    flags = tf.cast(tf.io.decode_raw(_bytes(contents, 0, 25), tf.uint8), tf.int32)
    has_flag = tf.equal(tf.gather(flags, at) // 16 % 2, 1)
    is_webp = tf.equal(_bytes(contents, 0, 4), b"RIFF") & tf.equal(_bytes(contents, 8, 4), b"WEBP")
    return is_webp & tf.reduce_any(tf.equal(chunk, [b"VP8X", b"VP8L"]) & has_flag)


def _bytes(contents, start: int, number: int):
    """Returns some of the first bytes of a file, zeros where it is shorter."""
    import tensorflow as tf

    head = tf.strings.join([tf.strings.substr(contents, 0, start + number), bytes(start + number)])
    return tf.strings.substr(head, start, number)


def decode_file(path: str | Path, alpha: str = "white"):
    """Reads one image file and decodes it at its whole size, as `decode` does.

    Raises:
        ModelPatchError: the file is missing, or is not an image that can be read.
    """
    import tensorflow as tf

    try:
        return decode(tf.constant(read_bytes(path)), alpha)
    except FileNotFoundError:
        raise ModelPatchError(f"the image {path} does not exist") from None
    except OSError as error:
        raise ModelPatchError(f"the image {path} cannot be read ({error.strerror})") from None
    except tf.errors.OpError:
        raise ModelPatchError(f"{path} is not a readable image: expected a whole {FORMATS} file") from None


def orientation(contents):
    """Returns the orientation that `decode` follows, int32 scalar in 1..8 (EXIF 2.3, 4.6.4).

    Args:
        contents: scalar string tensor, an encoded image; its first `EXIF_BYTES` are enough. Only JPEG files have an
            orientation; that of other formats, and of a damaged EXIF block, is 1: stored upright.
    """
    import tensorflow as tf

    is_jpeg = tf.equal(tf.strings.substr(contents, 0, 2), JPEG_MARK)
    start = tf.strings.substr(contents, 0, tf.where(is_jpeg, EXIF_BYTES, 0))
    # Padded with zeros, so that an offset beyond the end reads as no entry.
    head = tf.io.decode_raw(tf.strings.join([start, bytes(32)]), tf.uint8)
    mark = [head[i : tf.size(head) - 31 + i] == byte for i, byte in enumerate(EXIF_MARK)]
    found = tf.reshape(tf.where(functools.reduce(tf.logical_and, mark)), [-1])
    return tf.cond(tf.size(found) > 0, lambda: _orientation(head, tf.cast(found[0], tf.int32) + 6), lambda: 1)


def _orientation(head, tiff):
    """Returns the orientation that an EXIF block gives, int32 scalar in 1..8.

    Args:
        head: the first bytes of the file, uint8 `(bytes,)`.
        tiff: where its header begins, int32 scalar.
    """
    import tensorflow as tf

    last = tf.size(head) - 1

    def number(at, size: int, little):
        at = tf.convert_to_tensor(at)
        read = [tf.cast(tf.gather(head, tf.clip_by_value(at + i, 0, last)), tf.int32) for i in range(size)]
        forward = sum(byte * 256**i for i, byte in enumerate(read))
        backward = sum(byte * 256**i for i, byte in enumerate(reversed(read)))
        return tf.where(little, forward, backward)

    little = number(tiff, 1, True) == ord("I")
    directory = tiff + tf.clip_by_value(number(tiff + 4, 4, little), 0, EXIF_BYTES)
    entries = directory + 2 + 12 * tf.range(number(directory, 2, little))
    values = tf.boolean_mask(number(entries + 8, 2, little), number(entries, 2, little) == 0x0112)
    given = tf.concat([values, [1]], axis=0)[0]
    return tf.where((given >= 1) & (given <= 8), given, 1)


def is_turned(orientation):
    """Returns which changes an orientation needs, in this order: transpose, mirror left to right, mirror top to bottom.

    Args:
        orientation: int32 scalar tensor in 1..8.

    Returns:
        Three boolean scalar tensors.
    """
    import tensorflow as tf

    among = [tf.reduce_any(tf.equal(orientation, each)) for each in ((2, 3, 6, 7), (3, 4, 7, 8))]
    return orientation >= 5, *among


def _turned(image, orientation):
    import tensorflow as tf

    transposed, mirrored, upside_down = is_turned(orientation)
    image = tf.cond(transposed, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.ensure_shape(image, (None, None, 3))
    image = tf.cond(mirrored, lambda: image[:, ::-1], lambda: image)
    return tf.cond(upside_down, lambda: image[::-1], lambda: image)


def _coloured(image, contents):
    """Returns a BMP image in its palette's colours, which TensorFlow does not look up; unchanged if it has no palette.

    Source: Microsoft's BITMAPFILEHEADER and BITMAPINFOHEADER.
    """
    import tensorflow as tf

    padded = tf.strings.join([contents, bytes(PALETTE_BYTES)])  # A palette may hold fewer than 256 colours.
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(padded, 0, 54), tf.uint8), tf.int32)

    def number(at: int, size: int):
        return sum(head[at + i] * 256**i for i in range(size))

    header_bytes, bits, compression = number(14, 4), number(28, 2), number(30, 4)
    # Bit masks (3) are assumed to be the usual ones. Older headers have their fields elsewhere.
    known = (header_bytes >= 40) & ((compression == 0) | ((compression == 3) & (bits == 32)))
    tf.debugging.Assert(known, ["BMP files that are compressed, or of OS/2, are not read"])

    def looked_up():
        palette = tf.io.decode_raw(tf.strings.substr(padded, 14 + header_bytes, PALETTE_BYTES), tf.uint8)
        palette = tf.reshape(palette, (256, 4))[:, 2::-1]  # Stored as blue, green, red and a spare byte.
        return tf.gather(palette, tf.cast(image[..., 0], tf.int32))

    return tf.cond(bits == 8, looked_up, lambda: image)
