"""What is left of batch normalisation in inference: a scale and a bias per channel."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from model_patch.errors import ModelPatchError

ValueOf = Callable[[str, str], Any]
"""Given a layer's path and a variable's name, returns a task's value, an array: its own, else the trunk's; None if neither
has one."""


def scale_and_bias(path: str, value_of: ValueOf, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns batch normalisation in inference as `y = scale * x + bias`, float64 `(channels,)` each.

    Args:
        path: path of the layer.
        value_of: a task's `moving_mean` and `moving_variance`, and `gamma` and `beta` where it has them.
        epsilon: the layer's.

    Raises:
        ModelPatchError: the values give no finite numbers, as with a negative variance.
    """
    given = {name: value_of(path, name) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    exact = {name: np.asarray(value, "float64") for name, value in given.items() if value is not None}
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = exact.get("gamma", 1.0) / np.sqrt(exact["moving_variance"] + epsilon)
        bias = exact.get("beta", 0.0) - exact["moving_mean"] * scale
    if not (np.isfinite(scale).all() and np.isfinite(bias).all()):
        raise ModelPatchError(f"the batch norm {path!r} cannot be folded: its values are NaN or infinite")
    return scale, bias


@keras.saving.register_keras_serializable(package="model_patch")
class Affine(keras.layers.Layer):
    """Scales and shifts each channel.

        y = scale * x + bias

    Args:
        axis: the channel axis.
        **kwargs: options of `keras.layers.Layer`.

    Input shape: any, with the channels on `axis`. Output shape: the same. `scale` and `bias` are `(channels,)`.
    """

    def __init__(self, axis: int = -1, **kwargs):
        super().__init__(**kwargs)
        self.axis = axis

    def build(self, input_shape):
        channels = (input_shape[self.axis],)
        self.scale = self.add_weight(name="scale", shape=channels, initializer="ones")
        self.bias = self.add_weight(name="bias", shape=channels, initializer="zeros")

    def call(self, inputs):
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        return inputs * ops.reshape(self.scale, shape) + ops.reshape(self.bias, shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}
