"""Re-estimating a patch's batch-norm statistics on its task's images.

A moving average forgets slowly or jitters, depending on its momentum and on how many steps there were; after a short
training it decides more about test accuracy than the trained values (docs/choices.md). So the statistics are re-estimated
at the end, as averages over batches that the finished patch processes in training mode.
"""

import dataclasses
import itertools
from collections.abc import Callable

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError, require_number
from model_patch.graph.keras_private import layers_within
from model_patch.join import JoinedTasks
from model_patch.layers import PatchedBatchNormalization
from model_patch.progress import progress


def estimate_statistics(trained: BoundTask | JoinedTasks, batches, num_batches: int = 50):
    """Sets every mean and variance that training moves to those of the task's images.

    Over batches of n_i images with means m_i and variances v_i, the mean becomes avg(m_i) and the variance, by the mixture
    formula, avg(v_i + m_i^2) - avg(m_i)^2, where avg weights each batch by n_i: every image counts the same, however the
    images are split into batches. Nothing happens where the task owns no statistics, or keeps the trunk's.

    Of joined tasks, the statistics of a task come from its own images. Those that tasks share, such as a trained trunk's,
    come from the merged batches, and where image sizes differ from those of all sizes.

    Args:
        trained: only its `moving_mean` and `moving_variance` change.
        batches: iterable of `(images, labels)`, images `(batch, height, width, 3)` preprocessed; for joined tasks dicts by
            task name, and the iterable can be gone through more than once.
        num_batches: how many are used at most; at least one must come.

    Raises:
        ModelPatchError: there are no batches, or `num_batches` is not a whole number above 0.
    """
    require_number("num_batches", num_batches, 1, whole=True)
    if isinstance(trained, BoundTask):
        # A head without statistics is left out: its width may differ from one task to the next, see `experiments.binder`.
        model = trained.model if any(map(_moves, layers_within(trained.head))) else trained.features
        _assign(_measure(model, (images for images, _ in batches), num_batches))
        return
    layers = {name: {id(layer) for layer in layers_within(bound.model)} for name, bound in trained.tasks.items()}

    def num_images(layer, images):
        return sum(len(x) for name, x in images.items() if id(layer) in layers[name])

    measured: dict[int, _Moments] = {}
    for group in trained.groups:
        images = ({name: x[name] for name in group.input} for x, _ in batches)
        for key, moments in _measure(group, images, num_batches, num_images).items():
            measured[key] = measured[key] + moments if key in measured else moments
    _assign(measured)


class EstimateStatistics(keras.callbacks.Callback):
    """Calls `estimate_statistics` when training ends, for a task that is trained by Keras' own `fit`.

        bound.model.fit(dataset, callbacks=[mp.EstimateStatistics(bound, dataset)])

    `model_patch.fit` does this itself. Args: as for `estimate_statistics`.
    """

    def __init__(self, trained: BoundTask | JoinedTasks, batches, num_batches: int = 50):
        super().__init__()
        self.trained_tasks, self.batches, self.num_batches = trained, batches, num_batches

    def on_train_end(self, logs=None):
        estimate_statistics(self.trained_tasks, self.batches, self.num_batches)


@dataclasses.dataclass
class _Moments:
    """The number of images that a batch norm has seen, and the sums over them of its inputs' means and mean squares."""

    layer: keras.layers.BatchNormalization
    count: int
    means: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def __add__(self, other: "_Moments") -> "_Moments":
        means, squares = self.means + other.means, self.squares + other.squares
        return _Moments(self.layer, self.count + other.count, means, squares)


def moves_statistics(model: keras.Model) -> bool:
    """Whether training moves statistics of a model, so that `estimate_statistics` has any to set."""
    return any(map(_moves, layers_within(model)))


def _moves(layer: keras.Layer) -> bool:
    """Whether training moves the layer's statistics."""
    if isinstance(layer, PatchedBatchNormalization):
        return layer.normalises_by_batch(training=True)
    return isinstance(layer, keras.layers.BatchNormalization) and layer.trainable


def _measure(
    model: keras.Model, batches, num_batches: int, num_images: Callable = lambda layer, images: len(images)
) -> dict[int, _Moments]:
    """Returns the moments of the batch norms whose statistics training moves, by the id of the layer.

    Args:
        model: what the batches run through.
        batches: inputs of the model.
        num_batches: how many are used at most.
        num_images: returns how many images of a batch reach a layer.
    """
    layers = list({id(layer): layer for layer in layers_within(model) if _moves(layer)}.values())
    if not layers:
        return {}
    batch_statistics = _batch_statistics(model, layers)
    measured = [_Moments(layer, 0) for layer in layers]
    some = itertools.islice(batches, num_batches)
    for images in progress(some, "statistics", num_batches, "batch"):
        if keras.backend.backend() != "tensorflow":
            images = keras.tree.map_structure(np.asarray, images)
        values = [keras.ops.convert_to_numpy(v).astype("float64") for v in batch_statistics(images)]
        parts = zip(measured, values[::2], values[1::2], strict=True)
        for i, (total, mean, variance) in enumerate(parts):
            number = num_images(total.layer, images)
            measured[i] = total + _Moments(total.layer, number, number * mean, number * (variance + mean**2))
    if not measured[0].count:
        raise ModelPatchError("no image came to estimate statistics on: give at least one batch")
    return {id(moments.layer): moments for moments in measured}


def _batch_statistics(model: keras.Model, layers: list[keras.layers.BatchNormalization]) -> Callable:
    """Returns a function from images to the means and variances of the batch in these layers, by turns."""
    is_tensorflow, key = keras.backend.backend() == "tensorflow", tuple(id(layer) for layer in layers)
    if is_tensorflow and getattr(model, "_mp_statistics", (None,))[0] == key:
        return model._mp_statistics[1]
    index = {id(variable): i for i, variable in enumerate(model.non_trainable_variables)}
    moving = [index[id(v)] for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    trainable = [v.value for v in model.trainable_variables]
    # Moving averages that start from 0 hold (1 - momentum) times the batch's statistics after one step: no state is
    # touched, and dividing loses no digits, as it would if they started from other values.
    start = [
        keras.ops.zeros_like(v.value) if i in set(moving) else v.value
        for i, v in enumerate(model.non_trainable_variables)
    ]
    scales = [1.0 - layer.momentum for layer in layers for _ in range(2)]

    def batch_statistics(images):
        _, after = model.stateless_call(trainable, start, images, training=True)
        return [after[i] / scale for i, scale in zip(moving, scales, strict=True)]

    compiled = _compile(batch_statistics, model.input)
    if is_tensorflow:  # It reads variables whenever it is called: what was traced before training is right after it.
        object.__setattr__(model, "_mp_statistics", (key, compiled))
    return compiled


def _assign(measured: dict[int, _Moments]):
    for moments in measured.values():
        mean, square = moments.means / moments.count, moments.squares / moments.count
        moments.layer.moving_mean.assign(mean)
        moments.layer.moving_variance.assign(np.maximum(square - mean**2, 0.0))


def _compile(function: Callable, inputs) -> Callable:
    """Compiles a function of a model's `inputs` for the backend in use: on TensorFlow, one graph for all batch sizes."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        spec = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
        return tf.function(function, input_signature=[spec], autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function
