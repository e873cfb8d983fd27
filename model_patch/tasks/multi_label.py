"""Multi-label classification: any number of labels for an image, each with a probability and a threshold of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from model_patch.errors import ModelPatchError
from model_patch.tasks import Task

if TYPE_CHECKING:
    import keras

SEPARATOR = ";"
"""Between the labels of an image, where they are written as one text."""

THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True)
class MultiLabelTask(Task):
    """A multi-label task: a sigmoid for each label.

    Attributes:
        thresholds: probability of each label, without temperature, from which it is predicted, in (0, 1); tuned on validation
            images by `calibrate`; by default `THRESHOLD` for all.

    Raises:
        ModelPatchError: as for `Task`, but one label is enough; or the thresholds are not one for each label in (0, 1).
    """

    type: ClassVar[str] = "multi_label"
    min_labels: ClassVar[int] = 1
    link: ClassVar[str | None] = "sigmoid"
    figures: ClassVar[tuple[str, ...]] = ("mAP", "macro_F1")

    thresholds: tuple[float, ...] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.thresholds is not None and (
            len(self.thresholds) != len(self.labels) or not all(0 < each < 1 for each in self.thresholds)
        ):
            raise ModelPatchError(
                f"the task {self.name!r} has the thresholds {self.thresholds}: expected one in (0, 1) for each of "
                f"{len(self.labels)} labels"
            )

    def loss(self) -> keras.losses.Loss:
        """Returns the mean over labels of the cross-entropy between 0 or 1, `(batch, labels)`, and logits."""
        import keras

        return keras.losses.BinaryCrossentropy(from_logits=True)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns none: mean average precision is no mean over images."""
        return []

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Returns the labels as float32."""
        return labels.astype("float32")

    def measure(self, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the mean over labels of average precision and of F1 at the thresholds; labels without images do not count."""
        rows = [row for row in self.per_label(labels, predictions) if row["images"]]
        return {
            name: float(np.mean([row[of_label] for row in rows])) if rows else 0.0
            for name, of_label in (("mAP", "average precision"), ("macro_F1", "F1"))
        }

    def per_label(self, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Returns figures of each label: a row of a table, by the names of its columns."""
        from sklearn import metrics

        rows = []
        for label, own, logits, present in zip(
            self.labels, labels.T, predictions["logits"].T, predictions["present"].T, strict=True
        ):
            scores = metrics.precision_recall_fscore_support(
                own, present.astype(own.dtype), average="binary", zero_division=0.0
            )
            average = metrics.average_precision_score(own, logits) if own.any() else 0.0
            figures = zip(("average precision", "precision", "recall", "F1"), (average, *scores), strict=False)
            rows.append({"label": label, "images": int(own.sum())} | {name: float(value) for name, value in figures})
        return rows

    def errors(self, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns how wrong each prediction is, float `(images,)`: the cross-entropy, summed over labels."""
        of_label = np.where(labels > 0, predictions["probabilities"], 1 - predictions["probabilities"])
        return -np.log(np.maximum(of_label, 1e-7)).sum(axis=1)

    def calibrate(self, labels: np.ndarray, outputs: np.ndarray) -> Task:
        """Returns the task with a temperature, as `Task.calibrate`, and for each label the threshold of highest F1."""
        scores = 1 / (1 + np.exp(-outputs.astype("float64")))
        thresholds = tuple(_best_threshold(labels[:, k], scores[:, k]) for k in range(len(self.labels)))
        calibrated: Any = super().calibrate(labels, outputs)
        return dataclasses.replace(calibrated, thresholds=thresholds)

    def unfitted(self) -> Task:
        """As for `Task`, without thresholds, too."""
        unfitted: Any = super().unfitted()
        return dataclasses.replace(unfitted, thresholds=None)

    def constants(self) -> dict[str, np.ndarray]:
        """Returns what `decode` takes besides outputs: the temperature, and as `least` the lowest logits that say yes."""
        thresholds = np.array(self.thresholds or [THRESHOLD] * len(self.labels))
        return {**super().constants(), "least": np.log(thresholds / (1 - thresholds)).astype("float32")}

    @classmethod
    def decode(cls, outputs, temperature, least) -> dict:  # type: ignore[override]
        """Returns `logits`, `probabilities`, and `present`, 1 where a label is predicted and 0 elsewhere."""
        from keras import ops

        present = ops.cast(outputs >= least, "float32")
        return {"logits": outputs, "probabilities": ops.sigmoid(outputs / temperature), "present": present}

    def texts(self, predictions: Mapping[str, np.ndarray]) -> list[str]:
        """Returns the labels predicted for each image, joined by semicolons."""
        return [SEPARATOR.join(self.labels[k] for k in np.flatnonzero(row)) for row in predictions["present"]]

    def true_texts(self, labels: np.ndarray) -> list[str]:
        """Returns the same of the true labels."""
        return self.texts({"present": labels})

    @classmethod
    def strings(cls, predictions: Mapping, labels) -> Any:
        """Returns the same as `texts`, as a tensor of TensorFlow."""
        import tensorflow as tf

        named = tf.where(predictions["present"] > 0, labels + SEPARATOR, "")
        return tf.strings.regex_replace(tf.strings.reduce_join(named, axis=-1), f"{SEPARATOR}$", "")

    def top(self, numbers: Mapping[str, float], text: str, most: int) -> Sequence[tuple[str, float]]:
        """Returns all labels that are predicted, the most probable first."""
        return [each for each in super().top(numbers, text, len(numbers)) if each[0] in text.split(SEPARATOR)]

    def agrees(self, predictions: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns for which images two predictions name the same labels."""
        return (predictions["present"] == others["present"]).all(axis=-1)


def _best_threshold(present: np.ndarray, scores: np.ndarray) -> float:
    """Returns the threshold of highest F1, halfway between two scores; `THRESHOLD` where no image has the label."""
    from sklearn.metrics import precision_recall_curve

    if not present.any():
        return THRESHOLD
    precision, recall, thresholds = precision_recall_curve(present, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[:-1]))
    below = thresholds[best - 1] if best else 0.0
    return float(np.clip((thresholds[best] + below) / 2, 1e-9, 1 - 1e-9))
