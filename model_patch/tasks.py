"""A task: what one patch and one head are learnt for."""

import dataclasses

import keras

from model_patch.errors import ModelPatchError
from model_patch.preprocessing import Preprocessing

HEAD = "head"
"""Name of a task's last layer, in the Keras graph and in patch files."""


@dataclasses.dataclass(frozen=True)
class Task:
    """An image classification task.

    Attributes:
        name: the user's name for it; also names files, so no path separators.
        labels: class names, in the order of the logits; at least two.
        preprocessing: image size and scaling, those of the trunk.

    Raises:
        ModelPatchError: the name is empty or not usable as a file name, or the labels are fewer than two or repeat.
    """

    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    def __post_init__(self):
        if not self.name or any(c in self.name for c in "/\\\0") or self.name in (".", ".."):
            raise ModelPatchError(f"the task name {self.name!r} cannot name a file: use letters, digits, '-' and '_'")
        if len(self.labels) < 2:
            raise ModelPatchError(f"the task {self.name!r} has {len(self.labels)} class: expected at least two")
        if len(set(self.labels)) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ModelPatchError(f"the task {self.name!r} has the label {twice[0]!r} more than once")

    def head(self, seed: int) -> keras.Layer:
        """Returns a new last layer, random by `seed`: features `(batch, channels)` to float32 logits `(batch, classes)`."""
        kernel = keras.initializers.GlorotUniform(seed)
        return keras.layers.Dense(len(self.labels), name=HEAD, kernel_initializer=kernel, dtype="float32")

    def loss(self) -> keras.losses.Loss:
        """Returns the loss between int labels `(batch,)` and logits `(batch, classes)`."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns new metrics of int labels and logits; the first is the one that results report, in 0..1."""
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def to_json(self) -> dict:
        """Returns the task as a JSON object, for patch files and SavedModels."""
        return {**dataclasses.asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_json(cls, fields: dict) -> "Task":
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ModelPatchError: the object is not one that `to_json` wrote.
        """
        return cls(fields["name"], tuple(fields["labels"]), Preprocessing(**fields["preprocessing"]))
