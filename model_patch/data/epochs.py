"""Epochs whose order and augmentation are functions of a seed and of the epoch's number.

TensorFlow's own `reshuffle_each_iteration` counts how often a data set was gone through in this process. A training that
resumes in another process has to see the batches that would have come, so the number of the epoch is given instead.
"""

from collections.abc import Callable

import numpy as np

from model_patch.data.autograph import without_autograph

FOREVER = range(2**31)
"""Epochs without end."""


def batch_sizes(number: int, batch_size: int) -> np.ndarray:
    """Returns the sizes of the batches of an epoch: as few as possible, and nearly equal.

    A left-over batch of a few images would take as large a step as the others, on the gradient and the batch statistics of
    those few alone; docs/choices.md has what that costs. All sizes but the first are multiples of 8, or of 4 or 2 for small
    batches, where the batch size is one: the devices share them evenly. They do not depend on the number of devices,
    as the steps should not.

    Args:
        number: images of the epoch, at least 1.
        batch_size: the largest size of a batch, at least 1.

    Returns:
        int64 `(ceil(number / batch_size),)`, with the sum `number`. Where there are several, none is below a quarter of
        `batch_size`.
    """
    unit = next(unit for unit in (8, 4, 2, 1) if batch_size % unit == 0 and (batch_size >= 4 * unit or unit == 1))
    steps, units = -(-number // batch_size), -(-number // unit)
    sizes = unit * (units // steps + (np.arange(steps) < units % steps))
    sizes[0] -= unit * units - number
    return sizes


@without_autograph
def in_epochs(one_epoch: Callable, epochs: range, number: int, batch_size: int):
    """Returns the batches of several epochs, one after the other.

    Args:
        one_epoch: from the number of an epoch, an int64 scalar tensor, to the `tf.data.Dataset` of its examples; runs
            inside `tf.data`. A cache must be made outside of it: it would be filled again in every epoch.
        epochs: their numbers.
        number: examples of each.
        batch_size: as for `batch_sizes`, which says how large the batches are.
    """
    import tensorflow as tf

    def traced(epoch):
        # Of the function's own graph: the order shall not depend on the global seed, and with a global seed of 0
        # TensorFlow compares an operation's seed in Python, which a tensor does not allow.
        tf.random.set_seed(1)
        return one_epoch(epoch).batch(batch_size)

    return of_equal_sizes(
        tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(traced), len(epochs), number, batch_size
    )


def of_equal_sizes(batches, num_epochs: int, number: int, batch_size: int):
    """Returns the examples of full batches in those of `batch_sizes`.

    Args:
        batches: `tf.data.Dataset` of batches of `batch_size` examples each, the last ones of an epoch fewer.
        num_epochs: how many epochs there are.
        number: examples of each.
        batch_size: as for `batch_sizes`.
    """
    import tensorflow as tf

    sizes = batch_sizes(number, batch_size)
    if len(sizes) > 1 and sizes.min() < batch_size:  # Else they are those already.
        batches = batches.rebatch(sizes)
    # `tf.data` cannot know how many there are, and Keras warns at the end of data whose length it did not know.
    return batches.apply(tf.data.experimental.assert_cardinality(num_epochs * len(sizes)))


def epoch_seed(seed: int, epoch):
    """Returns the seed of one epoch, an int64 scalar tensor.

    Args:
        seed: any integer of 32 bits.
        epoch: int64 scalar tensor.
    """
    import tensorflow as tf

    pair = tf.stack([tf.constant(seed, "int64"), epoch])
    return tf.random.stateless_uniform((), pair, minval=None, maxval=None, dtype=tf.int64)


def shuffled(images, buffer: int, seed: int, epoch):
    """Returns a `tf.data.Dataset` shuffled as in that epoch; inside `in_epochs` alone."""
    return images.shuffle(buffer, epoch_seed(seed, epoch), reshuffle_each_iteration=False)


def numbered(images, seed: int, epoch):
    """Returns pairs of an element and of a seed of its own in that epoch, an int64 scalar."""
    first = epoch_seed(seed, epoch)
    return images.enumerate().map(lambda i, image: (image, first + i))
