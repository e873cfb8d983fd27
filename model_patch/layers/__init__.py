"""Keras layers of which a task owns some variables and shares the others with the trunk."""

from model_patch.layers.batch_normalization import PatchedBatchNormalization
from model_patch.layers.conv2d import PatchedConv2D
from model_patch.layers.depthwise_conv2d import PatchedDepthwiseConv2D
from model_patch.layers.patched import Patched, patch_layer, variables

__all__ = [
    "Patched",
    "PatchedBatchNormalization",
    "PatchedConv2D",
    "PatchedDepthwiseConv2D",
    "patch_layer",
    "variables",
]
