"""The part of every batch that one process of several trains on."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Share:
    """Some of the replicas across which batches are sharded evenly.

    What cannot be sharded evenly is filled up with copies of the first examples.

    Attributes:
        first: number of the first of its replicas.
        own: how many they are.
        replicas: how many there are in all.
    """

    first: int
    own: int
    replicas: int

    def rows(self, number):
        """Returns which rows of a batch of that size belong to it, int64 `(rows,)`; for a number or a scalar tensor."""
        import tensorflow as tf

        number = tf.cast(number, "int64")
        of_each = -(-number // self.replicas)
        return (self.first * of_each + tf.range(self.own * of_each)) % number

    def of_batches(self, batches, sizes: np.ndarray, epochs: int, finish: Callable):
        """Returns its rows of each batch, finished one by one, as `(x, y, number)`.

        Args:
            batches: `tf.data.Dataset` of batches of any structure.
            sizes: those of the batches of an epoch.
            epochs: how many there are.
            finish: from the parts of one example to `(x, y)`; runs inside `tf.data`, in parallel.
        """
        import tensorflow as tf

        def own(*batch):
            rows = self.rows(tf.shape(tf.nest.flatten(batch)[0])[0])
            return tf.nest.map_structure(lambda values: tf.gather(values, rows), batch)

        finished = batches.map(own).unbatch().map(finish, tf.data.AUTOTUNE)
        own_sizes = self.own * -(-sizes // self.replicas)
        parts = finished.batch(int(own_sizes.max())).rebatch(own_sizes)
        numbers = tf.data.Dataset.from_tensor_slices(sizes).repeat(epochs)
        return tf.data.Dataset.zip(parts, numbers).map(lambda part, number: (*part, number))
