"""A task: what one patch and one head are trained for."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from model_patch.errors import ModelPatchError, unknown
from model_patch.preprocessing import Preprocessing

if TYPE_CHECKING:  # Methods import Keras when they make a part of a net: reading what a patch file says takes none.
    import keras

    from model_patch.data.images import ImageData

HEAD = "head"
"""Name of a task's last layer in patch files, and in the Keras graph where no layer of the trunk has it."""

CLASSIFICATION = "classification"

POOLINGS = ("auto", "class", "mean", "class+mean")
"""How the tokens of a trunk become features, see `Task`."""

_TYPES: dict[str, type[Task]] = {}
"""Subclasses by type; each puts itself there when it is defined."""

_MODULES = {each.name: f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__)}
_MODULES["detection"] = "model_patch.detection.task"
"""Where types are defined: each module of this folder defines the one of its name. Imported when the type is named."""

MOST_TEMPERATURE = 20.0


def task_type(name: str) -> type[Task]:
    """Returns the class of a type of task.

    Raises:
        ModelPatchError: there is none of that name.
    """
    if name in _MODULES:
        importlib.import_module(_MODULES[name])
    if name not in _TYPES:
        raise unknown("type of task", name, {*_MODULES, *_TYPES})
    return _TYPES[name]


def require_one_output_per_label(task: Task, what: str):
    """Checks that the head of a task is a dense layer with an output for each label.

    Raises:
        ModelPatchError: it is another one; `what`, such as `a bank`, says what needs it.
    """
    if task.link is None:
        known = ", ".join(sorted({CLASSIFICATION, *_MODULES} - {task.type}))
        raise ModelPatchError(
            f"{task.name!r} is a {task.type} task: {what} takes {known}; train it alone and export it as saved_model"
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """An image classification task; other types of task are subclasses, each in a module of its own.

    What each type says of itself: `bind` needs `features` and `head`; training `loss`, `metrics`, and for the last layer alone
    `link` and `targets`; evaluation `figures` and `measure`; predictions and exports `decode` and `texts` or `strings`.
    A type with `link` fits into everything: joint training, banks and every export.

    Attributes:
        name: the user's name for it; also names files, so no path separators.
        labels: class names, in the order of the logits; at least two (`min_labels`).
        preprocessing: image size and scaling, those of the trunk.
        pooling: what a head takes of a trunk that gives tokens: `class`, the first token; `mean`, that of the patches' tokens;
            `class+mean`, both concatenated, as in the linear evaluation of DINOv2; `auto`: `class` where the trunk has such
            a token, else `mean`. Bound tasks have one of the first three, or `auto` where the trunk gives no tokens.
        prefix_tokens: how many tokens precede those of the patches, the class token and registers; `bind` takes it from the
            trunk.
        temperature: what logits are divided by to make probabilities calibrated, fitted on validation images (Guo et al.
            2017); None where it was not fitted.
        use_temperature: whether `probabilities` are calibrated so; logits never are.

    Raises:
        ModelPatchError: the name is empty or not usable as a file name, the labels are too few or repeat, or the pooling is
            unknown.
    """

    type: ClassVar[str] = CLASSIFICATION
    min_labels: ClassVar[int] = 2
    link: ClassVar[str | None] = "softmax"
    """From logits to means, in the sense of generalised linear models: a key of `training.last_layer.LINKS`. None where the
    head is not one dense layer with an output for each label."""

    figures: ClassVar[tuple[str, ...]] = ("accuracy", "macro_accuracy")
    """What `measure` returns; higher is better for the first, which results report, and the best epoch is chosen by."""

    numbers: ClassVar[str] = "probabilities"
    """Which of the predictions has a number for each label."""

    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    pooling: str = dataclasses.field(default="auto", kw_only=True)
    prefix_tokens: int | None = dataclasses.field(default=None, kw_only=True)
    temperature: float | None = dataclasses.field(default=None, kw_only=True)
    use_temperature: bool = dataclasses.field(default=False, kw_only=True)

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
        if self.temperature is not None and not 0 < self.temperature <= MOST_TEMPERATURE:
            raise ModelPatchError(f"the temperature of {self.name!r} is {self.temperature}: expected a positive number")
        if self.use_temperature and self.temperature is None:
            raise ModelPatchError(
                f"the task {self.name!r} has no temperature: train it with validation images, or leave out calibrated "
                "probabilities"
            )

    @staticmethod
    def of(data: ImageData, preprocessing: Preprocessing, name: str = "", **options) -> Task:
        """Returns a new task of the type that the labels of data are for, see `ImageData.type`.

        Args:
            data: names the labels.
            preprocessing: that of the trunk.
            name: name of the task; by default that of the data.
            **options: further fields, such as `pooling`.
        """
        own = task_type(data.type)
        return own(name or data.name, data.labels, preprocessing, **own.fields_of(data), **options)

    @classmethod
    def fields_of(cls, data: ImageData) -> dict[str, Any]:
        """Returns the fields of a new task that only this type has, by the training images of its data."""
        return {}

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
        """Returns new metrics of labels and outputs that are means over images, to watch training with; may be none."""
        import keras

        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Returns what the means of the outputs are to be, float32 `(images, outputs)`, by the labels as data have them."""
        return np.eye(len(self.labels), dtype="float32")[labels]

    def measure(self, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the `figures` by name, of at least one image.

        Args:
            labels: the true ones of the images, as data have them.
            predictions: as `decode` returns them, as arrays.
        """
        from sklearn import metrics

        predicted = predictions["logits"].argmax(axis=-1)
        recall = metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0)
        return {"accuracy": float(metrics.accuracy_score(labels, predicted)), "macro_accuracy": float(recall)}

    def standard_error(self, value: float, num_images: int) -> float:
        """Returns the standard error of the first of the `figures`, measured on that many images."""
        return math.sqrt(max(value * (1 - value), 0.0) / num_images)

    def calibrate(self, labels: np.ndarray, outputs: np.ndarray) -> Task:
        """Returns the task with what is fitted on images that it was not trained on: the temperature of lowest loss.

        Args:
            labels: as data have them, of at least one image.
            outputs: outputs of the head, float32 `(images, outputs)`.
        """
        import keras
        from scipy.optimize import minimize_scalar

        loss = self.loss()

        def of(log_temperature: float) -> float:
            return float(keras.ops.mean(loss.call(labels, outputs / np.float32(math.exp(log_temperature)))))

        most = math.log(MOST_TEMPERATURE)
        found = minimize_scalar(of, bounds=(-most, most), method="bounded", options={"xatol": 1e-3})
        return dataclasses.replace(self, temperature=round(math.exp(found.x), 4))

    def unfitted(self) -> Task:
        """Returns the task without what `calibrate` fits, for other values than those that it was fitted to."""
        return dataclasses.replace(self, temperature=None, use_temperature=False)

    def constants(self) -> dict[str, np.ndarray]:
        """Returns what `decode` takes besides outputs, float32, `()` or `(outputs,)`, by name."""
        return {"temperature": np.array(self.temperature if self.use_temperature else 1.0, "float32")}

    @classmethod
    def decode(cls, outputs, temperature) -> dict:
        """Returns what the outputs of the head say, by name, float32 `(batch, outputs)` each; on every backend.

        Of a classification `logits` and `probabilities`.

        Args:
            outputs: float32 `(batch, outputs)`. After a task's own may come some that are minus infinity: their logits say no.
            temperature: as `constants` returns it, for one task, or for the task of each example with the batch as first axis.
                Other types take their own constants.
        """
        from keras import ops

        return {"logits": outputs, "probabilities": ops.softmax(outputs / temperature)}

    def read(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `decode` of this task's outputs, as arrays."""
        from keras import ops

        found = self.decode(ops.convert_to_tensor(outputs), **self.constants())
        return {name: np.asarray(ops.convert_to_numpy(each)) for name, each in found.items()}

    def texts(self, predictions: Mapping[str, np.ndarray]) -> list[str]:
        """Returns the prediction for each image as text; of a classification the most probable label."""
        return [self.labels[i] for i in predictions["logits"].argmax(axis=-1)]

    @classmethod
    def strings(cls, predictions: Mapping, labels) -> Any:
        """Returns the same as a tensor of TensorFlow, string `(batch,)`; None for types whose predictions are no labels.

        Args:
            predictions: as `decode` returns them.
            labels: string `(outputs,)`, or `(batch, outputs)` those of the task of each example.
        """
        import tensorflow as tf

        best = tf.argmax(predictions["logits"], axis=-1)
        return tf.gather(labels, best) if labels.shape.rank == 1 else tf.gather(labels, best, batch_dims=1)

    def top(self, numbers: Mapping[str, float], text: str, most: int) -> Sequence[tuple[str, float]]:
        """Returns the labels to show, with their numbers: of a classification the most probable ones, at most `most`.

        Args:
            numbers: by label, one image's.
            text: the image's, of `texts`.
            most: at least 1.
        """
        return sorted(numbers.items(), key=lambda each: -each[1])[:most]

    def agrees(self, predictions: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns for which images two predictions say the same, bool `(images,)`."""
        return predictions["logits"].argmax(-1) == others["logits"].argmax(-1)

    def predictions(self, outputs, labels=None, constants: Mapping | None = None) -> dict:
        """Returns what an exported model says, given the outputs of the head; runs inside TensorFlow's graphs.

        It is what `decode` returns, and `label`, string `(batch,)`, what `strings` does.

        Args:
            outputs: outputs of the head.
            labels: names of the labels, a string tensor; by default `self.labels`.
            constants: tensors as in `self.constants()`, of a task that differs in nothing else; by default its own.
        """
        import tensorflow as tf

        found = self.decode(outputs, **(self.constants() if constants is None else constants))
        label = self.strings(found, tf.convert_to_tensor(self.labels if labels is None else labels))
        return found if label is None else {**found, "label": label}

    def to_json(self) -> dict:
        """Returns the task as a JSON object, for patch files and SavedModels."""
        optional = {each.name: each.default for each in dataclasses.fields(self) if each.kw_only}
        values = dataclasses.asdict(self)
        kept = {name: value for name, value in values.items() if name not in optional or value != optional[name]}
        return {"type": self.type, **kept, "labels": list(self.labels)}

    @classmethod
    def from_json(cls, fields: dict) -> Task:
        """Inverse of `to_json`, for every type of task.

        Raises:
            KeyError, TypeError, ModelPatchError: the object is not one that `to_json` wrote.
        """
        return task_type(fields.get("type", CLASSIFICATION))._from_json(fields)

    @classmethod
    def _from_json(cls, fields: dict) -> Task:
        optional = {each.name for each in dataclasses.fields(cls) if each.kw_only}
        given: dict[str, Any] = {name: v for name, v in fields.items() if name in optional}
        given |= {name: tuple(v) for name, v in given.items() if isinstance(v, list)}
        tokens, temperature = given.get("prefix_tokens"), given.get("temperature")
        if tokens is not None and (type(tokens) is not int or tokens < 0):
            raise TypeError("prefix_tokens is not a number of tokens")
        if temperature is not None and type(temperature) not in (int, float):
            raise TypeError("temperature is not a number")
        return cls(fields["name"], tuple(fields["labels"]), Preprocessing.from_json(fields["preprocessing"]), **given)


_TYPES[CLASSIFICATION] = Task
