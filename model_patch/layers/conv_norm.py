"""A frozen convolution, the batch norm with frozen statistics behind it, and its activation, as one operation."""

import functools
from collections.abc import Callable

import keras

PRECISE = 1e-3
"""The gradient of a scale is computed from the layer's output where the scale is at least this part of the shift added to it.

The output then tells the normalised input with a relative error of at most some 1e-7 / 1e-3.
"""

_NONE, _RELU, _RELU6 = None, "relu", "relu6"


def activation_of(layer: keras.Operation | None) -> str | None:
    """Returns which activation it is, `relu` or `relu6`; None for all others."""
    if isinstance(layer, keras.layers.ReLU) and not layer.negative_slope and not layer.threshold:
        return {None: _RELU, 6: _RELU6}.get(layer.max_value)
    if isinstance(layer, keras.layers.Activation):
        return {keras.activations.relu: _RELU, keras.activations.relu6: _RELU6}.get(layer.activation)
    return None


class ConvNorm(keras.layers.Layer):
    """Computes three layers in training, and the gradient by scale and bias, at the cost of a folded convolution.

        y = activation(conv(x, kernel * s) + beta - mean * s),   s = gamma / sqrt(variance + epsilon)

    which is one operation of oneDNN's. The kernel is not trained, so the gradient needs no input, and the norm's
    input can be computed from its output: where the activation passes a gradient dz, it passed z itself,

        d beta = sum(dz),   d gamma = sum(dz * (z - beta)) / gamma,   dx = conv_transposed(dz, kernel * s),

    sums over batch and pixels. So of three layers one output is kept instead of two to three, and no operation passes over
    it to scale. Where a gamma is too small beside the shift to tell (`PRECISE`), the norm's input is computed again.

    Owns nothing: all variables are those of the layers that it is made of.

    Args:
        convolution: `Conv2D` or `DepthwiseConv2D`, channels last, without an activation; its variables are not trained.
        norm: batch norm over the channels, which is called with its moving statistics.
        activation: `"relu"`, `"relu6"`, or None.
        **kwargs: of `keras.layers.Layer`.

    Input shape: that of the convolution, float32. Output shape: the convolution's.

    Reference: You et al. 2023, "Efficient ConvBN Blocks for Transfer Learning and Beyond", whose tune mode folds so in
    training, too; the gradient without the norm's input is ours.
    """

    def __init__(self, convolution: keras.Layer, norm: keras.Layer, activation: str | None = None, **kwargs):
        super().__init__(name=norm.name, **kwargs)
        self.convolution, self.norm, self.activation = convolution, norm, activation
        self.built = True

    def compute_output_shape(self, input_shape):
        return self.convolution.compute_output_shape(input_shape)

    def call(self, inputs):
        import tensorflow as tf

        norm, convolution = self.norm, self.convolution
        kernel, mean = (tf.convert_to_tensor(v) for v in (convolution.kernel, norm.moving_mean))
        if convolution.use_bias:
            mean = mean - convolution.bias
        gamma = tf.convert_to_tensor(norm.gamma) if norm.scale else tf.ones_like(mean)
        beta = tf.convert_to_tensor(norm.beta) if norm.center else tf.zeros_like(mean)
        y = self.traced(inputs, gamma, beta, kernel, mean, norm.moving_variance)
        y.set_shape(self.compute_output_shape(inputs.shape))
        return y

    @property
    def traced(self) -> Callable:
        """The `tf.function` that computes the layer, which all layers of its kind share."""
        is_depthwise = isinstance(self.convolution, keras.layers.DepthwiseConv2D)
        strides, padding = (1, *self.convolution.strides, 1), self.convolution.padding.upper()
        return _fused(is_depthwise, strides, padding, self.norm.epsilon, self.activation)


@functools.cache
def _fused(is_depthwise: bool, strides: tuple, padding: str, epsilon: float, activation: str | None) -> Callable:
    """Returns what a `ConvNorm` computes, as a function that is traced once for all layers, of whatever shapes.

    Tracing the same operations for each layer, twice with their gradients, would take most of the time before a first step.
    """
    import tensorflow as tf

    forward, backward = tf.nn.conv2d, tf.compat.v1.nn.conv2d_backprop_input
    if is_depthwise:
        forward, backward = tf.nn.depthwise_conv2d, tf.nn.depthwise_conv2d_backprop_input
    images, channels = tf.TensorSpec([None] * 4), tf.TensorSpec([None])

    def unchanged(from_output, *others):
        return from_output

    def from_input(from_output, dz, x, kernel, mean, by_beta, rate, precise):
        normed = _by_channel(tf, dz * forward(x, kernel, strides, padding)) - mean * by_beta
        return tf.where(precise, from_output, rate * normed)

    with tf.init_scope():
        specs = [channels, images, images, images, *[channels] * 3, tf.TensorSpec([None], "bool")]
        unchanged, again = (
            tf.function(each, specs, autograph=False).get_concrete_function() for each in (unchanged, from_input)
        )

    @tf.function(input_signature=[images, channels, channels, images, channels, channels], autograph=False)
    def fused(x, gamma, beta, kernel, mean, variance):
        rate, shape = tf.math.rsqrt(variance + epsilon), tf.shape(x)

        def scaled(by):
            return kernel * tf.reshape(by, tf.shape(kernel)[-2:] if is_depthwise else [-1])

        @tf.custom_gradient
        def with_gradient(x, gamma, beta):
            scale = gamma * rate
            shift = beta - mean * scale
            z = tf.nn.bias_add(forward(x, scaled(scale), strides, padding), shift)
            y = {_NONE: tf.identity, _RELU: tf.nn.relu, _RELU6: tf.nn.relu6}[activation](z)

            def gradient(dy):
                dz = dy
                if activation == _RELU:
                    dz = tf.raw_ops.ReluGrad(gradients=dy, features=y)
                elif activation == _RELU6:
                    dz = tf.raw_ops.Relu6Grad(gradients=dy, features=y)
                by_beta = _by_channel(tf, dz)
                precise = tf.abs(gamma) > PRECISE * (tf.abs(beta) + tf.abs(shift))
                from_output = tf.math.divide_no_nan(_by_channel(tf, dz * y) - beta * by_beta, gamma)
                inputs = [from_output, dz, x, kernel, mean, by_beta, rate, precise]
                branches = {"then_branch": unchanged, "else_branch": again}
                # `tf.cond` would trace both branches again for each kind of layer, and write them into the graph of each layer.
                (by_gamma,) = tf.raw_ops.StatelessIf(
                    cond=tf.reduce_all(precise), input=inputs, Tout=[tf.float32], **branches
                )
                return backward(shape, scaled(scale), dz, strides, padding), by_gamma, by_beta

            return y, gradient

        return with_gradient(x, gamma, beta)

    return fused


def _by_channel(tf, x):
    """Returns the sums over all axes but the last; this operation is several times faster on CPUs than a reduction."""
    return tf.raw_ops.BiasAddGrad(out_backprop=x)
