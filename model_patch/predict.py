"""Predicting with tasks: the labels of image files, and the choice among tasks that differ in image size alone."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np

from model_patch.bind import BoundTask, bind_patch
from model_patch.data.image_files import image_paths
from model_patch.data.stream import DecodedImage, Filler, read_images
from model_patch.errors import ModelPatchError, require_each_once, unknown
from model_patch.patch import Patch
from model_patch.trunks import open_trunk


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one task predicts for one image.

    Attributes:
        file: the image's path.
        task: the task's name.
        top: `(label, probability)`, most probable first; probabilities in 0..1. Of a multi-label task those that are
            predicted, of a regression all quantities with their values.
        probabilities: by label, of all labels; of a regression the values.
        label: all that is predicted as one text: the most probable label, or those that are predicted or the values, joined by
            semicolons.
        probability: probability of the label, where it is a single one; else None.
    """

    file: str
    task: str
    top: tuple[tuple[str, float], ...]
    probabilities: dict[str, float] = dataclasses.field(repr=False, compare=False)
    label: str = dataclasses.field(default="", compare=False)

    @property
    def probability(self) -> float | None:
        """See above."""
        return dict(self.top).get(self.label)


def open_tasks(trunk: str, patches: Sequence[str], calibrated: bool = False) -> list[BoundTask]:
    """Opens a trunk once and binds the task of each patch file to it.

    Args:
        trunk: spec of the trunk, opened at the image size that the patches were trained at.
        patches: paths of patch files.
        calibrated: whether probabilities are those of the temperature in each file; logits and labels never are.

    Raises:
        ModelPatchError: the trunk or a patch cannot be opened, they do not belong together, two tasks share a name, no
            patch is given, or calibrated probabilities are requested of a patch without a temperature.
    """
    if not patches:
        raise ModelPatchError("no patch is given: expected --patches=FILE, or several joined by commas")
    loaded = [Patch.load(path) for path in patches]
    if calibrated:
        loaded = [
            dataclasses.replace(patch, task=dataclasses.replace(patch.task, use_temperature=True)) for patch in loaded
        ]
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
) -> Iterator[Prediction]:
    """Predicts image files; yields one prediction per image and task, in the order of the images.

    Files are read, decoded and resized in threads, a few batches ahead of the models, so memory does not grow with the
    number of images. All tasks of one trunk and image size are one compiled model, in which those that only have a last
    layer of their own share the trunk's features.

    Args:
        tasks: one bound task, or several.
        files: paths of image files, patterns or folders, see `data.image_files.image_paths`; or an iterator of paths, which are taken
            as they come. One may be given without a list.
        top: how many labels a prediction names at most; at least 1.
        pick_resolution: each image is predicted once, by the task whose image size is nearest to its own, see `pick`.

    Raises:
        ModelPatchError: a task is a detection, or a name in a list matches no file; before anything is yielded.
        BadImagesError: images that are missing or cannot be read; after everything else was yielded.
    """
    tasks = [tasks] if isinstance(tasks, BoundTask) else list(tasks)
    for bound in tasks:
        if bound.task.link is None:
            raise ModelPatchError(
                f"{bound.task.name!r} is a {bound.task.type} task, which has no labels for whole images: use "
                "scripts/detect.py predict"
            )
    if isinstance(files, str):
        files = [files]
    paths = iter(image_paths(files) if isinstance(files, Sequence) else files)
    return _predicted(tasks, paths, top, pick_resolution)


def _predicted(tasks: list[BoundTask], paths: Iterator[str], top: int, pick_resolution: bool) -> Iterator[Prediction]:
    groups: dict[tuple, list[BoundTask]] = collections.defaultdict(list)
    for bound in tasks:
        groups[id(bound.trunk), bound.task.preprocessing].append(bound)
    models = [_GroupModel(group) for group in groups.values()]
    for files, images in read_images(paths, [model.preprocessing for model in models]):
        of_images = [[pick(tasks, *image.shape)] if pick_resolution else tasks for image in images]
        predictions: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        for model in models:
            names = {bound.task.name for bound in model.tasks}
            at = [i for i, chosen in enumerate(of_images) if any(bound.task.name in names for bound in chosen)]
            if at:
                given = model.predictions([images[i] for i in at])
                predictions |= {
                    (i, name): {key: each[k : k + 1] for key, each in given[name].items()}
                    for name in names
                    for k, i in enumerate(at)
                }
        for i, file in enumerate(files):
            for task in (bound.task for bound in of_images[i]):
                found = predictions[i, task.name]
                numbers = dict(zip(task.labels, found[task.numbers][0].tolist(), strict=True))
                (label,) = task.texts(found)
                yield Prediction(file, task.name, tuple(task.top(numbers, label, top)), numbers, label)


class _GroupModel(keras.Model):
    """Tasks of one trunk at one image size as one model, resized images in 0..255 to what `Task.decode` returns by task name.

    Attributes:
        tasks: the tasks.
        preprocessing: theirs.
    """

    def __init__(self, tasks: list[BoundTask]):
        super().__init__(name="tasks_of_a_trunk")
        self.tasks, self.preprocessing = tasks, tasks[0].task.preprocessing
        self._filled = Filler(self.preprocessing)

    def call(self, images):
        images = self.preprocessing.scale(images)
        features = {}
        outputs = {}
        for bound in self.tasks:
            if bound.train_spec.kinds:
                outputs[bound.task.name] = bound.model(images, training=False)
            else:
                pooling = bound.task.pooling
                if pooling not in features:
                    features[pooling] = bound.features(images, training=False)
                outputs[bound.task.name] = bound.head(features[pooling])
        tasks = {bound.task.name: bound.task for bound in self.tasks}
        return {name: tasks[name].decode(each, **tasks[name].constants()) for name, each in outputs.items()}

    def predictions(self, images: Sequence[DecodedImage]) -> dict[str, dict[str, np.ndarray]]:
        """Returns the predictions by task name, of at most `BATCH` images."""
        predicted = self.predict_on_batch(self._filled(images))
        return {
            name: {key: each[: len(images)] for key, each in of_task.items()} for name, of_task in predicted.items()
        }


def pick(tasks: Iterable[BoundTask], height: int, width: int) -> BoundTask:
    """Returns the task whose image size is nearest to an image's.

    This is the paper's domain adaptation at inference. An image's size is the geometric mean of its sides. The
    nearest is the one with the smallest ratio: 64 px are nearer to 48 than to 96. Of two equally near the larger is taken,
    which loses no detail.

    Args:
        tasks: the candidates, at least one.
        height, width: image size in pixels, at least 1.

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
