"""Depthwise convolution with a task's own kernel."""

import keras

from model_patch.layers.patched import Patched, patches


@patches(keras.layers.DepthwiseConv2D)
class PatchedDepthwiseConv2D(Patched, keras.layers.DepthwiseConv2D):
    """Depthwise convolution in which a task owns the kernel, the bias, or both.

        y[b, i, j, c*m + q] = sum over k, l of kernel[k, l, c, q] * x[b, i*s + k, j*s + l, c]

    (m: depth multiplier, s: stride.) The kernel `(height, width, channels, depth_multiplier)` is named
    `depthwise_kernel` in `own`; a bias that the task does not own stays the trunk's.

    Args:
        own: names of the variables that the task owns, among `depthwise_kernel` and `bias`.
        **kwargs: the arguments of `keras.layers.DepthwiseConv2D`.

    Input shape: `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
    `data_format="channels_first"`. Output shape: the same rank, `channels * depth_multiplier` channels.

    Reference: Mudrakarta et al. 2019, the depthwise patch.
    """
