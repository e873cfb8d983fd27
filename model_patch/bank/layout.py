"""What computes the same in a bank's layout, (height, width, batch, channels), as in that of Keras.

Lists hold what is known to; everything else, and every class that a user wrote, gets its images in Keras' layout.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np

from model_patch.graph.rewrite import functional, nodes
from model_patch.layers import plain_class

_LAYERS, _ACTIVATIONS = keras.layers, keras.activations

ANY_AXES = (
    _LAYERS.ActivityRegularization,
    _LAYERS.AlphaDropout,
    _LAYERS.Dropout,
    _LAYERS.ELU,
    _LAYERS.GaussianDropout,
    _LAYERS.GaussianNoise,
    _LAYERS.Identity,
    _LAYERS.LeakyReLU,
    _LAYERS.ReLU,
)
"""Layers that in inference compute each number by itself."""

SUMS = (_LAYERS.Add, _LAYERS.Average, _LAYERS.Maximum, _LAYERS.Minimum, _LAYERS.Subtract)
"""Layers that do so with several inputs of one shape."""

OPERATIONS = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Relu", "Relu6", "Sigmoid"}
"""Names of bare operations of Keras that do so."""

ELEMENTWISE = {
    getattr(_ACTIVATIONS, name)
    for name in [
        "celu",
        "elu",
        "exponential",
        "gelu",
        "hard_sigmoid",
        "hard_silu",
        "hard_tanh",
        "leaky_relu",
        "linear",
        "log_sigmoid",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "softsign",
        "tanh",
    ]
}
"""Activations that do so."""

BY_CHANNELS = {_ACTIVATIONS.softmax, _ACTIVATIONS.log_softmax}
"""Activations that look at the last axis, which a bank leaves in its place."""


def is_elementwise(activation: Callable | None) -> bool:
    """Whether an activation, a function or a layer, computes each number by itself."""
    if isinstance(activation, keras.Layer):
        is_activation = type(activation) is _LAYERS.Activation
        return activation.activation in ELEMENTWISE if is_activation else type(activation) in ANY_AXES
    return activation is None or activation in ELEMENTWISE


def computes_in_hwbc(layer: keras.Layer, uses: Sequence[Sequence[tuple]]) -> bool:
    """Whether a layer is right in HWBC without change.

    Args:
        layer: a layer of a graph.
        uses: for each of its uses the shapes of all that it takes, in Keras' layout.
    """
    kind = plain_class(layer)
    if kind in SUMS:
        return all(len(set(shapes)) == 1 for shapes in uses)
    if kind in ANY_AXES:
        return True
    activation = getattr(layer, "activation", None)
    if not is_elementwise(activation) and activation not in BY_CHANNELS:
        return False
    if kind is _LAYERS.Conv2D:
        return layer.kernel_size == (1, 1) == layer.strides and layer.data_format == "channels_last"
    if kind in (_LAYERS.Normalization, _LAYERS.LayerNormalization):
        return all(looks_at_channels(layer.axis, len(shape)) for (shape,) in uses)
    if kind is _LAYERS.Rescaling:
        return np.ndim(layer.scale) <= 1 and np.ndim(layer.offset) <= 1
    return kind in (_LAYERS.Activation, _LAYERS.Dense)


def looks_at_channels(axis: int | Sequence[int] | None, rank: int) -> bool:
    """Whether an axis, or all of several, is the last one of tensors of a rank."""
    axes = [axis] if isinstance(axis, int) else axis or ()
    return all(each % rank == rank - 1 for each in axes)


def has_elementwise_operations(model: keras.Model) -> bool:
    """Whether all bare operations in a graph, nested models opened, are elementwise with operands of one shape."""
    for node in nodes(functional(model)):
        operation = node.operation
        if isinstance(operation, keras.Model):
            if not has_elementwise_operations(operation):
                return False
        elif not isinstance(operation, keras.Layer):
            is_known = type(operation).__module__.startswith("keras.") and type(operation).__name__ in OPERATIONS
            given = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            shapes = {tuple(x.shape) for x in given if isinstance(x, keras.KerasTensor)}
            # Arrays of more than one axis, such as embeddings of positions, are in Keras' layout.
            arrays = [x for x in given if not isinstance(x, keras.KerasTensor) and getattr(x, "ndim", 0) > 1]
            if not is_known or arrays or len(shapes) > 1:
                return False
    return True
