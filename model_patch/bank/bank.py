"""Bank: one model of thousands of tasks, mixed in one batch."""

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import keras
import numpy as np
from keras import ops

from model_patch.bank.compiled import compiled
from model_patch.bank.folded import FoldedTasks
from model_patch.bank.graph import BankGraph
from model_patch.bank.tables import BankedHead, PatchTable
from model_patch.bind import BoundTask, bind
from model_patch.errors import ModelPatchError, require_number, unknown
from model_patch.kinds import TrainSpec
from model_patch.layers.affine import ValueOf
from model_patch.patch import Patch
from model_patch.tasks import HEAD, Task, require_one_output_per_label
from model_patch.trunk import Trunk

_logger = logging.getLogger(__name__)


class Bank:
    """Many tasks on one trunk, each example of a batch predicted by its own task, in inference.

    Tasks can be added and removed while other threads predict: a prediction uses one whole patch, the old or the new one. As
    long as a row of `capacity` is free nothing is compiled again. Where none is, it is doubled, with a new model.

    Batches of one task need nothing per example: tasks of which there are several are folded, see `model_patch.bank.folded`.

    Attributes:
        trunk: shared by all tasks, unchanged.
        kinds: the patch kinds that tasks may have; with `depthwise`, every task holds depthwise kernels of its own.
        classes: the widest head that it takes.
        model: Keras model, images `(batch, height, width, 3)` and rows int32 `(batch,)` to logits `(batch, classes)`.
    """

    def __init__(
        self,
        trunk: Trunk,
        kinds: str = "scale_bias",
        *,
        capacity: int = 64,
        classes: int = 10,
        max_parts: int | None = None,
        pooling: str = "auto",
        folded_bytes: int = 2**27,
    ):
        """Makes an empty bank.

        Args:
            trunk: as above.
            kinds: names of patch kinds joined by `+`.
            capacity: how many tasks there is room for at first. A row of MobileNetV2 1.0 takes 136 KB for its scales and
                biases, 365 KB with depthwise kernels, and 5 KB for each of `classes`.
            classes: classes of the widest head; heads with fewer are filled up.
            max_parts: in how many parts a batch may be computed at once, each of which is traced; by default what is fastest
                where one thread predicts. Where as many threads as cores do, 1 is.
            pooling: how all tasks pool, where the trunk gives tokens, see `Task`.
            folded_bytes: memory for the kernels of folded tasks, of which MobileNetV2 1.0 takes 9 MB each; 0 for none.

        Raises:
            ModelPatchError: the kinds or numbers cannot be used, or a layer of the trunk cannot be banked.
        """
        require_number("capacity", capacity, 1, whole=True)
        require_number("classes", classes, 2, whole=True)
        require_number("folded_bytes", folded_bytes, 0, whole=True)
        parsed = TrainSpec.parse(kinds, "batch")
        if not parsed.kinds or parsed.last:
            raise ModelPatchError(f"there is no bank of {kinds!r}: give patch kinds other than full, without last")
        self.trunk = trunk
        self.kinds = parsed.kinds
        self.classes = classes
        self._expected: dict[tuple[TrainSpec, int], tuple[dict[str, tuple], str]] = {}
        self._trunk_values = {key: np.array(ops.convert_to_numpy(v)) for key, v in trunk.variables().items()}
        self._writing = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self._max_parts = max_parts
        # Every classification task with this pooling takes the same features of a trunk.
        self._any_task = trunk.pooled(Task("any", ("a", "b"), trunk.preprocessing, pooling=pooling))
        self._compiled = self._new(capacity)
        widest = dataclasses.replace(self._any_task, labels=tuple(map(str, range(classes))))
        self._folded = FoldedTasks(trunk, self.kinds, widest, self._trunk_values, folded_bytes, max_parts)
        self._rows = _Rows(capacity, self._folded.drop)

    def _new(self, capacity: int) -> "_Compiled":
        return _Compiled(self.trunk, self.kinds, capacity, self.classes, self._any_task, self._max_parts)

    @property
    def model(self) -> keras.Model:
        """The Keras model at present; a new one after the bank has grown."""
        return self._compiled.model

    @property
    def capacity(self) -> int:
        """How many tasks there is room for at present."""
        return self._compiled.capacity

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks at present, by name."""
        return dict(self._tasks)

    @property
    def folded(self) -> set[str]:
        """Names of the tasks that are folded at present."""
        return self._rows.names(self._folded.rows)

    def row(self, name: str) -> int:
        """Returns the row of a task, for `model`.

        Raises:
            ModelPatchError: there is no such task.
        """
        with self._rows.pinned([name]) as (row,):
            return row

    def add(self, patch: Patch | BoundTask, *, replace: bool = False):
        """Adds a task.

        Args:
            patch: a patch of this trunk, or a bound task with the values it has now.
            replace: whether a task of the same name is replaced; predictions meanwhile use the old one, which
                is why this takes a free row, too.

        Raises:
            PatchError: the patch does not belong to the trunk.
            ModelPatchError: the name is taken, the task is no classification or has too many classes, or the patch holds
                values that the kinds of this bank leave to the trunk, or that give no finite scale.
        """
        patch = patch.patch() if isinstance(patch, BoundTask) else patch
        name = patch.task.name
        with self._writing:
            if name in self._tasks and not replace:
                raise ModelPatchError(
                    f"the bank holds a task named {name!r} already: remove it, or add with replace=True"
                )
            self._check(patch)
            vectors = self._compiled.vectors(self._value_of(patch))
            if self._rows.full:
                self._grow()
            row = self._rows.take()
            self._compiled.write(row, vectors, patch.values[f"{HEAD}.kernel"], patch.values[f"{HEAD}.bias"])
            # From here on it can be predicted with: its row is completely written.
            self._tasks[name] = patch.task
            self._rows.publish(name, row)

    def remove(self, name: str):
        """Removes a task. Predictions that have started still use it.

        Raises:
            ModelPatchError: there is no such task.
        """
        with self._writing:
            self._rows.unpublish(name)
            del self._tasks[name]

    def __call__(self, images, names: Sequence[str]):
        """Predicts each image by the task that is named for it.

        Args:
            images: preprocessed, `(batch, height, width, 3)`.
            names: names of the tasks, `batch` of them.

        Returns:
            float32 outputs of the heads `(batch, classes)`, which `Task.decode` reads: those of a task with fewer classes end in
            -infinity.

        Raises:
            ModelPatchError: there is no such task, or not one name for each image.
        """
        if len(images) != len(names):
            raise ModelPatchError(f"{len(images)} images with {len(names)} task names: give one for each")
        with self._rows.pinned(names) as rows:
            # Read after the rows: a model that has grown since holds all that they referred to.
            now = self._compiled
            logits = self._folded.run(rows[0], images, now.read) if len(set(rows)) == 1 else None
            return now.run([images, np.array(rows, "int32")], []) if logits is None else logits

    def warm(self, sizes: Sequence[int]):
        """Runs batches of each size, mixed and of one task, so that nothing is compiled when a prediction needs it."""
        start = time.perf_counter()
        batches = [np.zeros((size, *self.model.input_shape[0][1:]), "float32") for size in sizes]
        for images in batches:
            self._compiled.run([images, np.zeros(len(images), "int32")], [])
        mixed = time.perf_counter() - start
        self._folded.warm(batches, self._compiled.read)
        seconds = time.perf_counter() - start
        _logger.info(
            "warmed batches of %s in %.1f s, of one task in %.1f s", ", ".join(map(str, sizes)), mixed, seconds - mixed
        )

    def _check(self, patch: Patch):
        task = patch.task
        require_one_output_per_label(task, "a bank")
        if len(task.labels) > self.classes:
            raise ModelPatchError(
                f"the task {task.name!r} has {len(task.labels)} classes: make the bank with classes={len(task.labels)}"
            )
        taken = [(each.image_size, each.mode) for each in (task.preprocessing, self.trunk.preprocessing)]
        if taken[0] != taken[1]:
            raise ModelPatchError(
                f"the task {task.name!r} takes images of {task.preprocessing.image_size} px ({task.preprocessing.mode}), and "
                f"the bank's trunk {self.trunk.preprocessing.image_size} px ({self.trunk.preprocessing.mode}): expected the same"
            )
        pooling, pooled = ((each.pooling, each.prefix_tokens) for each in (self._any_task, task))
        if pooled != pooling:
            raise ModelPatchError(
                f"the task {task.name!r} pools tokens by {pooled[0]}, and the bank by {pooling[0]}: make it with pooling={pooled[0]}"
            )
        key = patch.train_spec, patch.train_spec.version
        if key not in self._expected:
            self._expected[key] = self._expect(patch)
        expected, fingerprint = self._expected[key]
        head = {f"{HEAD}.kernel": (self._compiled.channels, len(task.labels)), f"{HEAD}.bias": (len(task.labels),)}
        patch.require_fit(self.trunk.name, patch.train_spec, expected | head, fingerprint)

    def _expect(self, patch: Patch) -> tuple[dict[str, tuple], str]:
        """Returns the shapes that a patch of such kinds has, and its fingerprint; checks that the bank has room for them."""
        bound = bind(self.trunk, patch.task, patch.train_spec)
        beyond = [key for key in bound.patch_variables if not self._compiled.has_own(key)]
        if beyond:
            raise ModelPatchError(
                f"the task {patch.task.name!r} ({patch.train_spec}) has its own {', '.join(beyond[:3])}, which a bank of "
                f"{'+'.join(self.kinds)} leaves to the trunk: make the bank with the kinds of all its tasks"
            )
        shapes = {key: tuple(v.shape) for key, v in bound.patch_variables.items()}
        return shapes, self.trunk.fingerprint(self.trunk.variables().keys() - shapes.keys(), patch.train_spec.version)

    def _value_of(self, patch: Patch) -> ValueOf:
        def value_of(path: str, name: str):
            key = f"{path}/{name}"
            return patch.values[key] if key in patch.values else self._trunk_values.get(key)

        return value_of

    def _grow(self):
        now = self._compiled
        self._compiled = now.grown(self._new(2 * now.capacity))
        self._rows.extend(range(now.capacity, 2 * now.capacity))


class _Rows:
    """Which row each task has. A row is reused only when no running prediction reads it any more.

    Args:
        capacity: number of rows.
        on_free: called with each row that a task had, before another one can have it.
    """

    def __init__(self, capacity: int, on_free: Callable[[int], None]):
        self._on_free = on_free
        self._lock = threading.Lock()
        self._of: dict[str, int] = {}
        self._free = collections.deque(range(capacity))
        self._readers: collections.Counter[int] = collections.Counter()
        self._retired: set[int] = set()

    @contextlib.contextmanager
    def pinned(self, names: Sequence[str]) -> Iterator[list[int]]:
        """Yields the rows of tasks, which keep what they hold until the end of the block."""
        with self._lock:
            for name in names:
                if name not in self._of:
                    raise unknown("task", name, self._of)
            rows = [self._of[name] for name in names]
            self._readers.update(set(rows))
        try:
            yield rows
        finally:
            with self._lock:
                for row in set(rows):
                    self._readers[row] -= 1
                    self._free_unread(row)

    def names(self, rows: Collection[int]) -> set[str]:
        """Returns the tasks that have one of these rows."""
        with self._lock:
            return {name for name, row in self._of.items() if row in rows}

    @property
    def full(self) -> bool:
        return not self._free

    def extend(self, rows: range):
        self._free.extend(rows)

    def take(self) -> int:
        """Returns a row that no one reads, and that no one will before it is published."""
        return self._free.popleft()

    def publish(self, name: str, row: int):
        """Makes a row the task's, in place of the one that it had."""
        with self._lock:
            self._retire(self._of.get(name))
            self._of[name] = row

    def unpublish(self, name: str):
        with self._lock:
            if name not in self._of:
                raise unknown("task", name, self._of)
            self._retire(self._of.pop(name))

    def _retire(self, row: int | None):
        if row is not None:
            self._retired.add(row)
            self._free_unread(row)

    def _free_unread(self, row: int):
        if row in self._retired and not self._readers[row]:
            self._retired.remove(row)
            self._on_free(row)
            self._free.append(row)


