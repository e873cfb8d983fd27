"""Image files as a stream: read, decoded and resized by threads, a few batches ahead of the model."""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from model_patch.data.decoding import decode, reduction
from model_patch.errors import ModelPatchError
from model_patch.files import is_remote, read_bytes
from model_patch.preprocessing import Preprocessing

BATCH = 64
"""Images that a model gets at once."""

SIZES_OF = 8
"""Batches have multiples of this many images."""

NUM_NAMED = 10
"""How many bad images an error names."""


class BadImagesError(ModelPatchError):
    """Some images could not be read; all others were predicted.

    Attributes:
        paths: the images, in their order.
    """

    exit_status = 1  # The work was done; 2 would say that none was.

    def __init__(self, paths: Sequence[str], total: int):
        self.paths = tuple(paths)
        named = ", ".join(self.paths[:NUM_NAMED]) + (", ..." if len(self.paths) > NUM_NAMED else "")
        super().__init__(f"{len(self.paths)} of {total} images cannot be read: {named}; the others were predicted")


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """An image that was decoded.

    Attributes:
        shape: height and width in pixels, upright; of an image that is decoded at a fraction of its size a few pixels more.
        resized: for each preprocessing its float32 pixels `(image_size, image_size, 3)` in 0..255.
    """

    shape: tuple[int, int]
    resized: dict[Preprocessing, np.ndarray]


def read_images(
    paths: Iterable[str], preprocessings: Sequence[Preprocessing]
) -> Iterator[tuple[list[str], list[DecodedImage]]]:
    """Yields the paths and images of files in their order, up to `BATCH` at a time; memory does not grow with their number.

    Args:
        paths: paths of the files, read one by one.
        preprocessings: how each image is resized.

    Raises:
        BadImagesError: images that are missing or cannot be read; after all others were yielded.
    """
    read = _reader(list(dict.fromkeys(preprocessings)))
    bad, total = [], 0
    for chunk, images in _ahead(read, _batched(iter(paths))):
        total += len(chunk)
        bad += [path for path, image in zip(chunk, images, strict=True) if image is None]
        if good := [(path, image) for path, image in zip(chunk, images, strict=True) if image is not None]:
            yield [path for path, _ in good], [image for _, image in good]
    if bad:
        raise BadImagesError(bad, total)


class Filler:
    """Makes batches of resized images, filled up with black ones to the largest size so far, so that few shapes are traced."""

    def __init__(self, preprocessing: Preprocessing):
        self._preprocessing, self._size = preprocessing, 0

    def __call__(self, images: Sequence[DecodedImage]) -> np.ndarray:
        """Returns float32 `(batch, image_size, image_size, 3)` in 0..255, the given images first."""
        self._size = max(self._size, -(-len(images) // SIZES_OF) * SIZES_OF)
        side = self._preprocessing.image_size
        batch = np.zeros((self._size, side, side, 3), "float32")
        for i, image in enumerate(images):
            batch[i] = image.resized[self._preprocessing]
        return batch


@functools.cache
def decoder(*preprocessings: Preprocessing) -> Callable[[Sequence[bytes]], list[DecodedImage | None]]:
    """Returns a function from encoded images to decoded and resized ones, None for those that cannot be read.

    Threads may call it at once. It is traced once in a process.
    """
    import tensorflow as tf

    def one(contents):
        images = {each: decode(contents, *each) for each in dict.fromkeys(p.decoding for p in preprocessings)}
        (_, least_side), image = next(iter(images.items()))
        shape = tf.shape(image)[:2] * reduction(contents, least_side)
        return shape, [each.resize(images[each.decoding]) for each in preprocessings]

    sizes = [tf.TensorSpec((each.image_size, each.image_size, None)) for each in preprocessings]

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def all_of(contents):
        return tf.map_fn(one, contents, fn_output_signature=(tf.TensorSpec((2,), tf.int32), sizes))

    def decoded(contents: Sequence[bytes]) -> list[DecodedImage | None]:
        if not contents:
            return []
        try:
            with tf.device("CPU"):
                shapes, resized = all_of(tf.constant(contents, tf.string))
        except tf.errors.OpError:
            # One that cannot be decoded ends the whole call: halves find it.
            half = len(contents) // 2
            return [*decoded(contents[:half]), *decoded(contents[half:])] if half else [None]
        arrays = [each.numpy() for each in resized]
        return [
            DecodedImage(
                (int(height), int(width)), {p: array[i] for p, array in zip(preprocessings, arrays, strict=True)}
            )
            for i, (height, width) in enumerate(shapes.numpy())
        ]

    return decoded


def _reader(preprocessings: Sequence[Preprocessing]):
    """Returns a function from paths to images, None for those that cannot be read; threads may call it at once."""
    decoded = decoder(*preprocessings)

    def read(paths: Sequence[str]) -> list[DecodedImage | None]:
        found = {i: contents for i, path in enumerate(paths) if (contents := _contents(path)) is not None}
        images = dict(zip(found, decoded(list(found.values())), strict=True))
        return [images.get(i) for i in range(len(paths))]

    return read


def _contents(path: str) -> bytes | None:
    try:
        return read_bytes(path)
    except OSError as error:
        if is_remote(path) and not isinstance(error, FileNotFoundError):
            raise ModelPatchError(f"{path} cannot be read now ({error}): try again") from error
        return None


def _ahead(read, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[DecodedImage | None]]]:
    """Yields chunks of paths with their images, read by threads, at most one chunk per thread ahead."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque = collections.deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(read, chunk)))
            if len(waiting) > workers:
                done, images = waiting.popleft()
                yield done, images.result()
        while waiting:
            done, images = waiting.popleft()
            yield done, images.result()


def _batched(paths: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(paths, BATCH)):
        yield chunk
