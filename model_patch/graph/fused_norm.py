"""Fused norms (tune mode): convolutions and their batch norms computed as one, where the convolutions are not trained.

With frozen statistics a training step can do what `fold` does for good, and with those of the batch much of it: a good part
of time and memory goes (docs/speed.md). So can inference while values still change.
"""

from collections.abc import Callable
from typing import Any

import keras

from model_patch.graph.keras_private import outside_calls
from model_patch.graph.remat import Segments
from model_patch.graph.rewrite import Graph, functional, rewrite
from model_patch.layers import PatchedBatchNormalization, plain_class
from model_patch.layers.conv_norm import ConvNorm, activation_of
from model_patch.layers.joined import SeparateLayers


@keras.saving.register_keras_serializable(package="model_patch", name="TunedModel")  # The name in files of 0.1.
class FusedNormModel(keras.Model):
    """A functional model that in training runs a graph of its own over the same layers, on TensorFlow.

    Frozen convolutions become one `ConvNorm` each with the batch norm after them, the activation after that, and the zeros
    padded before. It computes the same function with the same gradients, but for rounding. In inference, and to whoever looks at its layers, it is the
    model that it was made as.

    Attributes:
        remat: whether training keeps few maps, and computes the others again, see `model_patch.graph.remat`.
    """

    remat = False

    def call(self, inputs, training=None, mask=None):
        if not training or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        return self._training_graph()(inputs, training=True)

    def save(self, filepath, *args, **kwargs):
        """Saves as Keras does; to HDF5 as a plain functional model, without the optimizer, as only such files can be loaded."""
        if str(filepath).endswith((".h5", ".hdf5")):
            return functional(self).save(filepath, *args, **kwargs)
        return super().save(filepath, *args, **kwargs)

    def _training_graph(self) -> Callable:
        graph = getattr(self, "_fused_graph", None)
        if graph is None:
            import tensorflow as tf

            with tf.init_scope(), outside_calls():  # The first call may be within a function that is being traced.
                fused = fuse_norms(self)
                graph = Segments(fused) if self.remat else fused
            # Past Keras' attribute tracking: its layers are this model's already.
            object.__setattr__(self, "_fused_graph", graph)
        return graph


def fuse_norms(model: keras.Model, training: bool = True) -> keras.Model:
    """Returns a functional model that computes as `model` does, over the same variables.

    Args:
        model: functional; unchanged. Models inside it are folded, too, and so are joined tasks where each has a
            convolution's output for itself.
        training: whether in training or in inference, where trained convolutions are fused, too; the result is to be called
            with the same.
    """
    fused: dict[str, keras.Layer] = {}
    gone: set[str] = set()
    _plan(functional(model), "", fused, gone, training)
    passed: set[int] = set()

    def replace(path: str, layer: keras.Layer) -> keras.Layer:
        if path in gone:
            nothing = keras.layers.Identity(name=layer.name)
            passed.add(id(nothing))
            return nothing
        return fused.get(path, layer)

    def apply(layer, *args, **kwargs):
        if id(layer) in passed:
            return args[0]
        return layer(args[0]) if isinstance(layer, ConvNorm) else layer(*args, **kwargs)  # It takes no `training`.

    return rewrite(model, replace, apply)


def _plan(model: keras.Model, prefix: str, fused: dict[str, keras.Layer], gone: set[str], training: bool):
    """Adds to `fused`, by path, what takes the place of a norm, and to `gone` the layers that are in it then."""
    graph = Graph(model)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _plan(functional(layer), f"{prefix}{layer.name}/", fused, gone, training)
            continue
        is_convolution = _is_convolution(layer) and not (training and layer.trainable_variables)
        norm: Any = graph.follower(layer) if is_convolution else None
        norms = norm.layers if isinstance(norm, SeparateLayers) else [norm]
        if not all(_can_be_fused(each, training) for each in norms):
            continue
        if any(node.arguments.kwargs.get("training") for node in graph.nodes[id(norm)]):
            continue
        activation: Any = graph.follower(norm)
        activation = activation if activation_of(activation) else None
        padding = _padding_before(layer, graph)
        gone |= {prefix + each.name for each in (layer, activation, padding) if each}
        parts = [ConvNorm(layer, each, activation, padding, training) for each in norms]
        fused[prefix + norm.name] = (
            SeparateLayers(parts, name=norm.name) if isinstance(norm, SeparateLayers) else parts[0]
        )


def _is_convolution(layer: Any) -> bool:
    return (
        plain_class(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and "gamma" not in getattr(layer, "own", ())
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and layer.padding in ("same", "valid")
        and set(layer.dilation_rate) == {1}
        and getattr(layer, "groups", 1) == 1
        and _is_float32(layer)
    )


def _padding_before(convolution: keras.Layer, graph: Graph) -> keras.layers.ZeroPadding2D | None:
    """Returns the layer that pads for a convolution alone, where it pads what `padding="same"` would."""
    padding = graph.maker[id(graph.nodes[id(convolution)][0].input_tensors[0])]
    if type(padding) is not keras.layers.ZeroPadding2D:
        return None
    is_alone = graph.follower(padding) is convolution
    if not is_alone:
        return None
    sides = graph.nodes[id(padding)][0].input_tensors[0].shape[1:3]
    if convolution.padding != "valid" or None in sides:
        return None
    missing = [
        max(0, (-(-side // stride) - 1) * stride + size - side)
        for side, stride, size in zip(sides, convolution.strides, convolution.kernel_size, strict=True)
    ]
    same = tuple((each // 2, each - each // 2) for each in missing)
    return padding if tuple(map(tuple, padding.padding)) == same else None


def _can_be_fused(layer: Any, training: bool) -> bool:
    """Whether it is a batch norm over the channels of images that is computed in float32 on one device."""
    is_plain = type(layer) is keras.layers.BatchNormalization and not (training and layer.trainable)
    if not (isinstance(layer, PatchedBatchNormalization) or is_plain):
        return False
    return layer.axis in (-1, 3) and _is_float32(layer) and not layer.renorm


def _is_float32(layer: keras.Layer) -> bool:
    return layer.compute_dtype == "float32" and not layer.dtype_policy.quantization_mode
