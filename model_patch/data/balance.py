"""Classes of unequal size: what is said about them, and how training can count them equally."""

from collections.abc import Sequence

import numpy as np

BALANCES = ("none", "weights", "sampling")
"""`weights`: the loss of an image counts in inverse proportion to the size of its class. `sampling`: images come as often as
makes all classes equally frequent, in an epoch of the same length."""

IMBALANCED = 10
"""A class with this many times another's images is worth a note."""


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the weight of each class, float32 `(num_classes,)`; the mean over all images is 1.

    Args:
        labels: labels of the images, integers `(images,)`.
        num_classes: how many classes there are; the weight of one without images is 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts, weights, 0.0).astype("float32")


def imbalance(labels: np.ndarray, names: Sequence[str]) -> str:
    """Returns a note on classes of very unequal size; empty where the largest has less than `IMBALANCED` times the smallest."""
    counts = np.bincount(labels, minlength=len(names))
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    if counts[largest] < IMBALANCED * counts[smallest]:
        return ""
    return (
        f"the class {names[largest]!r} has {counts[largest]} training images and {names[smallest]!r} only {counts[smallest]}: "
        "accuracy says little about small classes, so look at macro accuracy, and try --balance=weights or --balance=sampling."
    )


def resampled(images, weights: np.ndarray, seed: int, epoch):
    """Repeats and drops images so that their expected numbers are the weights of their classes.

    Args:
        images: `tf.data.Dataset` of `(image, label)`.
        weights: by class, as `class_weights` returns them.
        seed: seed of the epochs.
        epoch: the number of the epoch, an int64 scalar tensor: numbers are rounded up or down at random, a new way in each.
    """
    import tensorflow as tf

    from model_patch.data.epochs import numbered

    weights = tf.constant(weights)

    def repeated(example, own_seed):
        chance = tf.random.stateless_uniform((), tf.stack([own_seed, 0]))
        copies = tf.cast(tf.floor(weights[example[1]] + chance), "int64")
        return tf.data.Dataset.from_tensors(example).repeat(copies)

    return numbered(images, seed, epoch).flat_map(repeated)
