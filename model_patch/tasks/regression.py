"""Regression: one number, or several, for an image."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from model_patch.errors import ModelPatchError
from model_patch.tasks import Task

if TYPE_CHECKING:
    import keras

    from model_patch.data.images import ImageData

SAME = 0.01
"""Values that differ by less, in standard deviations of the training images' values, are the same."""


@dataclasses.dataclass(frozen=True)
class RegressionTask(Task):
    """A regression task. The head gives each quantity in standard deviations from its mean; `decode` brings it to its own unit.

    Attributes:
        labels: the names of the quantities; one is enough.
        mean, deviation: mean and standard deviation of each quantity over the training images; by default 0 and 1.

    Raises:
        ModelPatchError: as for `Task`, or the means and deviations are not finite numbers, one for each quantity.
    """

    type: ClassVar[str] = "regression"
    min_labels: ClassVar[int] = 1
    link: ClassVar[str | None] = "identity"
    figures: ClassVar[tuple[str, ...]] = ("R2", "MAE")
    numbers: ClassVar[str] = "values"

    mean: tuple[float, ...] | None = dataclasses.field(default=None, kw_only=True)
    deviation: tuple[float, ...] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        for each, least in ((self.mean, -math.inf), (self.deviation, 0.0)):
            if each is not None and (
                len(each) != len(self.labels) or not all(math.isfinite(value) and value > least for value in each)
            ):
                raise ModelPatchError(
                    f"the task {self.name!r} has the mean {self.mean} and the deviation {self.deviation}: expected finite "
                    f"numbers, a positive deviation, for each of {len(self.labels)} quantities"
                )

    @classmethod
    def fields_of(cls, data: ImageData) -> dict[str, Any]:
        """Returns mean and deviation of the training images' numbers; of a constant the deviation is 1."""
        values = data.train.image_labels().astype("float64")
        mean, deviation = (
            tuple(map(float, each.astype("float32"))) for each in (values.mean(axis=0), values.std(axis=0))
        )
        return {"mean": mean, "deviation": tuple(each or 1.0 for each in deviation)}

    def loss(self) -> keras.losses.Loss:
        """Returns the mean squared error, in squared standard deviations, of numbers `(batch, quantities)` and outputs."""
        return _loss_class()(*self._standard())

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns none: R2 is no mean over images, and the loss is one minus it."""
        return []

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Returns the numbers in standard deviations from the mean, float32."""
        mean, deviation = self._standard()
        return ((labels - mean) / deviation).astype("float32")

    def measure(self, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the coefficient of determination, 0 of a single image, and the mean absolute error; means over quantities."""
        from sklearn import metrics

        values = predictions["values"]
        r2 = metrics.r2_score(labels, values) if len(labels) > 1 else 0.0
        return {"R2": float(r2), "MAE": float(metrics.mean_absolute_error(labels, values))}

    def per_label(self, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Returns figures of each quantity: a row of a table, by the names of its columns."""
        from sklearn import metrics

        return [
            {
                "label": label,
                "mean": float(true.mean()),
                **self.measure(true[:, None], {"values": value[:, None]}),
                "root mean squared error": float(metrics.root_mean_squared_error(true, value)),
            }
            for label, true, value in zip(self.labels, labels.T, predictions["values"].T, strict=True)
        ]

    def errors(self, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns how wrong each prediction is, float `(images,)`: the largest difference, in standard deviations."""
        return np.abs(self.targets(labels) - self.targets(predictions["values"])).max(axis=1)

    def standard_error(self, value: float, num_images: int) -> float:
        """Returns that of R2, for many images (Olkin and Finn 1995)."""
        return 2 * math.sqrt(max(value, 0.0)) * (1 - value) / math.sqrt(num_images)

    def calibrate(self, labels: np.ndarray, outputs: np.ndarray) -> Task:
        """Returns the task itself: it has no probabilities and no thresholds."""
        return self

    def constants(self) -> dict[str, np.ndarray]:
        """Returns what `decode` takes besides outputs: `mean` and `deviation`."""
        mean, deviation = self._standard()
        return {"mean": mean, "deviation": deviation}

    @classmethod
    def decode(cls, outputs, mean, deviation) -> dict:  # type: ignore[override]
        """Returns `values`, the numbers in their own units."""
        return {"values": outputs * deviation + mean}

    def texts(self, predictions: Mapping[str, np.ndarray]) -> list[str]:
        """Returns the numbers for each image, joined by semicolons."""
        return [";".join(f"{value:.6g}" for value in row) for row in predictions["values"]]

    def true_texts(self, labels: np.ndarray) -> list[str]:
        """Returns the same of the true numbers."""
        return self.texts({"values": labels})

    @classmethod
    def strings(cls, predictions: Mapping, labels) -> None:
        """Returns None: there are no labels to name."""

    def top(self, numbers: Mapping[str, float], text: str, most: int) -> Sequence[tuple[str, float]]:
        """Returns all quantities."""
        return list(numbers.items())

    def agrees(self, predictions: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns for which images two predictions differ by less than `SAME`."""
        return np.abs(self.targets(predictions["values"]) - self.targets(others["values"])).max(axis=-1) < SAME

    def _standard(self) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.labels)
        return np.array(self.mean or [0.0] * count, "float32"), np.array(self.deviation or [1.0] * count, "float32")


@functools.cache
def _loss_class() -> type[keras.losses.Loss]:
    """Returns the class of the loss, which only Keras makes possible."""
    import keras
    from keras import ops

    @keras.saving.register_keras_serializable(package="model_patch")
    class StandardisedError(keras.losses.Loss):
        """Mean squared difference of numbers from outputs, in squared standard deviations.

        Args:
            mean, deviation: mean and standard deviation of each quantity.
        """

        def __init__(self, mean, deviation, name="standardised_error", **kwargs):
            super().__init__(name=name, **kwargs)
            self.mean, self.deviation = np.asarray(mean, "float32"), np.asarray(deviation, "float32")

        def call(self, y_true, y_pred):
            standard = (ops.cast(y_true, y_pred.dtype) - self.mean) / self.deviation
            return ops.mean(ops.square(standard - y_pred), axis=-1)

        def get_config(self):
            return {**super().get_config(), "mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    return StandardisedError
