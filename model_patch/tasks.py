"""A task: what one patch and one head are trained for."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, ClassVar

from model_patch.errors import ModelPatchError, unknown
from model_patch.preprocessing import Preprocessing

if TYPE_CHECKING:  # Methods import Keras when they make a part of a net: reading what a patch file says takes none.
    import keras

HEAD = "head"
"""Name of a task's last layer in patch files, and in the Keras graph where no layer of the trunk has it."""

CLASSIFICATION = "classification"

POOLINGS = ("auto", "class", "mean", "class+mean")
"""How the tokens of a trunk become features, see `Task`."""

_TYPES: dict[str, type[Task]] = {}
"""Subclasses by type; each puts itself there when it is defined."""

_MODULES = {"detection": "model_patch.detection.task"}
"""Where the subclasses of this package are defined, by type: imported when a file names the type."""


@dataclasses.dataclass(frozen=True)
class Task:
    """An image classification task; other types of task are subclasses.

    What `bind` needs of a task is `features` and `head`, training `loss` and `metrics`, exports and predictions `predictions`.

    Attributes:
        name: the user's name for it; also names files, so no path separators.
        labels: class names, in the order of the logits; at least two (`min_labels`).
        preprocessing: image size and scaling, those of the trunk.
        pooling: what a head takes of a trunk that gives tokens: `class`, the first token; `mean`, that of the patches' tokens;
            `class+mean`, both concatenated, as in the linear evaluation of DINOv2; `auto`: `class` where the trunk has such
            a token, else `mean`. Bound tasks have one of the first three, or `auto` where the trunk gives no tokens.
        prefix_tokens: how many tokens precede those of the patches, the class token and registers; `bind` takes it from the
            trunk.

    Raises:
        ModelPatchError: the name is empty or not usable as a file name, the labels are too few or repeat, or the pooling is
            unknown.
    """

    type: ClassVar[str] = CLASSIFICATION
    min_labels: ClassVar[int] = 2

    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    pooling: str = dataclasses.field(default="auto", kw_only=True)
    prefix_tokens: int | None = dataclasses.field(default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _TYPES[cls.type] = cls

    def __post_init__(self):
        if not self.name or any(c in self.name for c in "/\\\0") or self.name in (".", ".."):
            raise ModelPatchError(f"the task name {self.name!r} cannot name a file: use letters, digits, '-' and '_'")
        if len(self.labels) < self.min_labels:
            least = f"expected at least {'two' if self.min_labels == 2 else self.min_labels}"
            raise ModelPatchError(f"the task {self.name!r} has {len(self.labels)} class: {least}")
        if len(set(self.labels)) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ModelPatchError(f"the task {self.name!r} has the label {twice[0]!r} more than once")
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)

    def features(self, model: keras.Model) -> keras.Model:
        """Returns the part of a trunk's graph before the head: images to its output, pooled where it is a map or tokens."""
        import keras

        from model_patch.graph.rewrite import Names
        from model_patch.layers.tokens import PoolTokens

        output = model.output
        if len(output.shape) == 4:
            output = keras.layers.GlobalAveragePooling2D(name=Names(model).new("pool"))(output)
        elif len(output.shape) == 3:
            output = PoolTokens(self.pooling, self.prefix_tokens or 0, name=Names(model).new("pool"))(output)
        return keras.Model(model.input, output, name=model.name)

    def head(self, seed: int) -> keras.Layer:
        """Returns a new last layer, random by `seed`: features `(batch, channels)` to float32 logits `(batch, classes)`."""
        import keras

        kernel = keras.initializers.GlorotUniform(seed)
        return keras.layers.Dense(len(self.labels), name=HEAD, kernel_initializer=kernel, dtype="float32")

    def loss(self) -> keras.losses.Loss:
        """Returns the loss between int labels `(batch,)` and logits `(batch, classes)`."""
        import keras

        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns new metrics of int labels and logits; the first is the one that results report, in 0..1."""
        import keras

        from model_patch.training.balanced import MacroAccuracy

        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy"), MacroAccuracy(len(self.labels))]

    def predictions(self, outputs) -> dict:
        """Returns what an exported model says, given the logits `(batch, classes)`; runs inside TensorFlow's graphs.

        `logits` and `probabilities` `(batch, classes)`, and `label`, string `(batch,)`, the most probable one.
        """
        import tensorflow as tf

        label = tf.gather(tf.constant(self.labels), tf.argmax(outputs, axis=-1))
        return {"logits": outputs, "probabilities": tf.nn.softmax(outputs), "label": label}

    def to_json(self) -> dict:
        """Returns the task as a JSON object, for patch files and SavedModels."""
        fields = {"type": self.type, **dataclasses.asdict(self), "labels": list(self.labels)}
        if self.pooling == "auto":  # There are no tokens.
            del fields["pooling"], fields["prefix_tokens"]
        return fields

    @classmethod
    def from_json(cls, fields: dict) -> Task:
        """Inverse of `to_json`, for every type of task.

        Raises:
            KeyError, TypeError, ModelPatchError: the object is not one that `to_json` wrote.
        """
        name = fields.get("type", CLASSIFICATION)
        if name == CLASSIFICATION:
            pooling, prefix_tokens = fields.get("pooling", "auto"), fields.get("prefix_tokens")
            if prefix_tokens is not None and (type(prefix_tokens) is not int or prefix_tokens < 0):
                raise TypeError("prefix_tokens is not a number of tokens")
            prepare = Preprocessing.from_json(fields["preprocessing"])
            return cls(fields["name"], tuple(fields["labels"]), prepare, pooling=pooling, prefix_tokens=prefix_tokens)
        if name in _MODULES:
            importlib.import_module(_MODULES[name])
        if name not in _TYPES:
            raise unknown("type of task", name, {CLASSIFICATION, *_MODULES, *_TYPES})
        return _TYPES[name].from_json(fields)
