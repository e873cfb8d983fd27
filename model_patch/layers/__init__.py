"""Keras layers of which a task owns some variables and shares the others with the trunk."""

import keras

from model_patch.layers.batch_normalization import PatchedBatchNormalization
from model_patch.layers.conv2d import PatchedConv2D
from model_patch.layers.depthwise_conv2d import PatchedDepthwiseConv2D
from model_patch.layers.patched import Patched, is_unnamed, patch_layer, plain_class, variables
from model_patch.layers.rms_normalization import PatchedRMSNormalization
from model_patch.layers.scaled import CONVOLUTIONS

NORMS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.GroupNormalization)

__all__ = [
    "CONVOLUTIONS",
    "NORMS",
    "Patched",
    "PatchedBatchNormalization",
    "PatchedConv2D",
    "PatchedDepthwiseConv2D",
    "PatchedRMSNormalization",
    "is_unnamed",
    "patch_layer",
    "plain_class",
    "variables",
]
