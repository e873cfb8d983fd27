"""The images of one task: what every source of data opens.

TensorFlow is imported when a function runs, here and in the modules beside this one.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from model_patch.errors import ModelPatchError

NUM_NAMED = 10
"""How many bad files an error names."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The training or the test images of a task.

    Their order is fixed and mixes the classes, so the first n of them are a fair sample. They stay in the form in which
    they are stored until they are used: shuffling moves paths or encoded bytes about, not decoded photographs.

    Attributes:
        num_images: how many there are.
        stored: `stored(n)` returns the first n as a `tf.data.Dataset` of `(stored form, int64 label)`.
        load: `load(form, alpha)`: from one stored form, a tensor, to the image, uint8 `(height, width, 3)`; runs inside
            `tf.data`. `alpha` is that of `data.decoding.decode`; images that are stored decoded have none.
        stored_bytes: size of all images in their stored form.
        image_bytes: size of all images once decoded; None where it is not known.
        skips: whether an image that turns out to be unreadable is left out instead of being an error.
        find_bad: decodes the images and returns the paths of those that cannot be read; None where all were decoded.
    """

    num_images: int
    stored: Callable
    load: Callable
    stored_bytes: int
    image_bytes: int | None
    skips: bool = False
    find_bad: Callable[[], list[str]] | None = None

    def loaded(self, stored, then: Callable = lambda image: image, alpha: str = "white"):
        """Returns a `tf.data.Dataset` of `(then(image), label)` of one of `(stored form, label)`, in its order."""
        import tensorflow as tf

        images = stored.map(lambda form, label: (then(self.load(form, alpha)), label), tf.data.AUTOTUNE)
        return images.ignore_errors() if self.skips else images

    def dataset(self, max_images: int | None = None):
        """Returns the images in their order.

        Args:
            max_images: use at most this many, the first ones; None for all.

        Returns:
            `tf.data.Dataset` of `(image, label)`, uint8 `(height, width, 3)` in 0..255 and int64 scalar.
        """
        import tensorflow as tf

        return self.loaded(self.stored(self.take(max_images))).prefetch(tf.data.AUTOTUNE)

    def take(self, max_images: int | None) -> int:
        """Returns the number of images if at most `max_images` are used; None for all."""
        return self.num_images if max_images is None else min(max_images, self.num_images)


@dataclasses.dataclass(frozen=True)
class ImageData:
    """The images of a task.

    Attributes:
        name: what to call the task if the user does not.
        labels: class names; an image's label is an index into them.
        train: the images to learn from.
        test: the images to test on; none of them is in `train`.
        augmentation: the recommended one, see `model_patch.data.augment`.
        notes: sentences that the user should read, for example on files that were left out.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    test: Split
    augmentation: str
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def bad_images_named(*splits: Split) -> Iterator[None]:
    """Within it, TensorFlow's error about an image that cannot be read becomes one that names the image.

    Raises:
        ModelPatchError: an image cannot be read.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError:
        bad = [path for split in splits if split.find_bad for path in split.find_bad()]
        if not bad:
            raise
        raise ModelPatchError(
            f"{len(bad)} images cannot be read: {', '.join(bad[:NUM_NAMED])}{', ...' if len(bad) > NUM_NAMED else ''}; mend or "
            "remove them, or leave them out with --skip_bad_images"
        ) from None


def array_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """Makes a split of images in memory.

    Args:
        images: uint8 `(images, height, width)`, grey, or `(images, height, width, 3)`; 0..255, any order.
        labels: integers `(images,)`.
    """
    # RandomState's stream never changes between versions of NumPy; that of newer generators may.
    order = np.random.RandomState(0).permutation(len(labels))
    images, labels = images[order], labels[order].astype("int64")
    grey = images.ndim == 3

    def stored(number: int):
        import tensorflow as tf

        with tf.device("CPU"):  # An array as large as a data set should not pass through a GPU's memory.
            return tf.data.Dataset.from_tensor_slices((images[:number], labels[:number]))

    def load(image, alpha):
        import tensorflow as tf

        return tf.repeat(image[..., None], 3, axis=-1) if grey else image

    return Split(len(labels), stored, load, images.nbytes, images.nbytes * (3 if grey else 1))
