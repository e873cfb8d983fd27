"""Using a detector that was trained: open it, measure it, and run it on image files."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from model_patch.bind import BoundTask, bind_patch
from model_patch.data.decoding import decode_file
from model_patch.data.image_files import image_paths
from model_patch.data.stream import Filler, read_images
from model_patch.detection.data import open_detection_data
from model_patch.detection.evaluation import evaluate_detector, finder
from model_patch.detection.pictures import draw, save_png
from model_patch.detection.task import DetectionTask
from model_patch.errors import ModelPatchError
from model_patch.files import as_path
from model_patch.patch import Patch
from model_patch.trunks import open_trunk


@dataclasses.dataclass(frozen=True)
class Found:
    """What a detector finds in one file.

    Attributes:
        file: the image's path.
        objects: `(label, score, box)`, best first; boxes are `(ymin, xmin, ymax, xmax)` in 0..1.
        picture: path of the image with its boxes; None if it was not drawn.
    """

    file: str
    objects: tuple[tuple[str, float, tuple[float, float, float, float]], ...]
    picture: Path | None


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


def predict_files(
    bound: BoundTask, files: str | Iterable[str], score: float = 0.4, pictures: str | Path | None = None
) -> Iterator[Found]:
    """Yields what a detector finds in each file, in their order; memory does not grow with their number.

    Args:
        bound: a detection task.
        files: paths, patterns and folders, or an iterator of paths, as for `model_patch.predict`.
        score: least score of what is yielded and drawn.
        pictures: folder for a picture of each image, `NAME.png` for `NAME.jpg`, `NAME-2.png` for the next of that name;
            None draws none.

    Raises:
        ModelPatchError: a name in a list matches no file; before anything is yielded.
        BadImagesError: images that are missing or cannot be read; after everything else was yielded.
    """
    files = [files] if isinstance(files, str) else files
    return _found(bound, image_paths(files) if isinstance(files, Sequence) else files, score, pictures)


def _found(bound: BoundTask, paths: Iterable[str], score: float, pictures: str | Path | None) -> Iterator[Found]:
    prepare, labels, find = bound.task.preprocessing, bound.task.labels, finder(bound)
    filled = Filler(prepare)
    stems: Counter[str] = Counter()
    for files, images in read_images(paths, [prepare]):
        for file, found in zip(files, find(filled(images)), strict=False):
            shown, picture = found.above(score), None
            if pictures is not None:
                stem = Path(file).stem
                stems[stem] += 1
                picture = as_path(pictures) / (f"{stem}.png" if stems[stem] == 1 else f"{stem}-{stems[stem]}.png")
                save_png(draw(np.asarray(decode_file(file, prepare.alpha)), shown, labels), picture)
            objects = zip(shown.classes, shown.scores.tolist(), shown.boxes.tolist(), strict=True)
            yield Found(file, tuple((labels[i], value, tuple(box)) for i, value, box in objects), picture)
