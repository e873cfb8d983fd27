"""Tables of a bank: what each task has of its own, a row per task, read and written while other threads predict."""

import collections
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from model_patch.bank.layers import Banked


class PatchTable(keras.layers.Layer):
    """The vectors of all patches of a bank, and the only place where they are read.

    Vectors of one width are in one table `(vectors * capacity, width)`, so that a batch needs one gather per width.

    Args:
        layers: those that read, in any order.
        capacity: rows, one for each patch.

    Input: rows, int32 `(batch,)`, in 0..capacity-1. Returns: a list of `(vectors, batch, width)`, widths ascending.
    """

    def __init__(self, layers: Sequence[Banked], capacity: int, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self._read_by = [layer.widths for layer in layers]
        self.capacity = capacity
        self.counts = collections.Counter(width for widths in self._read_by for width in widths)
        self.widths = sorted(self.counts)
        self.tables = [
            self.add_weight((self.counts[width] * capacity, width), "zeros", name=f"width_{width}")
            for width in self.widths
        ]
        self.built = True
        free = dict.fromkeys(self.widths, 0)
        for layer in layers:
            layer.places = []
            for width in layer.widths:
                layer.places.append((self.widths.index(width), free[width]))
                free[width] += 1

    def _positions(self, width: int, rows):
        """Returns the indices of rows' vectors in the table of a width, `(vectors, rows)`."""
        return np.arange(self.counts[width], dtype="int32")[:, None] * self.capacity + rows

    def call(self, rows):
        return [gather(table, self._positions(table.shape[1], rows)) for table in self.tables]

    def compute_output_shape(self, rows_shape):
        return [(self.counts[width], rows_shape[0], width) for width in self.widths]

    def write(self, row: int, vectors: Sequence[Sequence]):
        """Writes one patch: for each of the layers its vectors, arrays of its `widths`, or one number for all."""
        by_width: dict[int, list] = {width: [] for width in self.widths}
        for widths, own in zip(self._read_by, vectors, strict=True):
            for width, vector in zip(widths, own, strict=True):
                by_width[width].append(np.broadcast_to(vector, width))
        for table, stacked in zip(self.tables, by_width.values(), strict=True):
            scatter(table, self._positions(table.shape[1], row)[:, 0], np.stack(stacked))

    def read(self, row: int) -> list[list[np.ndarray]]:
        """Returns the vectors of one patch, for each of the layers, arrays of its `widths`."""
        rows = {
            w: iter(_entries(t, self._positions(w, row)[:, 0])) for w, t in zip(self.widths, self.tables, strict=True)
        }
        return [[next(rows[width]) for width in widths] for widths in self._read_by]

    def copy_to(self, larger: "PatchTable"):
        """Copies all rows to the first ones of a table with more."""
        rows = np.arange(self.capacity)
        for old, new in zip(self.tables, larger.tables, strict=True):
            positions = larger._positions(old.shape[1], rows).reshape(-1)
            scatter(new, positions, ops.convert_to_numpy(old))


class BankedHead(keras.layers.Layer):
    """The last layers of all tasks: features to logits, each example by its own task's layer.

        y[b, k] = bias[row[b], k] + sum over c of kernel[row[b], c, k] * x[b, c]

    A task with fewer classes than the widest has 0 and -infinity after its own, so that softmax gives them nothing. Rows
    without a task give NaN.

    Args:
        capacity: number of rows.
        channels: number of channels of the features.
        classes: number of classes of the widest head.

    Inputs: features `(batch, channels)`, rows int32 `(batch,)`. Returns: float32 `(batch, classes)`.
    """

    def __init__(self, capacity: int, channels: int, classes: int, **kwargs):
        super().__init__(trainable=False, dtype="float32", **kwargs)
        self.kernel = self.add_weight((capacity, channels, classes), "zeros", name="kernel")
        self.bias = self.add_weight((capacity, classes), keras.initializers.Constant(float("nan")), name="bias")
        self.built = True

    def call(self, features, rows):
        kernel, bias = gather(self.kernel, rows), gather(self.bias, rows)
        return ops.squeeze(ops.matmul(features[:, None], kernel), 1) + bias

    def compute_output_shape(self, features_shape, rows_shape):
        return (features_shape[0], self.bias.shape[1])

    def write(self, row: int, kernel: np.ndarray, bias: np.ndarray):
        """Writes the last layer of one task, `(channels, its classes)` and `(its classes,)`."""
        unused = (0, self.bias.shape[1] - len(bias))
        scatter(self.kernel, [row], np.pad(kernel, ((0, 0), unused))[None])
        scatter(self.bias, [row], np.pad(bias, unused, constant_values=-np.inf)[None])

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the last layer of one task in the form that is computed, `(channels, classes)` and `(classes,)`."""
        kernel, bias = (_entries(table, [row])[0] for table in (self.kernel, self.bias))
        return kernel, bias

    def copy_to(self, larger: "BankedHead"):
        """Copies all rows to the first ones of a layer with more."""
        for old, new in ((self.kernel, larger.kernel), (self.bias, larger.bias)):
            scatter(new, np.arange(old.shape[0]), ops.convert_to_numpy(old))


def gather(table: keras.Variable, indices):
    """Returns entries of a table along its first axis. On TensorFlow the table is not copied while others write to it."""
    if keras.backend.backend() == "tensorflow":
        return table.value.sparse_read(indices)
    return ops.take(table, indices, axis=0)


def _entries(table: keras.Variable, indices) -> np.ndarray:
    return ops.convert_to_numpy(gather(table, indices))


def scatter(table: keras.Variable, indices, values: np.ndarray):
    """Writes entries of a table along its first axis, on TensorFlow in place."""
    values = values.astype("float32")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        table.value.scatter_update(tf.IndexedSlices(values, tf.constant(indices)))
    else:
        whole = np.array(ops.convert_to_numpy(table))
        whole[indices] = values
        table.assign(whole)
