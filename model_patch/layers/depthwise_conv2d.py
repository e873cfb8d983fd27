"""Depthwise convolution with a task's own kernel."""

import keras
from keras import ops

from model_patch.layers.patched import patches
from model_patch.layers.scaled import Scaled


@patches(keras.layers.DepthwiseConv2D)
class PatchedDepthwiseConv2D(Scaled, keras.layers.DepthwiseConv2D):
    """Depthwise convolution in which a task owns the kernel, the bias, or both.

        y[b, i, j, c*m + q] = sum over k, l of kernel[k, l, c, q] * x[b, i*s + k, j*s + l, c]

    (m: depth multiplier, s: stride.) The kernel `(height, width, channels, depth_multiplier)` is named
    `depthwise_kernel` in `own`; a bias that the task does not own stays the trunk's.

    Args:
        own: names of the variables that the task owns: `depthwise_kernel`, `bias`, and `gamma` and `beta`, both or
            neither, see `Scaled`.
        **kwargs: the arguments of `keras.layers.DepthwiseConv2D`.

    Input shape: `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
    `data_format="channels_first"`. Output shape: the same rank, `channels * depth_multiplier` channels.

    Reference: Mudrakarta et al. 2019, the depthwise patch.
    """

    def convolve(self, inputs, kernel):
        """Applies the layer's convolution with another kernel, without bias and activation."""
        options = (self.strides, self.padding, self.data_format, self.dilation_rate)
        return ops.depthwise_conv(inputs, kernel, *options)
