"""Predicting with tasks: the labels of image files, and the choice among tasks that differ in image size alone."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np

from model_patch.bind import BoundTask, bind_patch
from model_patch.data.decoding import decode_file
from model_patch.errors import ModelPatchError, require_each_once, unknown
from model_patch.files import matching
from model_patch.patch import Patch
from model_patch.tasks import CLASSIFICATION
from model_patch.trunks import open_trunk


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one task says of one image.

    Attributes:
        file: the image's path.
        task: the task's name.
        top: `(label, probability)`, most probable first; probabilities in 0..1.
    """

    file: str
    task: str
    top: tuple[tuple[str, float], ...]


def open_tasks(trunk: str, patches: Sequence[str]) -> list[BoundTask]:
    """Opens a trunk once and binds the task of each patch file to it.

    Args:
        trunk: spec of the trunk, opened at the image size that the patches were learnt at.
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
    files: str | Sequence[str],
    top: int = 3,
    pick_resolution: bool = False,
) -> Iterator[Answer]:
    """Yields one answer per image and task.

    Args:
        tasks: one bound task, or several.
        files: paths of image files or patterns, see `files.matching`; one may be given without a list.
        top: how many labels an answer names at most; at least 1.
        pick_resolution: each image is answered once, by the task whose image size is nearest to its own, see `pick`.

    Raises:
        ModelPatchError: a file is missing or is not an image, or a task is no classification; before anything is yielded.
    """
    tasks = [tasks] if isinstance(tasks, BoundTask) else tasks
    files = [files] if isinstance(files, str) else files
    for bound in tasks:
        if bound.task.type != CLASSIFICATION:
            raise ModelPatchError(
                f"{bound.task.name!r} is a {bound.task.type} task, which has no labels for whole images: use "
                "scripts/detect.py predict"
            )
    paths = matching(files)
    images = [decode_file(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        for bound in [pick(tasks, *image.shape[:2])] if pick_resolution else tasks:
            # As an array: models on other backends take no tensors of TensorFlow's, which decodes and resizes.
            logits = bound.model(np.asarray(bound.task.preprocessing(image))[None], training=False)
            probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))[0]
            best = probabilities.argsort()[::-1][:top]
            yield Answer(path, bound.task.name, tuple((bound.task.labels[i], float(probabilities[i])) for i in best))


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
