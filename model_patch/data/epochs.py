"""Epochs whose order and augmentation are functions of a seed and of the epoch's number.

TensorFlow's own `reshuffle_each_iteration` counts how often a data set was gone through in this process. A training that
goes on in another process has to see the batches that would have come, so the number of the epoch is given instead.
"""

from collections.abc import Callable

FOREVER = range(2**31)
"""Epochs without end."""


def in_epochs(one_epoch: Callable, epochs: range, size: int):
    """Returns the elements of several epochs, one after the other.

    Args:
        one_epoch: from the number of an epoch, an int64 scalar tensor, to its `tf.data.Dataset`; runs inside `tf.data`.
            A cache must be made outside of it: it would be filled anew in every epoch.
        epochs: their numbers.
        size: elements of each; `tf.data` cannot know it, and Keras warns at the end of data whose length it did not know.
    """
    import tensorflow as tf

    def traced(epoch):
        # Of the function's own graph: the order shall not depend on the global seed, and with a global seed of 0
        # TensorFlow compares an operation's seed in Python, which a tensor does not allow.
        tf.random.set_seed(1)
        return one_epoch(epoch)

    elements = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(traced)
    return elements.apply(tf.data.experimental.assert_cardinality(len(epochs) * size))


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
