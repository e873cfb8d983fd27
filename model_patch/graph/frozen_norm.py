"""Frozen norms (tune mode): a bound model whose training steps compute with frozen statistics folded into the convolutions.

Batch norm with frozen statistics is an affine map of each channel, and the kernels before it are frozen. So a training step
can do what `fold` does for good: a third of the time and half of the memory go (docs/speed.md).
"""

from collections.abc import Callable
from typing import Any

import keras

from model_patch.graph.keras_private import outside_calls
from model_patch.graph.remat import Segments
from model_patch.graph.rewrite import Graph, functional, rewrite
from model_patch.layers import PatchedBatchNormalization
from model_patch.layers.conv_norm import ConvNorm, activation_of
from model_patch.layers.joined import SeparateLayers


@keras.saving.register_keras_serializable(package="model_patch", name="TunedModel")  # The name in files of 0.1.
class FrozenNormModel(keras.Model):
    """A functional model that in training runs a graph of its own over the same layers, on TensorFlow.

    Convolutions with a batch norm behind them, and an activation behind that, become one `ConvNorm` each. It computes the
    same function with the same gradients, but for rounding. In inference, and to whoever looks at its layers, it is the
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
        graph = getattr(self, "_folded_graph", None)
        if graph is None:
            import tensorflow as tf

            with tf.init_scope(), outside_calls():  # The first call may be within a function that is being traced.
                folded = fold_frozen_norms(self)
                graph = Segments(folded) if self.remat else folded
            # Past Keras' attribute tracking: its layers are this model's already.
            object.__setattr__(self, "_folded_graph", graph)
        return graph


def fold_frozen_norms(model: keras.Model) -> keras.Model:
    """Returns a functional model that computes as `model` does in training, over the same variables.

    Args:
        model: functional; unchanged. Models inside it are folded, too, and so are joined tasks where each has a
            convolution's output for itself.
    """
    fused: dict[str, keras.Layer] = {}
    gone: set[str] = set()
    _plan(functional(model), "", fused, gone)
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


def _plan(model: keras.Model, prefix: str, fused: dict[str, keras.Layer], gone: set[str]):
    """Adds to `fused`, by path, what takes the place of a norm, and to `gone` the layers that are in it then."""
    graph = Graph(model)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _plan(functional(layer), f"{prefix}{layer.name}/", fused, gone)
            continue
        norm: Any = graph.follower(layer) if _is_frozen_convolution(layer) else None
        norms = norm.layers if isinstance(norm, SeparateLayers) else [norm]
        if not all(map(_is_affine, norms)):
            continue
        activation: Any = graph.follower(norm)
        kind = activation_of(activation)
        gone |= {prefix + each.name for each in ((layer, activation) if kind else (layer,))}
        parts = [ConvNorm(layer, each, kind) for each in norms]
        fused[prefix + norm.name] = (
            SeparateLayers(parts, name=norm.name) if isinstance(norm, SeparateLayers) else parts[0]
        )


def _is_frozen_convolution(layer: keras.Layer) -> bool:
    return (
        type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and not layer.trainable_variables
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and layer.padding in ("same", "valid")
        and set(layer.dilation_rate) == {1}
        and getattr(layer, "groups", 1) == 1
        and _is_float32(layer)
    )


def _is_affine(layer: Any) -> bool:
    """Whether it is a batch norm that in training computes with its moving statistics."""
    if isinstance(layer, PatchedBatchNormalization):
        return not layer.normalises_by_batch(training=True) and _is_of_images(layer)
    return type(layer) is keras.layers.BatchNormalization and not layer.trainable and _is_of_images(layer)


def _is_of_images(norm: keras.layers.BatchNormalization) -> bool:
    return norm.axis in (-1, 3) and _is_float32(norm)


def _is_float32(layer: keras.Layer) -> bool:
    return layer.compute_dtype == "float32" and not layer.dtype_policy.quantization_mode
