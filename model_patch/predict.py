"""Predicting with tasks: the labels of image files, and the choice among tasks that differ in image size alone."""

import collections
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask, bind_patch
from model_patch.data.decoding import decode
from model_patch.data.image_files import image_paths
from model_patch.errors import ModelPatchError, require_each_once, unknown
from model_patch.patch import Patch
from model_patch.preprocessing import Preprocessing
from model_patch.tasks import CLASSIFICATION
from model_patch.trunks import open_trunk

BATCH = 64
"""Images that a model gets at once."""

NUM_NAMED = 10
"""How many bad images an error names."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one task predicts for one image.

    Attributes:
        file: the image's path.
        task: the task's name.
        top: `(label, probability)`, most probable first; probabilities in 0..1.
        probabilities: by label, of all labels.
    """

    file: str
    task: str
    top: tuple[tuple[str, float], ...]
    probabilities: dict[str, float] = dataclasses.field(repr=False, compare=False)


class BadImagesError(ModelPatchError):
    """Some images could not be read; all others were predicted.

    Attributes:
        paths: the images, in their order.
    """

    exit_status = 1  # The work was done; 2 would say that none was.

    def __init__(self, paths: Sequence[str], total: int):
        self.paths = tuple(paths)
        named = ", ".join(self.paths[:NUM_NAMED]) + (", ..." if len(self.paths) > NUM_NAMED else "")
        super().__init__(f"{len(self.paths)} of {total} images cannot be read: {named}; the others were predicted")


def open_tasks(trunk: str, patches: Sequence[str]) -> list[BoundTask]:
    """Opens a trunk once and binds the task of each patch file to it.

    Args:
        trunk: spec of the trunk, opened at the image size that the patches were trained at.
        patches: paths of patch files.

    Raises:
        ModelPatchError: the trunk or a patch cannot be opened, they do not belong together, two tasks share a name, or no
            patch is given.
    """
    if not patches:
        raise ModelPatchError("no patch is given: expected --patches=FILE, or several joined by commas")
    loaded = [Patch.load(path) for path in patches]
    names = [patch.task.name for patch in loaded]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelPatchError(
            f"two patches are for a task named {twice!r}: give one of them, or train with --task_name"
        )
    opened = {size: open_trunk(trunk, size) for size in {patch.task.preprocessing.image_size for patch in loaded}}
    return [bind_patch(opened[patch.task.preprocessing.image_size], patch) for patch in loaded]


def choose_tasks(tasks: Sequence[BoundTask], names: Sequence[str] | None) -> list[BoundTask]:
    """Returns the tasks with the given names, all where there are none.

    Raises:
        ModelPatchError: no task has one of the names, or one is given twice.
    """
    if names:
        require_each_once("tasks", names)
    known = {bound.task.name: bound for bound in tasks}
    for name in names or ():
        if name not in known:
            raise unknown("task", name, known)
    return [known[name] for name in names] if names else list(tasks)


def predict(
    tasks: BoundTask | Sequence[BoundTask],
    files: str | Iterable[str],
    top: int = 3,
    pick_resolution: bool = False,
) -> Iterator[Answer]:
    """Predicts image files; yields one answer per image and task, in the order of the images.

    Files are read, decoded and resized in threads, a few batches ahead of the models, so memory does not grow with the
    number of images. All tasks of one trunk and image size are one compiled model, in which those that only have a last
    layer of their own share the trunk's features.

    Args:
        tasks: one bound task, or several.
        files: paths of image files, patterns or folders, see `data.image_files.image_paths`; or an iterator of paths, which are taken
            as they come. One may be given without a list.
        top: how many labels an answer names at most; at least 1.
        pick_resolution: each image is predicted once, by the task whose image size is nearest to its own, see `pick`.

    Raises:
        ModelPatchError: a task is no classification, or a name in a list matches no file; before anything is yielded.
        BadImagesError: images that are missing or cannot be read; after everything else was yielded.
    """
    tasks = [tasks] if isinstance(tasks, BoundTask) else list(tasks)
    for bound in tasks:
        if bound.task.type != CLASSIFICATION:
            raise ModelPatchError(
                f"{bound.task.name!r} is a {bound.task.type} task, which has no labels for whole images: use "
                "scripts/detect.py predict"
            )
    if isinstance(files, str):
        files = [files]
    paths = iter(image_paths(files) if isinstance(files, Sequence) else files)
    return _predicted(tasks, paths, top, pick_resolution)


def _predicted(tasks: list[BoundTask], paths: Iterator[str], top: int, pick_resolution: bool) -> Iterator[Answer]:
    groups: dict[tuple, list[BoundTask]] = collections.defaultdict(list)
    for bound in tasks:
        groups[id(bound.trunk), bound.task.preprocessing].append(bound)
    models = [_GroupModel(group) for group in groups.values()]
    read = _reader(list(dict.fromkeys(model.preprocessing for model in models)))
    bad, total = [], 0
    for chunk, images in _ahead(read, _batched(paths)):
        total += len(chunk)
        bad += [path for path, image in zip(chunk, images, strict=True) if image is None]
        good = [(path, image) for path, image in zip(chunk, images, strict=True) if image is not None]
        asked = [[pick(tasks, *image.shape)] if pick_resolution else tasks for _, image in good]
        probabilities: dict[tuple[int, str], np.ndarray] = {}
        for model in models:
            names = {bound.task.name for bound in model.tasks}
            at = [i for i, chosen in enumerate(asked) if any(bound.task.name in names for bound in chosen)]
            if at:
                given = model.probabilities([good[i][1].resized[model.preprocessing] for i in at])
                probabilities |= {(i, name): row for name in names for i, row in zip(at, given[name], strict=True)}
        for i, (path, _) in enumerate(good):
            for bound in asked[i]:
                row = probabilities[i, bound.task.name]
                of_labels = dict(zip(bound.task.labels, row.tolist(), strict=True))
                best = sorted(of_labels.items(), key=lambda each: -each[1])[:top]
                yield Answer(path, bound.task.name, tuple(best), of_labels)
    if bad:
        raise BadImagesError(bad, total)


