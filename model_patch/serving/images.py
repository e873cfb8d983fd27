"""Images of requests: refused by their headers, decoded and resized."""

import collections
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from model_patch.data.decoding import FORMATS
from model_patch.data.stream import decoder
from model_patch.errors import ModelPatchError
from model_patch.preprocessing import Preprocessing


class BadImageError(ModelPatchError):
    """An image of a request cannot be read."""


class LargeImageError(BadImageError):
    """An image of a request has too many pixels."""


def resized(
    images: Sequence[tuple[Preprocessing, bytes | np.ndarray]], max_pixels: int
) -> list[np.ndarray | BadImageError]:
    """Decodes and resizes images.

    Args:
        images: each with the preprocessing of its task; encoded, or float32 `(height, width, 3)` in 0..255.
        max_pixels: encoded images with more are refused before they are decoded.

    Returns:
        float32 `(image_size, image_size, 3)` in 0..255; in place of bad images, the error.
    """
    found: list = [_refused(image, max_pixels) for _, image in images]
    files: dict[Preprocessing, list[int]] = collections.defaultdict(list)
    for at, (prepare, image) in enumerate(images):
        if found[at]:
            continue
        if isinstance(image, bytes):
            files[prepare].append(at)
        else:
            found[at] = _resizer(prepare)(image).numpy()
    for prepare, positions in files.items():
        compressed: Any = [images[at][1] for at in positions]
        for at, decoded in zip(positions, decoder(prepare)(compressed), strict=True):
            found[at] = decoded.resized[prepare] if decoded else _unreadable()
    return found


def warm(prepare: Preprocessing):
    """Decodes one image, so that no request waits for tracing."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    decoder(prepare)([file.getvalue()])


def _refused(image: bytes | np.ndarray, max_pixels: int) -> BadImageError | None:
    """Returns why an image is refused by what its header says; None if it is not. Nothing is decoded."""
    if not isinstance(image, bytes):
        return None
    try:
        with Image.open(io.BytesIO(image)) as file:
            pixels = file.width * file.height
    except Image.DecompressionBombError:
        return LargeImageError(f"the image has more than {max_pixels} pixels: send a smaller one")
    except Exception:  # A hostile header may raise anything.
        return _unreadable()
    if pixels > max_pixels:
        return LargeImageError(f"the image has {pixels} pixels: send one of at most {max_pixels}")
    return None


def _unreadable() -> BadImageError:
    return BadImageError(f"the image cannot be read: expected a whole {FORMATS} file")


@functools.cache
def _resizer(prepare: Preprocessing):
    import tensorflow as tf

    return tf.function(prepare.resize, input_signature=[tf.TensorSpec((None, None, 3), tf.float32)], autograph=False)
