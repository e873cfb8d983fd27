"""Reads the outputs of tasks of several types in one graph, each example by its own task: for banks and sets of tasks."""

from collections.abc import Sequence

import numpy as np

from model_patch.tasks import Task

PAD = 1.0
"""After a task's own constants: outputs of minus infinity then say no, see `Task.decode`."""


class Mixed:
    """What `Task.decode` takes of each task as one row of numbers, and what reads outputs by such rows.

    Attributes:
        size: size of a row; 0 where all tasks are read in the same way.

    Args:
        tasks: at least one.
        width: outputs of the widest head.
    """

    def __init__(self, tasks: Sequence[Task], width: int):
        self._width, self._of_type = width, {type(task): task.constants() for task in tasks}
        is_same = all(_equal(task.constants(), self._of_type[type(task)]) for task in tasks)
        self._is_same = is_same and len(self._of_type) == 1
        sizes = [1 + sum(map(self._size, constants.values())) for constants in self._of_type.values()]
        self.size = 0 if self._is_same else sum(sizes)

    def row(self, task: Task) -> np.ndarray:
        """Returns the row of a task, float32 `(size,)`."""
        if self._is_same:
            return np.zeros(0, "float32")
        parts = []
        for each, constants in self._of_type.items():
            own = task.constants() if each is type(task) else {}
            parts.append(np.array([bool(own)], "float32"))
            for name, like in constants.items():
                values = own.get(name, np.zeros((0,))).reshape(-1)
                parts.append(np.pad(values, (0, self._size(like) - values.size), constant_values=PAD))
        return np.concatenate(parts).astype("float32")

    def decode(self, outputs, rows) -> dict:
        """Returns what `Task.decode` does; what a task's type does not say is 0.

        Args:
            outputs: float32 `(batch, width)`.
            rows: float32 `(batch, size)`, or `(size,)` of all examples.
        """
        return self._read(outputs, rows)

    def predictions(self, outputs, rows, labels) -> dict:
        """Returns what `decode` does, and the `label`, empty where a task's type names none.

        Args:
            outputs, rows: as for `decode`.
            labels: string `(batch, width)`.
        """
        return self._read(outputs, rows, labels)

    def _read(self, outputs, rows, labels=None) -> dict:
        import tensorflow as tf

        found: dict = {}
        at = 0
        for each, constants in self._of_type.items():
            given: dict = dict(constants)
            is_own = None
            if not self._is_same:
                is_own = rows[..., at : at + 1] > 0
                at += 1
                for name, like in constants.items():
                    given[name] = rows[..., at : at + self._size(like)]
                    at += self._size(like)
            own = each.decode(outputs, **given)
            if labels is not None:
                label = each.strings(own, labels)
                own["label"] = tf.fill(tf.shape(outputs)[:1], "") if label is None else label
            for name, value in own.items():
                if is_own is None:
                    found[name] = value
                    continue
                mask = is_own[..., 0] if name == "label" else is_own
                found[name] = tf.where(mask, value, found.get(name, tf.zeros_like(value)))
        return found

    def _size(self, constant: np.ndarray) -> int:
        return self._width if constant.ndim else 1


def _equal(constants: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(constants[name], others[name]) for name in constants)