class _GroupModel(keras.Model):
    """Tasks of one trunk at one image size as one model, preprocessed images to float32 probabilities by task name.

    Attributes:
        tasks: the tasks.
        preprocessing: theirs.
    """

    def __init__(self, tasks: list[BoundTask]):
        super().__init__(name="tasks_of_a_trunk")
        self.tasks, self.preprocessing = tasks, tasks[0].task.preprocessing

    def call(self, images):
        features = None
        logits = {}
        for bound in self.tasks:
            if bound.train_spec.kinds:
                logits[bound.task.name] = bound.model(images, training=False)
            else:
                features = bound.features(images, training=False) if features is None else features
                logits[bound.task.name] = bound.head(features)
        return {name: keras.ops.softmax(each) for name, each in logits.items()}

    def probabilities(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the probabilities `(images, classes)` by task name.

        Args:
            images: at most `BATCH`, float32 `(image_size, image_size, 3)` in 0..255.
        """
        # Filled up, a last batch has the shape of the others, and nothing is traced again.
        batch = np.zeros((BATCH, *images[0].shape), "float32")
        batch[: len(images)] = images
        outputs = self.predict_on_batch(np.asarray(self.preprocessing.scale(batch)))
        return {name: each[: len(images)] for name, each in outputs.items()}


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """An image that was decoded.

    Attributes:
        shape: height and width in pixels, upright.
        resized: for each preprocessing its float32 pixels `(image_size, image_size, 3)` in 0..255.
    """

    shape: tuple[int, int]
    resized: dict[Preprocessing, np.ndarray]


def decoder(preprocessings: Sequence[Preprocessing]) -> Callable[[Sequence[bytes]], list[DecodedImage | None]]:
    """Returns a function from encoded images to decoded and resized ones, None for those that cannot be read.

    Threads may call it at once.
    """
    import tensorflow as tf

    def one(contents):
        images = {alpha: decode(contents, alpha) for alpha in dict.fromkeys(each.alpha for each in preprocessings)}
        return tf.shape(next(iter(images.values())))[:2], [each.resize(images[each.alpha]) for each in preprocessings]

    sizes = [tf.TensorSpec((each.image_size, each.image_size, None)) for each in preprocessings]

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def all_of(contents):
        return tf.map_fn(one, contents, fn_output_signature=(tf.TensorSpec((2,), tf.int32), sizes))

    def decoded(contents: Sequence[bytes]) -> list[DecodedImage | None]:
        if not contents:
            return []
        try:
            with tf.device("CPU"):
                shapes, resized = all_of(tf.constant(contents, tf.string))
        except tf.errors.OpError:
            # One that cannot be decoded ends the whole call: halves find it.
            half = len(contents) // 2
            return [*decoded(contents[:half]), *decoded(contents[half:])] if half else [None]
        arrays = [each.numpy() for each in resized]
        return [
            DecodedImage(
                (int(height), int(width)), {p: array[i] for p, array in zip(preprocessings, arrays, strict=True)}
            )
            for i, (height, width) in enumerate(shapes.numpy())
        ]

    return decoded


def _reader(preprocessings: Sequence[Preprocessing]):
    """Returns a function from paths to images, None for those that cannot be read; threads may call it at once."""
    decoded = decoder(preprocessings)

    def read(paths: Sequence[str]) -> list[DecodedImage | None]:
        found = {i: contents for i, path in enumerate(paths) if (contents := _contents(path)) is not None}
        images = dict(zip(found, decoded(list(found.values())), strict=True))
        return [images.get(i) for i in range(len(paths))]

    return read


def _contents(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def _ahead(read, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[DecodedImage | None]]]:
    """Yields chunks of paths with their images, read by threads, at most one chunk per thread ahead."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque = collections.deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(read, chunk)))
            if len(waiting) > workers:
                done, images = waiting.popleft()
                yield done, images.result()
        while waiting:
            done, images = waiting.popleft()
            yield done, images.result()


def _batched(paths: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(paths, BATCH)):
        yield chunk


def pick(tasks: Iterable[BoundTask], height: int, width: int) -> BoundTask:
    """Returns the task whose image size is nearest to an image's.

    This is the paper's domain adaptation at inference. An image's size is the geometric mean of its sides. The
    nearest is the one with the smallest ratio: 64 px are nearer to 48 than to 96. Of two equally near the larger is taken,
    which loses no detail.

    Args:
        tasks: the candidates, at least one.
        height, width: of the image in pixels, at least 1.

    Raises:
        ModelPatchError: there is no task, or the image has no pixels.
    """
    tasks = list(tasks)
    if not tasks:
        raise ModelPatchError("there is no task to pick from: give at least one")
    if min(height, width) < 1:
        raise ModelPatchError(f"an image of {height} x {width} pixels has no size to pick by: expected at least 1 x 1")
    side = math.sqrt(height * width)
    sizes = {bound.task.preprocessing.image_size: bound for bound in reversed(tasks)}
    return sizes[min(sizes, key=lambda size: (round(abs(math.log(size / side)), 9), -size))]
