"""Using a detector that was trained: open it, measure it, and run it on image files."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model_patch.bind import BoundTask, bind_patch
from model_patch.data.decoding import decode_file
from model_patch.detection.data import open_detection_data
from model_patch.detection.evaluation import detect, evaluate_detector
from model_patch.detection.pictures import draw, save_png
from model_patch.detection.task import DetectionTask
from model_patch.errors import ModelPatchError
from model_patch.files import matching
from model_patch.patch import Patch
from model_patch.trunks import open_trunk


@dataclasses.dataclass(frozen=True)
class Found:
    """What a detector finds in one file.

    Attributes:
        file: the image's path.
        objects: `(label, score, box)`, best first; boxes are `(ymin, xmin, ymax, xmax)` in 0..1.
        picture: path of the image with its boxes.
    """

    file: str
    objects: tuple[tuple[str, float, tuple[float, float, float, float]], ...]
    picture: Path


def open_detector(path: str | Path, trunk: str | None = None) -> BoundTask:
    """Opens a detector with its trunk.

    Args:
        path: its patch file.
        trunk: spec of the trunk; None for the one that the patch names, as it was when the detector was trained.

    Raises:
        ModelPatchError: the patch or the trunk cannot be opened, they do not belong together, or it is no detector.
    """
    patch = Patch.load(path)
    if not isinstance(patch.task, DetectionTask):
        raise ModelPatchError(
            f"{path} is for the {patch.task.type} task {patch.task.name!r}: expected a detector; use scripts/predict.py"
        )
    return bind_patch(open_trunk(trunk or patch.trunk, patch.task.preprocessing.image_size), patch)


def evaluate_on(bound: BoundTask, data: str, max_images: int | None = None) -> dict[str, float]:
    """Measures a detector on the test images of a spec, by `evaluation.METRICS`.

    Raises:
        ModelPatchError: the images cannot be opened, or have other classes than the detector.
    """
    opened = open_detection_data(data)
    if opened.labels != bound.task.labels:
        raise ModelPatchError(
            f"{data} has {len(opened.labels)} classes, {opened.labels[0]!r} first, and the detector {bound.task.name!r} "
            f"{len(bound.task.labels)}, {bound.task.labels[0]!r} first: give images with the classes that it was trained on"
        )
    return evaluate_detector(bound, opened.test, max_images=max_images or None)


def predict_files(bound: BoundTask, files: Sequence[str], folder: str | Path, score: float) -> Iterator[Found]:
    """Yields what a detector finds in each file, and writes a picture of it.

    Args:
        bound: a detection task.
        files: paths of image files or patterns, see `files.matching`.
        folder: for the pictures, `NAME.png` for an image `NAME.jpg`.
        score: least score of what is shown.

    Raises:
        ModelPatchError: a file is missing or is not an image, or two files have one name; before anything is written.
    """
    paths = matching(files)
    stems = [Path(path).stem for path in paths]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice:
        raise ModelPatchError(f"two images are called {twice!r}, and so would be their pictures: give them one by one")
    images = [decode_file(path, bound.task.preprocessing.alpha) for path in paths]
    resized = (bound.task.preprocessing.resize(image)[None] for image in images)
    for path, stem, image, found in zip(paths, stems, images, detect(bound, resized, len(paths)), strict=True):
        shown = found.above(score)
        picture = Path(folder) / f"{stem}.png"
        save_png(draw(np.asarray(image), shown, bound.task.labels), picture)
        objects = zip(shown.classes, shown.scores.tolist(), shown.boxes.tolist(), strict=True)
        yield Found(path, tuple((bound.task.labels[i], value, tuple(box)) for i, value, box in objects), picture)
