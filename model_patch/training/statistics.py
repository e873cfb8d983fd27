"""Re-estimating a patch's batch-norm statistics on its task's images.

A moving average forgets slowly or jitters, depending on its momentum and on how many steps there were; after a short
training it decides more about test accuracy than what was learnt (docs/choices.md). So the statistics are measured anew
at the end, as averages over batches that the finished patch processes in training mode.
"""

import itertools

import keras
import numpy as np
from tqdm import tqdm

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError
from model_patch.layers import PatchedBatchNormalization


def estimate_statistics(bound: BoundTask, batches, num_batches: int = 50):
    """Sets the mean and variance that the task owns to those of its images.

    Over B batches with means m_i and variances v_i, the mean becomes avg(m_i) and the variance, by the mixture formula,
    avg(v_i + m_i^2) - avg(m_i)^2. Nothing happens where the task owns no statistics, or keeps the trunk's.

    Args:
        bound: the task; only its `moving_mean` and `moving_variance` change.
        batches: iterable of `(images, labels)`, images `(batch, height, width, 3)` preprocessed.
        num_batches: how many are used at most; at least one must come.

    Raises:
        ModelPatchError: there are no batches.
    """
    layers = [
        layer
        for layer in bound.model._flatten_layers()
        if isinstance(layer, PatchedBatchNormalization) and layer.statistics == "batch" and "moving_mean" in layer.own
    ]
    if not layers:
        return
    model = bound.features
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

    batch_statistics = _compile(batch_statistics)
    sums = [0.0] * len(moving)
    count = 0
    some = itertools.islice(batches, num_batches)
    for images, _ in tqdm(some, "statistics", num_batches, unit="batch", delay=2, leave=False):
        values = [keras.ops.convert_to_numpy(v).astype("float64") for v in batch_statistics(images)]
        for i in range(0, len(values), 2):
            values[i + 1] += values[i] ** 2
        sums = [total + value for total, value in zip(sums, values, strict=True)]
        count += 1
    if not count:
        raise ModelPatchError("no image came to estimate statistics on: give at least one batch")
    for i, layer in enumerate(layers):
        mean, square = sums[2 * i] / count, sums[2 * i + 1] / count
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(np.maximum(square - mean**2, 0.0))


def _compile(function):
    """Compiles a function of one tensor for the backend in use; plain on others."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function
