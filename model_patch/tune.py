"""Tune mode: a bound model whose training steps compute with frozen statistics folded into the convolutions.

Batch norm with frozen statistics is an affine map of each channel, and the kernels before it stay as they are. So a training step
can do what `fold` does for good: a third of the time and half of the memory go (docs/speed.md).
"""

from collections.abc import Iterator

import keras

from model_patch.layers import PatchedBatchNormalization
from model_patch.layers.conv_norm import ConvNorm, activation_of
from model_patch.rewrite import followers, rewrite, walk


@keras.saving.register_keras_serializable(package="model_patch")
class TunedModel(keras.Model):
    """A functional model that in training runs a graph of its own over the same layers, on TensorFlow.

    Convolutions with a batch norm behind them, and an activation behind that, become one `ConvNorm` each. It computes the
    same function with the same gradients, but for rounding. In inference, and to whoever looks at its layers, it is the
    model that it was made as.
    """

    def call(self, inputs, training=None, mask=None):
        if not training or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        return self._training_graph()(inputs, training=True)

    def _training_graph(self) -> keras.Model:
        graph = getattr(self, "_tuned", None)
        if graph is None:
            import tensorflow as tf

            with tf.init_scope():  # The first call may be within a function that is being traced.
                graph = tuned_graph(self)
            # Past Keras' attribute tracking: its layers are this model's already.
            object.__setattr__(self, "_tuned", graph)
        return graph


def tuned_graph(model: keras.Model) -> keras.Model:
    """Returns a functional model that computes as `model` does in training, over the same variables.

    Args:
        model: functional; stays as it is.
    """
    fused: dict[str, keras.Layer] = {}
    gone: set[str] = set()
    for convolution, norm, activation in _chains(model):
        layers = dict(walk(model))
        fused[norm] = ConvNorm(layers[convolution], layers[norm], activation and activation_of(layers[activation]))
        gone |= {convolution, activation or convolution}
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


def _chains(model: keras.Model) -> Iterator[tuple[str, str, str | None]]:
    """Yields the paths of convolution, norm and activation, if there is one, that can be computed as one."""
    layers, after = dict(walk(model)), followers(model)
    for path, norm in after.items():
        if _is_frozen_convolution(layers[path]) and _is_affine(layers[norm]):
            activation = after.get(norm)
            yield path, norm, activation if activation and activation_of(layers[activation]) else None


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


def _is_affine(layer: keras.Layer) -> bool:
    """Whether a layer is a batch norm that in training computes with its moving statistics."""
    if isinstance(layer, PatchedBatchNormalization):
        frozen = not layer.normalises_by_batch(training=True)
    else:
        frozen = type(layer) is keras.layers.BatchNormalization and not layer.trainable
    return frozen and layer.axis in (-1, 3) and _is_float32(layer)


def _is_float32(layer: keras.Layer) -> bool:
    return layer.compute_dtype == "float32" and not layer.dtype_policy.quantization_mode
