"""Folded nets of a bank's tasks: a batch of one task needs no scales and biases per example.

All tasks have one folded graph, compiled once. What a task adds are the values of its kernels, which are kept for the tasks
that batches are often for.
"""

import collections
import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from model_patch.bank.compiled import compiled
from model_patch.bind import bind
from model_patch.errors import ModelPatchError
from model_patch.fold import fold
from model_patch.kinds import TrainSpec
from model_patch.tasks import HEAD, Task
from model_patch.trunk import Trunk

_logger = logging.getLogger(__name__)

TIMES = 8
"""Batches of a task, among recent ones, for which its kernels are folded: about what folding costs, see docs/serving.md."""

Read = Callable[[int], dict[str, np.ndarray]]
"""Returns the values of the task in a row, by the keys of a patch; what it does not have is the trunk's."""


class FoldedTasks:
    """Recently used tasks, folded. All methods may be called by several threads at once.

    A task is folded when it is that of `TIMES` of the last `TIMES * n` batches, n being how many tasks fit into the memory: no
    more than n can be at once, so that none drives out another that is used as often.

    Args:
        trunk, kinds: as the bank's.
        task: one of the bank's tasks, with as many labels as the widest head has outputs.
        trunk_values: all values of the trunk, by key.
        max_bytes: memory for kernels; 0 for none.
        max_parts: as the bank's.
    """

    def __init__(
        self,
        trunk: Trunk,
        kinds: Sequence[str],
        task: Task,
        trunk_values: Mapping[str, np.ndarray],
        max_bytes: int,
        max_parts: int | None,
    ):
        self._trunk, self._spec, self._task = trunk, TrainSpec(tuple(kinds), True, "batch"), task
        self._trunk_values = trunk_values
        self._max_parts = max_parts
        self._capacity = max_bytes // max(1, sum(value.nbytes for value in trunk_values.values()))
        self._lock = threading.Lock()
        self._recent: collections.deque[int] = collections.deque()
        self._times: collections.Counter[int] = collections.Counter()
        self._kept: collections.OrderedDict[int, list] = collections.OrderedDict()  # Least recently used first.
        self._folding = threading.Lock()
        self._net: _Net | None = None

    @property
    def rows(self) -> set[int]:
        """The rows whose tasks are folded at present."""
        with self._lock:
            return set(self._kept)

    def run(self, row: int, images, read: Read):
        """Predicts images by the task of a row; None if it is not folded, for the bank to do it.

        Nothing may write to the row meanwhile. One thread folds at a time, and others do not wait for it.
        """
        if not self._capacity:
            return None
        values = self._noted(row)
        if values is None and self._times[row] >= TIMES and self._folding.acquire(blocking=False):
            try:
                values = self._fold(row, read)
            finally:
                self._folding.release()
        return self._net.run([images], values) if self._net and values else None

    def drop(self, row: int):
        """Forgets the task of a row."""
        with self._lock:
            self._kept.pop(row, None)

    def warm(self, batches: Sequence[np.ndarray], read: Read):
        """Runs batches, so that nothing is compiled later."""
        with self._folding:
            net = self._prepared(read)
            if net:
                values = net.values(read(0))
                for images in batches:
                    net.run([images], values)

    def _noted(self, row: int) -> list | None:
        """Returns the kept values of a row, and counts its batch among the recent ones."""
        with self._lock:
            self._recent.append(row)
            self._times[row] += 1
            if len(self._recent) > TIMES * self._capacity:
                oldest = self._recent.popleft()
                self._times[oldest] -= 1
                if not self._times[oldest]:
                    del self._times[oldest]
            if row in self._kept:
                self._kept.move_to_end(row)
            return self._kept.get(row)

    def _fold(self, row: int, read: Read) -> list | None:
        net = self._prepared(read)
        if not net:
            return None
        values = net.values(read(row))
        with self._lock:
            self._kept[row] = values
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return values

    def _prepared(self, read: Read) -> "_Net | None":
        """Returns the net, and makes it the first time; None where there cannot be one."""
        if self._capacity and not self._net:
            try:
                net = _Net(self._trunk, self._spec, self._task, self._trunk_values, self._max_parts)
                net.require_read(read(0))
                self._net = net
            except ModelPatchError as error:
                self._capacity = 0
                _logger.info("batches of one task are computed as mixed ones: %s", error)
        return self._net


class _Net:
    """The folded graph of all tasks.

    Attributes:
        run: compiled, a list of images and a list of values to logits.
    """

    def __init__(
        self,
        trunk: Trunk,
        spec: TrainSpec,
        task: Task,
        trunk_values: Mapping[str, np.ndarray],
        max_parts: int | None,
    ):
        if trunk.in_float32 is not trunk:
            raise ModelPatchError("a net of half precision is folded in float32: expected float32")
        bound = bind(trunk, task, spec)
        self._graph = fold(bound).graph
        self._head = bound.head.name
        self._trunk_values = trunk_values
        self.run = compiled(self._graph.model, self._graph.variables, max_parts)

    def values(self, task_values: Mapping[str, np.ndarray]) -> list:
        """Returns what `run` needs for a task, tensors."""
        arrays = self._graph.values(lambda path, name: self._value(task_values, path, name))
        return [
            keras.ops.convert_to_tensor(np.asarray(array, variable.dtype))
            for variable, array in zip(self._graph.variables, arrays, strict=True)
        ]

    def require_read(self, task_values: Mapping[str, np.ndarray]):
        """Checks that the graph has room for all values of a task.

        Raises:
            ModelPatchError: it has not.
        """
        read = set()

        def value_of(path, name):
            read.add(self._key(path, name))
            return self._value(task_values, path, name)

        self._graph.values(value_of)
        rest = sorted(task_values.keys() - read)
        if rest:
            raise ModelPatchError(f"the folded net has no place for {', '.join(rest[:3])}")

    def _key(self, path: str, name: str) -> str:
        return f"{HEAD}.{name}" if path == self._head else f"{path}/{name}"

    def _value(self, task_values: Mapping[str, np.ndarray], path: str, name: str) -> np.ndarray | None:
        key = self._key(path, name)
        return task_values.get(key, self._trunk_values.get(key))
