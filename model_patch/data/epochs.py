"""Epochs whose order and augmentation are functions of a seed and of the epoch's number.

TensorFlow's own `reshuffle_each_iteration` counts how often a data set was gone through in this process. A training that
goes on in another process has to see the batches that would have come, so the number of the epoch is given instead.
"""

from collections.abc import Callable

import numpy as np

FOREVER = range(2**31)
"""Epochs without end."""


def batch_sizes(number: int, batch_size: int, multiple: int = 1) -> np.ndarray:
    """Returns the sizes of the batches of an epoch: as few as possible, and as equal as possible.

    A left-over batch of a few images would take as large a step as the others, on the gradient and the batch statistics of
    those few alone; docs/choices.md has what that costs.

    Args:
        number: images of the epoch, at least 1.
        batch_size: the largest size of a batch, at least 1.
        multiple: devices that share a batch. All sizes but the first are multiples of it, where the batch size is one and
            has at least four images for each device.

    Returns:
        int64 `(ceil(number / batch_size),)`, with the sum `number`. Where there are several, none is below a quarter of
        `batch_size`, and without `multiple` none below half of it.
    """
    unit = multiple if batch_size % multiple == 0 and batch_size >= 4 * multiple else 1
    steps, units = -(-number // batch_size), -(-number // unit)
    sizes = unit * (units // steps + (np.arange(steps) < units % steps))
    sizes[0] -= unit * units - number
    return sizes


def in_epochs(one_epoch: Callable, epochs: range, number: int, batch_size: int, multiple: int = 1):
    """Returns the batches of several epochs, one after the other.

    Args:
        one_epoch: from the number of an epoch, an int64 scalar tensor, to the `tf.data.Dataset` of its examples; runs
            inside `tf.data`. A cache must be made outside of it: it would be filled again in every epoch.
        epochs: their numbers.
        number: examples of each.
        batch_size, multiple: as for `batch_sizes`, which says how large the batches are.
    """
    import tensorflow as tf

    def traced(epoch):
        # Of the function's own graph: the order shall not depend on the global seed, and with a global seed of 0
        # TensorFlow compares an operation's seed in Python, which a tensor does not allow.
        tf.random.set_seed(1)
        return one_epoch(epoch).batch(batch_size)

    sizes = batch_sizes(number, batch_size, multiple)
    batches = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(traced).rebatch(sizes)
    # `tf.data` cannot know how many there are, and Keras warns at the end of data whose length it did not know.
    return batches.apply(tf.data.experimental.assert_cardinality(len(epochs) * len(sizes)))


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
