"""Convolution with a task's own values."""

import keras

from model_patch.layers.patched import patches
from model_patch.layers.scaled import Scaled


@patches(keras.layers.Conv2D)
class PatchedConv2D(Scaled, keras.layers.Conv2D):
    """Convolution in which a task owns the kernel, the bias, or a scale and bias of its output.

    Args:
        own: names of the variables that the task owns: `kernel`, `bias`, and `gamma` and `beta`, both or neither, see
            `Scaled`.
        **kwargs: the arguments of `keras.layers.Conv2D`.

    Input shape: `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
    `data_format="channels_first"`. Output shape: the same rank, `filters` channels.
    """
