"""Convolutions with a task's own scale and bias, for nets that have no normalisation layer to patch."""

import keras
from keras import ops

from model_patch.layers.patched import Patched

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
"""Layers that can be patched so."""


class Scaled(Patched):
    """Mixin for a patched convolution that can own `gamma` and `beta`, which the trunk's layer does not have.

        y = activation(gamma * (kernel * x + bias) + beta)

    per channel of the output. It is computed as a convolution by `gamma * kernel` with the bias `gamma * bias + beta`, so
    that it costs next to nothing. They start at 1 and 0: before training the layer is the trunk's. Without them in `own` it
    is an ordinary patched convolution.

    Reference: Mudrakarta et al. 2019: a scale and bias where there is no batch normalisation.
    """

    # Of the Keras layer that it is mixed into.
    data_format: str
    kernel: keras.Variable
    bias: keras.Variable | None

    def build(self, input_shape):
        super().build(input_shape)
        if "gamma" in self.own:
            channels = (self.compute_output_shape(input_shape)[self._channel_axis()],)
            self.gamma = self.add_weight(name="gamma", shape=channels, initializer="ones")
            self.beta = self.add_weight(name="beta", shape=channels, initializer="zeros")

    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    def convolve(self, inputs, kernel):
        """Applies the layer's convolution with another kernel, without bias and activation."""
        return self.convolution_op(inputs, kernel)

    def _kernel_and_bias(self):
        """Returns the kernel and the bias `(channels,)` with scale and bias inside."""
        # The last axes of a depthwise kernel, (channels, multiplier), are the output's channels.
        is_depthwise = isinstance(self, keras.layers.DepthwiseConv2D)
        scale = ops.reshape(self.gamma, self.kernel.shape[-2:]) if is_depthwise else self.gamma
        bias = ops.multiply(self.bias, self.gamma) + self.beta if self.use_bias else ops.convert_to_tensor(self.beta)
        return ops.multiply(self.kernel, scale), bias

    def call(self, inputs):
        if "gamma" not in self.own:
            return super().call(inputs)
        kernel, bias = self._kernel_and_bias()
        shape = [1] * len(inputs.shape)
        shape[self._channel_axis()] = -1
        return self.activation(self.convolve(inputs, kernel) + ops.reshape(bias, shape))
