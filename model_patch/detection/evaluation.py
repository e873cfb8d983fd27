"""How well a detector finds what is there: COCO's measures, by COCO's own code."""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.data import pipeline
from model_patch.data.images import Split
from model_patch.errors import ModelPatchError
from model_patch.progress import progress

METRICS = ("mAP", "mAP@50", "mAP@75")
"""The mean over classes of the average precision: over IoU thresholds 0.5, 0.55, ..., 0.95, at 0.5 and at 0.75. The first
three of COCO's summary, all sizes, at most 100 detections per image."""


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a detector finds in one image, best first.

    Attributes:
        boxes: float32 `(found, 4)`, `(ymin, xmin, ymax, xmax)` in 0..1.
        scores: float32 `(found,)`, in 0..1.
        classes: int32 `(found,)`, indices into the task's labels.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def above(self, score: float) -> "Detections":
        """Returns those with at least this score."""
        kept = self.scores >= score
        return Detections(self.boxes[kept], self.scores[kept], self.classes[kept])


def detect(bound: BoundTask, images, num_images: int) -> Iterator[Detections]:
    """Yields what a detector finds in each image.

    Args:
        bound: a detection task.
        images: iterable of batches `(batch, height, width, 3)`, resized, in 0..255.
        num_images: how many there are, for the progress bar.
    """
    find = finder(bound)
    with progress(None, "detecting", num_images, "image") as bar:
        for batch in images:
            for found in find(batch):
                yield found
                bar.update()


def finder(bound: BoundTask) -> Callable[[np.ndarray], list[Detections]]:
    """Returns a function from a batch of resized images, in 0..255, to what a detector finds in each."""
    predict = _predictor(bound)

    def find(batch) -> list[Detections]:
        outputs = {name: np.asarray(value) for name, value in predict(batch).items() if name != "labels"}
        of_images = zip(*(outputs[name] for name in ("boxes", "scores", "classes", "count")), strict=True)
        return [Detections(*(each[:count] for each in found)) for *found, count in of_images]

    return find


def _predictor(bound: BoundTask) -> Callable:
    """Returns a function from resized images to the task's predictions. Suppression is TensorFlow's on any backend."""
    scale = bound.task.preprocessing.scale
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(
            lambda pixels: bound.task.predictions(bound.model(scale(pixels), training=False)),
            reduce_retracing=True,
            autograph=False,
        )
    # Not as a function of TensorFlow's: boxes are decoded by Keras' operations, which take arrays here, and no symbols.
    return lambda pixels: bound.task.predictions(np.asarray(bound.model.predict_on_batch(np.asarray(scale(pixels)))))


def evaluate_detector(
    bound: BoundTask,
    split: Split,
    *,
    batch_size: int = 64,
    max_images: int | None = None,
    together: Callable = lambda make: make(),
) -> dict[str, float]:
    """Measures a detector.

    Boxes are compared as fractions of their images: to stretch an image changes no IoU. Boxes to be ignored, crowds and
    difficult objects, are ignored (as COCO does for crowds).

    Args:
        bound: a detection task.
        split: the images.
        batch_size: images at once.
        max_images: use at most this many, the first ones; None for all.
        together: makes the batches of images of a function with the argument `share`, as `replicated.read_together`.

    Returns:
        `METRICS` by name, in 0..1.

    Raises:
        ModelPatchError: there are no boxes to find.
    """
    number = split.take(max_images)
    truth = [tuple(np.asarray(each) for each in boxes) for _, *boxes in split.stored(number)]
    images = dataclasses.replace(split, stored=lambda number: split.stored(number).map(lambda form, *_: (form, 0)))
    unscaled = dataclasses.replace(bound.task.preprocessing, mode="none")
    once = functools.partial(pipeline.batches, images, unscaled, batch_size, max_images=max_images, cache=False)
    batches = together(once)
    found = list(detect(bound, (pixels for pixels, _ in batches), number))
    return average_precision(truth, found, len(bound.task.labels))


def average_precision(truth: list[tuple], found: list[Detections], num_classes: int) -> dict[str, float]:
    """Compares detections with true boxes.

    Args:
        truth: for each image its boxes `(boxes, 4)`, classes `(boxes,)` and whether each is to be ignored `(boxes,)`.
        found: for each image.
        num_classes: how many classes there are.

    Returns:
        `METRICS` by name, in 0..1, as means over the classes that have a box to find.

    Raises:
        ModelPatchError: there are no boxes to find.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not any((~ignored).any() for _, _, ignored in truth):
        raise ModelPatchError(f"there is no box to find in {len(truth)} test images: give images with boxes")
    with contextlib.redirect_stdout(io.StringIO()):  # It prints what it does, and a table.
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "categories": [{"id": i} for i in range(num_classes)],
            "annotations": list(_annotations(truth)),
        }
        coco.createIndex()
        rows = np.concatenate([_rows(i, each) for i, each in enumerate(found)])
        if not len(rows):
            return dict.fromkeys(METRICS, 0.0)
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats[: len(METRICS)]), strict=True))


def _annotations(truth: list[tuple]) -> Iterator[dict]:
    number = 0
    for i, parts in enumerate(truth):
        for box, category, ignored in zip(*parts, strict=True):
            number += 1  # From 1: COCOeval takes a match with the number 0 for none.
            x, y, width, height = _xywh(box[None])[0].tolist()
            yield {
                "id": number,
                "image_id": i,
                "category_id": int(category),
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": int(ignored),
            }


def _rows(image: int, found: Detections) -> np.ndarray:
    """Returns detections as pycocotools takes them: `(found, 7)`, image, box, score, class."""
    number = np.full(len(found.boxes), image)
    return np.column_stack([number, _xywh(found.boxes), found.scores, found.classes]).reshape(-1, 7)


def _xywh(boxes: np.ndarray) -> np.ndarray:
    low, high = boxes[:, 1::-1], boxes[:, :1:-1]
    return np.concatenate([low, high - low], axis=-1).astype("float64")
