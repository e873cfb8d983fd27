"""The engine of a server: images of many tasks, from many threads, answered in shared batches by one bank."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError

import numpy as np

from model_patch.bank import Bank
from model_patch.errors import ModelPatchError, require_number
from model_patch.patch import Patch
from model_patch.serving.images import BadImageError, resized, warm
from model_patch.tasks import Task
from model_patch.trunk import Trunk

_logger = logging.getLogger(__name__)

THREADS = max(2, os.cpu_count() or 1)
"""Threads that answer batches, each of them with one core: while some decode, others compute."""

SPARE = 64
"""Rows of the bank for patches that were replaced or removed while requests still wait for them."""


PATIENCE = 10.0
"""Seconds that a task waits for a place in memory."""


class NotLoadedError(ModelPatchError):
    """The engine does not hold the task."""


class OverloadedError(ModelPatchError):
    """Too many images wait already."""


@dataclasses.dataclass
class _Loaded:
    """One version of a task in the bank.

    Attributes:
        key: its name in the bank, which no other version has.
        task: with the name that it is served under.
        users: requests that wait for it.
        gone: whether it was replaced or removed: it leaves the bank with its last user.
    """

    key: str
    task: Task
    users: int = 0
    gone: bool = False


@dataclasses.dataclass
class _Request:
    """What `Engine.submit` was given; `logits` fill up until none is missing."""

    loaded: _Loaded
    future: Future
    logits: list
    missing: int


_Item = tuple[_Request, int, bytes | np.ndarray]
"""One image of a request, and its index there."""


class Engine:
    """Answers images of many tasks in shared batches. All methods may be called by several threads at once.

    Each request is answered by one version of its task, the one that was loaded when it was submitted, also if that is
    replaced or removed meanwhile. Of more than `max_tasks` tasks, the least recently used leaves.

    Batches are filled up to the next power of two. `warm` runs each of these sizes once.
    """

    def __init__(
        self,
        trunk: Trunk,
        kinds: str = "scale_bias",
        *,
        classes: int = 10,
        max_tasks: int = 1000,
        max_batch_size: int = 64,
        max_wait_ms: float = 5.0,
        max_queue: int = 1024,
        max_pixels: int = 2**24,
        pooling: str = "auto",
        on_batch: Callable[[int], None] = lambda size: None,
    ):
        """Makes an engine without tasks and starts its threads.

        Args:
            trunk: shared by all tasks.
            kinds, classes, pooling: as for `Bank`.
            max_tasks: how many tasks are held in memory.
            max_batch_size: images that are computed at once, at most.
            max_wait_ms: how long the first image of a batch waits for others.
            max_queue: images that wait at most; further ones are refused.
            max_pixels: highest number of pixels of an encoded image; larger ones are refused before they are decoded.
            on_batch: called with the number of images of each batch, by the thread that answered it.

        Raises:
            ModelPatchError: a number is out of range, or as `Bank`.
        """
        for name, value in (("max_tasks", max_tasks), ("max_batch_size", max_batch_size), ("max_queue", max_queue)):
            require_number(name, value, 1, whole=True)
        require_number("max_wait_ms", max_wait_ms, 0)
        self.trunk = trunk
        self.max_tasks, self.max_batch_size, self.max_queue = max_tasks, max_batch_size, max_queue
        self._max_wait, self._max_pixels, self._on_batch = max_wait_ms / 1000, max_pixels, on_batch
        self._capacity = max_tasks + SPARE
        self._bank = Bank(trunk, kinds, capacity=self._capacity, classes=classes, max_parts=1, pooling=pooling)
        self._names = itertools.count()
        self._adding = threading.Lock()
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._loaded: collections.OrderedDict[str, _Loaded] = collections.OrderedDict()  # Least recently used first.
        self._num_held = 0  # Versions in the bank.
        self._unused: list[str] = []  # Those among them that nothing needs any more.
        self._arrived = threading.Condition()
        self._queue: collections.deque[_Item] = collections.deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._answer_batches, name=f"batches-{i}", daemon=True) for i in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks in memory, by name, least recently used first."""
        with self._lock:
            return {name: loaded.task for name, loaded in self._loaded.items()}

    def task(self, name: str) -> Task | None:
        """Returns a task that is in memory; None if it is not."""
        loaded = self._loaded.get(name)
        return loaded.task if loaded else None

    @property
    def num_tasks(self) -> int:
        """How many tasks are in memory."""
        return len(self._loaded)

    @property
    def is_full(self) -> bool:
        """Whether as many tasks are in memory as may."""
        return len(self._loaded) >= self.max_tasks

    @property
    def num_waiting(self) -> int:
        """How many images wait."""
        return len(self._queue)

    @property
    def is_healthy(self) -> bool:
        """Whether all threads run."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def warm(self):
        """Runs every batch size, and the decoder, once."""
        sizes = {self._filled_up(size) for size in range(1, self.max_batch_size + 1)}
        self._bank.warm(sorted(sizes))
        warm(self.trunk.preprocessing)

    def put(self, name: str, patch: Patch):
        """Adds a task, or replaces the one of that name; requests meanwhile are answered by the old one.

        Args:
            name: that it is served under, whatever name its file holds.
            patch: a patch for this engine's trunk.

        Raises:
            ModelPatchError: the bank refuses the patch; what was there before stays.
            OverloadedError: requests wait for every task in memory.
        """
        with self._adding:
            key = f"{name}#{next(self._names)}"
            self._make_room(name)
            try:
                self._bank.add(dataclasses.replace(patch, task=dataclasses.replace(patch.task, name=key)))
            except ModelPatchError as error:
                raise type(error)(str(error).replace(repr(key), repr(name))) from None
            with self._lock:
                old = self._loaded.get(name)
                self._loaded[name] = _Loaded(key, dataclasses.replace(patch.task, name=name))
                self._loaded.move_to_end(name)
                self._num_held += 1
                self._retire(old)

    def drop(self, name: str):
        """Removes a task, if it is there. Requests that wait for it are answered."""
        with self._lock:
            self._retire(self._loaded.pop(name, None))

    def submit(self, name: str, images: Sequence[bytes | np.ndarray]) -> "Future[np.ndarray]":
        """Queues images for a task.

        Args:
            name: name of the task.
            images: each an encoded file, or float32 `(height, width, 3)` in 0..255, of any size; at least one.

        Returns:
            The logits to be, float32 `(images, classes)`, the task's own classes; or `BadImageError`. One that is cancelled
            before its batch begins is not computed.

        Raises:
            NotLoadedError: the task is not in memory.
            OverloadedError: as many images wait as may.
        """
        if self._closed or len(self._queue) + len(images) > self.max_queue:
            raise OverloadedError(f"{len(self._queue)} images wait already: try again later")
        with self._lock:
            loaded = self._loaded.get(name)
            if not loaded:
                raise NotLoadedError(f"the task {name!r} is not in memory")
            loaded.users += 1
            self._loaded.move_to_end(name)
        request = _Request(loaded, Future(), [None] * len(images), len(images))
        request.future.add_done_callback(lambda _: self._release(loaded))
        with self._arrived:
            self._queue.extend((request, i, image) for i, image in enumerate(images))
            self._arrived.notify()
        return request.future

    def close(self):
        """Answers what waits, then ends the threads."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join()

    def _make_room(self, name: str):
        """Waits until there is a row for a task, and the least recently used one has left if all places are taken."""
        until = time.monotonic() + PATIENCE
        while True:
            with self._lock:
                if name not in self._loaded and len(self._loaded) >= self.max_tasks:
                    idle = next((each for each, loaded in self._loaded.items() if not loaded.users), None)
                    if idle is not None:
                        self._retire(self._loaded.pop(idle))
                has_place = name in self._loaded or len(self._loaded) < self.max_tasks
                unused, self._unused = self._unused, []
                self._num_held -= len(unused)
                if not unused and not (has_place and self._num_held < self._capacity):
                    if not self._left.wait(until - time.monotonic()):
                        raise OverloadedError(
                            "requests wait for every task in memory: try again later, or raise max_tasks"
                        )
                    continue
            for key in unused:  # Outside of the lock, which requests need.
                self._bank.remove(key)
            if has_place and self._num_held < self._capacity:
                return

    def _retire(self, loaded: _Loaded | None):
        if loaded:
            loaded.gone = True
            self._note_unused(loaded)

    def _release(self, loaded: _Loaded):
        with self._lock:
            loaded.users -= 1
            self._left.notify_all()
            self._note_unused(loaded)

    def _note_unused(self, loaded: _Loaded):
        if loaded.gone and not loaded.users:
            self._unused.append(loaded.key)
            self._left.notify_all()

    def _answer_batches(self):
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except Exception as error:  # Whatever it is, the thread answers the next batch.
                _logger.exception("a batch of %d images failed", len(batch))
                for request, _, _ in batch:
                    _set(request.future.set_exception, error)

    def _next_batch(self) -> list[_Item]:
        """Waits for images and returns up to `max_batch_size` of them; none once the engine is closed and all are answered."""
        with self._arrived:
            while not self._queue:
                if self._closed:
                    return []
                self._arrived.wait()
            until = time.monotonic() + self._max_wait
            while 0 < len(self._queue) < self.max_batch_size and not self._closed:
                if not self._arrived.wait(until - time.monotonic()):
                    break
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self.max_batch_size))]
            if self._queue:
                self._arrived.notify()
        return batch or self._next_batch()

    def _answer(self, batch: Sequence[_Item]):
        wanted = [item for item in batch if not item[0].future.done()]
        items, images = [], []
        given = [(request.loaded.task.preprocessing, image) for request, _, image in wanted]
        for item, image in zip(wanted, resized(given, self._max_pixels), strict=True):
            if isinstance(image, BadImageError):
                _set(item[0].future.set_exception, image)
            else:
                items.append(item)
                images.append(image)
        self._on_batch(len(items))
        if not items:
            return
        keys = [request.loaded.key for request, _, _ in items]
        fill = self._filled_up(len(items)) - len(items)
        pixels = np.stack(images + images[:1] * fill)
        logits = np.asarray(self._bank(np.asarray(self.trunk.preprocessing.scale(pixels)), keys + keys[:1] * fill))
        for (request, i, _), row in zip(items, logits[: len(items)], strict=True):
            request.logits[i] = row[: len(request.loaded.task.labels)]
            request.missing -= 1
            if not request.missing:
                _set(request.future.set_result, np.stack(request.logits))

    def _filled_up(self, size: int) -> int:
        return min(2 ** (size - 1).bit_length(), self.max_batch_size)


def _set(setter: Callable, value):
    """Sets a future that may be done: another image of its request was bad, or it was cancelled."""
    with contextlib.suppress(InvalidStateError):
        setter(value)


def single_threaded_operations():
    """Gives each TensorFlow operation one thread, before anything else is computed: an engine computes a batch per core at
    once instead, which is faster on CPUs.
    """
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU") and (os.cpu_count() or 1) > 1:
        with contextlib.suppress(RuntimeError):  # TensorFlow has started already.
            tf.config.threading.set_intra_op_parallelism_threads(1)