class _Compiled:
    """The model of a bank at one capacity.

    Attributes:
        model, capacity: as the bank's.
        channels: number of channels of the features.
        run: compiled `model`, see `compiled`.
    """

    def __init__(
        self,
        trunk: Trunk,
        kinds: Sequence[str],
        capacity: int,
        classes: int,
        task: Task,
        max_parts: int | None = None,
    ):
        self.capacity = capacity
        graph = BankGraph(trunk, kinds)
        self._slots, self.has_own = graph.slots, graph.has_own
        self._table = PatchTable([slot.layer for slot in graph.slots], capacity, name="patches")

        images = keras.Input(trunk.model.input.shape[1:], name="images")
        rows = keras.Input((), dtype="int32", name="rows")
        patches = self._table(rows)
        model = graph.model(patches)
        pooled = task.features(model)
        features = keras.Model(pooled.input, pooled.output, name="trunk")([images, *patches])
        self.channels = features.shape[-1]
        self._head = BankedHead(capacity, self.channels, classes, name=HEAD)
        self.model = keras.Model([images, rows], self._head(features, rows), name="bank")
        self.run = compiled(self.model, max_parts=max_parts)

    def vectors(self, value_of: ValueOf) -> list[list[np.ndarray]]:
        """Returns what the banked layers read for one task."""
        return [slot.vectors(value_of) for slot in self._slots]

    def write(self, row: int, vectors: Sequence[Sequence], kernel: np.ndarray, bias: np.ndarray):
        """Writes one task into a row: its vectors, and its head `(channels, its classes)` and `(its classes,)`."""
        self._table.write(row, vectors)
        self._head.write(row, kernel, bias)

    def read(self, row: int) -> dict[str, np.ndarray]:
        """Returns values of a patch with which a task would compute what the one in a row does, by key."""
        kernel, bias = self._head.read(row)
        values = {f"{HEAD}.kernel": kernel, f"{HEAD}.bias": bias}
        for slot, vectors in zip(self._slots, self._table.read(row), strict=True):
            values |= slot.values(vectors)
        return values

    def grown(self, larger: "_Compiled") -> "_Compiled":
        """Copies all rows into a larger model, and returns that."""
        self._table.copy_to(larger._table)
        self._head.copy_to(larger._head)
        return larger
