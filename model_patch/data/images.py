"""The images of one task: what every source of data opens.

TensorFlow is imported when a function runs, here and in the modules beside this one.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from model_patch.data.autograph import without_autograph
from model_patch.errors import ModelPatchError, require_number

NUM_NAMED = 10
"""How many bad files an error names."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The training or the test images of a task of any type.

    Their order is fixed and mixes the classes, so the first n of them are a fair sample. They stay in the form in which
    they are stored until they are used: shuffling moves paths or encoded bytes about, not decoded photographs.

    Attributes:
        num_images: how many there are.
        stored: `stored(n)` returns the first n as a `tf.data.Dataset` of `(stored form, label)`; those of a detection task as
            in `model_patch.detection.data.images`.
        load: `load(form, *decoding)`: from one stored form, a tensor, to the image, uint8 `(height, width, 3)`; runs inside
            `tf.data`. `decoding` is that of a `Preprocessing`; without it, images are decoded at their whole size.
        stored_bytes: size of all images in their stored form.
        image_bytes: `image_bytes(least_side)`: size of all images once decoded, see `data.decoding.decode`; None where it is
            not known.
        skips: `skips(path, *decoding)` returns the pixels of one of `paths`, or None where it cannot be read: such an image is
            left out of tests, and in training another of its label takes its place. None where it is an error.
        find_bad: decodes the images and returns the paths of those that cannot be read; None where all were decoded.
        known_labels: where they are known without reading the images: int64 `(num_images,)`, or as `ImageData.type` says.
        paths: files of the images, where they have one each.
    """

    num_images: int
    stored: Callable
    load: Callable
    stored_bytes: int
    image_bytes: Callable[[int], int] | None
    skips: Callable | None = None
    find_bad: Callable[[], list[str]] | None = None
    known_labels: np.ndarray | None = None
    paths: Sequence[str] | None = None

    def load_or_other(self, form, *decoding):
        """Returns what `load` does; where unreadable images are left out, in their place the next one of the same label."""
        if not self.skips:
            return self.load(form, *decoding)
        return self._in_python(form, lambda path: self._pixels_of_label(path, decoding))

    def _pixels_of_label(self, path: str, decoding: tuple) -> np.ndarray:
        """Returns the pixels of an image, or of the next one with its label that can be read; of other types of data than
        classification, of the one with the most similar label.
        """
        assert self.skips and self.paths is not None and self.known_labels is not None
        skips, paths, labels = self.skips, self.paths, self.known_labels
        image = skips(path, *decoding)
        if image is None:
            at = paths.index(path)
            if labels.ndim == 1:
                same = np.flatnonzero(labels == labels[at])
                same = np.roll(same, -1 - np.searchsorted(same, at))
            else:
                same = np.argsort(np.abs(labels - labels[at]).sum(axis=1), kind="stable")
            others = (skips(paths[int(i)], *decoding) for i in same)
            image = next((each for each in others if each is not None), None)
        if image is None:
            raise ValueError(f"no image with the label of {path} can be read")
        return image

    def load_or_empty(self, form, *decoding):
        """Returns what `load` does; where unreadable images are left out, in their place an image without pixels."""
        skips = self.skips
        if not skips:
            return self.load(form, *decoding)

        def pixels(path: str) -> np.ndarray:
            image = skips(path, *decoding)
            return np.zeros((0, 0, 3), "uint8") if image is None else image

        return self._in_python(form, pixels)

    def _in_python(self, form, pixels: Callable[[str], np.ndarray]):
        import tensorflow as tf

        image = tf.numpy_function(lambda path: pixels(os.fsdecode(path)), [form], tf.uint8)
        return tf.ensure_shape(image, (None, None, 3))

    @without_autograph
    def readable(self, stored, then: Callable = lambda image: image, decoding: tuple = ()):
        """Returns a `tf.data.Dataset` of `(then(image), label)` of one of `(stored form, label)`, in its order.

        Images that are left out are missing.
        """
        import tensorflow as tf

        images = stored.map(lambda form, *label: (self.load_or_empty(form, *decoding), *label), tf.data.AUTOTUNE)
        if self.skips:
            images = images.filter(lambda image, *label: tf.size(image) > 0)
        return images.map(lambda image, *label: (then(image), *label), tf.data.AUTOTUNE)

    def dataset(self, max_images: int | None = None):
        """Returns the images in their order.

        Args:
            max_images: use at most this many, the first ones; None for all.

        Returns:
            `tf.data.Dataset` of `(image, label)`, uint8 `(height, width, 3)` in 0..255 and the label, see `ImageData.type`, or in
            its place what a detection task has.
        """
        import tensorflow as tf

        return self.readable(self.stored(self.take(max_images))).prefetch(tf.data.AUTOTUNE)

    def take(self, max_images: int | None) -> int:
        """Returns the number of images if at most `max_images` are used; None for all."""
        return self.num_images if max_images is None else min(max_images, self.num_images)

    def image_labels(self, max_images: int | None = None) -> np.ndarray:
        """Returns the label of each image, see `ImageData.type`; reads the stored images where labels are not known."""
        number = self.take(max_images)
        if self.known_labels is not None:
            return self.known_labels[:number]
        return np.fromiter((label for _, label in self.stored(number).as_numpy_iterator()), "int64")

    def first(self, max_images: int | None) -> "Split":
        """Returns a split of at most this many images, the first ones; None for all."""
        number = self.take(max_images)
        return self if number == self.num_images else self.select(np.arange(number))

    def select(self, positions: np.ndarray) -> "Split":
        """Returns a split of some of the images, in their order.

        Args:
            positions: positions of the images, ascending, each at most once.
        """
        positions = np.asarray(positions, "int64")

        def stored(number: int):
            import tensorflow as tf

            end = int(positions[number - 1]) + 1 if number else 0
            examples = self.stored(end)
            if not number or positions[0] == end - number:  # Those of a range.
                return examples.skip(end - number)
            chosen = np.zeros(end, bool)
            chosen[positions[:number]] = True
            examples = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(chosen))
            return examples.filter(lambda _, is_chosen: is_chosen).map(lambda example, _: example)

        image_bytes = self.image_bytes
        return dataclasses.replace(
            self,
            num_images=len(positions),
            stored=stored,
            stored_bytes=self.stored_bytes * len(positions) // self.num_images,
            image_bytes=image_bytes and (lambda side: image_bytes(side) * len(positions) // self.num_images),
            known_labels=None if self.known_labels is None else self.known_labels[positions],
            paths=None if self.paths is None else [self.paths[i] for i in positions],
        )


@dataclasses.dataclass(frozen=True)
class ImageData:
    """The images of a task.

    Attributes:
        name: what to call the task if the user does not.
        labels: names of the classes, or of what else the numbers of a label are of.
        train: the images to learn from.
        test: the images to test on; none of them is in `train`.
        augmentation: the recommended one, see `model_patch.data.augment`.
        notes: sentences that the user should read, for example on files that were left out.
        validation: images to choose by, the best epoch for example; None if there are none. None of them is in `train` or
            `test`.
        type: the type of task that the labels are for, by its name. Of a `classification` the label of an image is an int64
            scalar, its class; of `multi_label` int64 `(labels,)`, 1 for those that it has; of `regression` float32
            `(labels,)`, a number of each.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    test: Split
    augmentation: str
    notes: tuple[str, ...] = ()
    validation: Split | None = None
    type: str = "classification"

    def with_validation(self, fraction: float, max_train_images: int | None = None) -> "ImageData":
        """Returns the data with a validation split: their own, or else the last training images, which are removed there.

        Args:
            fraction: share of the training images to split off where the data have no validation split of their own, in 0..1,
                at least one image; 0 for none.
            max_train_images: use at most this many training images, the first ones, including those held out; None for all.

        Raises:
            ModelPatchError: the fraction is out of range, or no image would be left to train on.
        """
        require_number("validation_fraction", fraction, 0, 1)
        if not fraction or self.validation:
            return self
        total = self.train.take(max_train_images)
        number = max(1, round(total * fraction))
        if number >= total:
            raise ModelPatchError(
                f"of {total} training images of {self.name!r}, {number} cannot be split off: use a lower --validation_fraction"
            )
        train, validation = np.split(np.arange(total), [total - number])
        return dataclasses.replace(self, train=self.train.select(train), validation=self.train.select(validation))

    def folds(self, number: int, max_train_images: int | None = None) -> list["ImageData"]:
        """Returns the data of each fold of a cross-validation: its part of the training images is the test split.

        Every class of a classification is split evenly. The data's own test images are in no fold.

        Args:
            number: number of folds, at least 2.
            max_train_images: use at most this many training images, the first ones; None for all.

        Raises:
            ModelPatchError: there are fewer images of every class than folds.
        """
        from sklearn.model_selection import KFold, StratifiedKFold

        labels = self.train.image_labels(max_train_images)
        by_class = labels.ndim == 1
        most = np.bincount(labels).max() if by_class else len(labels)
        if not 2 <= number <= most:
            of = f"the images {'of the largest class ' if by_class else ''}of {self.name!r}"
            raise ModelPatchError(f"folds is {number}: expected 2 to {most}, {of}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # A class with fewer images than folds is missing in some.
            parts = list((StratifiedKFold if by_class else KFold)(number).split(labels, labels))
        return [
            dataclasses.replace(self, train=self.train.select(train), test=self.train.select(test))
            for train, test in parts
        ]


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
        labels: `(images,)`, or `(images, labels)`, see `ImageData.type`.
    """
    # RandomState's stream never changes between versions of NumPy; that of newer generators may.
    order = np.random.RandomState(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    labels = labels.astype("float32" if labels.dtype.kind == "f" else "int64")
    grey = images.ndim == 3

    def stored(number: int):
        import tensorflow as tf

        with tf.device("CPU"):  # An array as large as a data set should not pass through a GPU's memory.
            return tf.data.Dataset.from_tensor_slices((images[:number], labels[:number]))

    def load(image, *decoding):
        import tensorflow as tf

        return tf.stack([image] * 3, axis=-1) if grey else image

    image_bytes = images.nbytes * (3 if grey else 1)
    return Split(len(labels), stored, load, images.nbytes, lambda least_side: image_bytes, known_labels=labels)
