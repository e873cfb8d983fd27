"""A frozen convolution, the batch norm after it, and its activation, as one operation."""

import dataclasses
import functools
import math
from collections.abc import Callable

import keras

from model_patch.layers.batch_normalization import PatchedBatchNormalization

PRECISE = 1e-3
"""The gradient of a scale is computed from the layer's output where the scale is at least this part of the shift added to it.

The output then tells the normalised input with a relative error of at most some 1e-7 / 1e-3.
"""

LARGE = 2**16
"""Values of an image's map from which the batch's statistics of a widening 1 x 1 convolution are computed from its input.

The matrices for it take as long as passes over smaller maps, and longer to trace.
"""


def activation_of(layer: keras.Operation | None) -> str | None:
    """Returns which activation it is, `relu` or `relu6`; None for all others."""
    if isinstance(layer, keras.layers.ReLU) and not layer.negative_slope and not layer.threshold:
        return {None: "relu", 6: "relu6"}.get(layer.max_value)
    if isinstance(layer, keras.layers.Activation):
        return {keras.activations.relu: "relu", keras.activations.relu6: "relu6"}.get(layer.activation)
    return None


class ConvNorm(keras.layers.Layer):
    """Computes a convolution, a norm and an activation with few passes over their maps.

    With frozen statistics it costs a folded convolution,

        y = activation(conv(x, kernel * s) + beta - mean * s),   s = gamma / sqrt(variance + epsilon)

    which is one operation of oneDNN's. The kernel is not trained, so the gradient needs no input, and the norm's
    input can be computed from its output: where the activation passes a gradient dz, it passed z itself,

        d beta = sum(dz),   d gamma = sum(dz * (z - beta)) / gamma,   dx = conv_transposed(dz * s, kernel),

    sums over batch and pixels. One operation computes the sums and `dz * s`: the gradient of a batch norm of y with the mean
    beta and the variance 1. So of three layers one output is kept instead of two to three, and no operation passes over it to
    scale. Where a gamma is too small beside the shift to tell (`PRECISE`), the norm's input is computed again.

    With the batch's statistics the same holds of a 1 x 1 convolution that widens its input, where maps are large. Its output
    is linear in few channels, so that mean and covariance C of the input give the statistics of the output, and a small
    matrix what they add to the gradient, without a pass over the output:

        mean(z) = mean(x) kernel,   var(z) = diag(kernel' C kernel),
        dx = (dz * s - s * mean(dz) - (x kernel - mean(z)) * d) kernel',   d = s * d gamma / (n * sqrt(var(z) + epsilon))
           = (dz * s) kernel' - x (kernel diag(d) kernel') - constant.

    For other convolutions TensorFlow's batch norm is used.

    Owns nothing: all variables are those of the layers that it is made of.

    Args:
        convolution: `Conv2D` or `DepthwiseConv2D`, channels last, without an activation; gets no gradient.
        norm: batch norm over the channels.
        activation: layer after it, see `activation_of`; None for none.
        padding: `ZeroPadding2D` before the convolution that pads as `padding="same"` would; None for none.
        training: whether the norm computes as in training.
        **kwargs: options of `keras.layers.Layer`.

    Input shape: that of the first layer, float32. Output shape: the convolution's.

    Reference: You et al. 2023, "Efficient ConvBN Blocks for Transfer Learning and Beyond", whose tune mode folds so in
    training, too; Rota Bulo et al. 2018, "In-Place Activated BatchNorm", for a gradient from the output; the rest is ours.
    """

    def __init__(self, convolution, norm, activation=None, padding=None, training=True, **kwargs):
        super().__init__(name=norm.name, **kwargs)
        self.training = training
        self.convolution, self.norm, self.activation, self.padding = convolution, norm, activation, padding
        self.built = True

    def compute_output_shape(self, input_shape):
        if self.padding:
            input_shape = self.padding.compute_output_shape(input_shape)
        return self.convolution.compute_output_shape(input_shape)

    def call(self, inputs):
        import tensorflow as tf

        norm, convolution = self.norm, self.convolution
        if self.by_batch and norm.synchronized:  # Over several devices.
            parts = [self.padding, convolution, functools.partial(norm, training=True), self.activation]
            return functools.reduce(lambda x, part: part(x), filter(None, parts), inputs)
        kernel, mean = (tf.convert_to_tensor(v) for v in (convolution.kernel, norm.moving_mean))
        gamma = tf.convert_to_tensor(norm.gamma) if norm.scale else tf.ones_like(mean)
        beta = tf.convert_to_tensor(norm.beta) if norm.center else tf.zeros_like(mean)
        shape, traced = tuple(inputs.shape[1:]), self.traced(inputs.shape)
        shape = tf.shape(inputs)[1:] if None in shape else tf.constant(shape)
        if self.by_batch:
            y, mean, variance = traced(inputs, gamma, beta, kernel, shape)
            norm.move(mean + convolution.bias if convolution.use_bias else mean, variance)
        else:
            mean = mean - convolution.bias if convolution.use_bias else mean
            y = traced(inputs, gamma, beta, kernel, shape, mean, norm.moving_variance)
        y.set_shape(self.compute_output_shape(inputs.shape))
        return y

    @property
    def by_batch(self) -> bool:
        """Whether the statistics are those of the batch."""
        return isinstance(self.norm, PatchedBatchNormalization) and self.norm.normalises_by_batch(self.training)

    def traced(self, input_shape: tuple) -> Callable:
        """Returns the `tf.function` that computes the layer, which all layers of its kind share."""
        convolution = self.convolution
        multiplier = getattr(convolution, "depth_multiplier", None)
        padding = "SAME" if self.padding else convolution.padding.upper()
        unit = _Unit(
            multiplier, (1, *convolution.strides, 1), padding, self.norm.epsilon, activation_of(self.activation)
        )
        if not self.by_batch:
            return _frozen(unit)
        _, *sides, channels = self.compute_output_shape(input_shape)
        is_1x1 = multiplier is None and set(convolution.kernel_size) == set(convolution.strides) == {1}
        is_large = None not in sides and math.prod(sides) * channels >= LARGE
        return (_widening if is_1x1 and is_large and 2 * input_shape[-1] <= channels else _by_batch)(unit)


@dataclasses.dataclass(frozen=True)
class _Unit:
    """The convolution and the activation of one form of `ConvNorm`, and the specs of what their functions take.

    Attributes:
        multiplier: depth multiplier of a depthwise convolution; None for others.
        strides, padding: as for `tf.nn.conv2d`.
        epsilon: epsilon of the norm.
        activation: `relu`, `relu6` or None.
    """

    multiplier: int | None
    strides: tuple
    padding: str
    epsilon: float
    activation: str | None

    def convolve(self, x, kernel):
        import tensorflow as tf

        convolve = tf.nn.conv2d if self.multiplier is None else tf.nn.depthwise_conv2d
        return convolve(x, kernel, self.strides, self.padding)

    def by_input(self, dz, kernel, of_image):
        """Returns the gradient with respect to the input of a convolution."""
        import tensorflow as tf

        # The number of images is not taken from the input: an operation whose shape is read is not fused with others.
        shape = tf.concat([tf.shape(dz)[:1], of_image], axis=0)
        if self.multiplier is None:
            return tf.compat.v1.nn.conv2d_backprop_input(shape, kernel, dz, self.strides, self.padding)
        return tf.nn.depthwise_conv2d_backprop_input(shape, kernel, dz, self.strides, self.padding)

    def scaled(self, kernel, by):
        import tensorflow as tf

        return kernel * (by if self.multiplier is None else tf.reshape(by, [-1, self.multiplier]))

    def activate(self, z):
        import tensorflow as tf

        return {None: tf.identity, "relu": tf.nn.relu, "relu6": tf.nn.relu6}[self.activation](z)

    def before_activation(self, dy, y):
        """Returns the gradient with respect to the input of the activation."""
        import tensorflow as tf

        if self.activation is None:
            return dy
        by = tf.raw_ops.ReluGrad if self.activation == "relu" else tf.raw_ops.Relu6Grad
        return by(gradients=dy, features=y)

    def function(self, *more: str) -> Callable:
        """Decorator: a `tf.function` of input, gamma, beta, kernel, shape of the input, and values by channel.

        It is traced once for all layers, of whatever shapes. Tracing the same operations for each layer, twice with their
        gradients, would take most of the time before a first step.
        """
        import tensorflow as tf

        images, channels = tf.TensorSpec([None] * 4), tf.TensorSpec([None])
        specs = [images, channels, channels, images, tf.TensorSpec([3], "int32"), *[channels] * len(more)]
        return tf.function(input_signature=specs, autograph=False)


@functools.cache
def _frozen(unit: _Unit) -> Callable:
    """Returns what a `ConvNorm` computes with frozen statistics."""

    @unit.function("mean", "variance")
    def fused(x, gamma, beta, kernel, shape, mean, variance):
        return _folded(unit, x, gamma, beta, kernel, shape, mean, variance)

    return fused


@functools.cache
def _widening(unit: _Unit) -> Callable:
    """Returns what a `ConvNorm` of a widening 1 x 1 convolution computes with the statistics of the batch, and these."""
    import tensorflow as tf

    @unit.function()
    def fused(x, gamma, beta, kernel, shape):
        matrix, rows = tf.squeeze(kernel, [0, 1]), tf.reshape(x, [-1, shape[2]])
        count = tf.cast(tf.shape(rows)[0], "float32")
        centre = _by_channel(rows)[:, None] / count
        covariance = tf.matmul(rows, rows, transpose_a=True) / count - centre * tf.transpose(centre)
        mean = tf.reduce_sum(centre * matrix, axis=0)
        variance = tf.nn.relu(tf.reduce_sum(matrix * tf.matmul(covariance, matrix), axis=0))
        # Otherwise, the gradients of both would be traced, too.
        mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance)

        def correction(x, by_gamma, by_beta, scale, rate):
            """Returns what the statistics add to the gradient."""
            weights = scale * rate * by_gamma / -count
            through = tf.matmul(matrix, matrix * weights, transpose_b=True)
            constant = tf.reduce_sum(matrix * (scale * by_beta / -count - mean * weights), axis=1)
            return tf.nn.bias_add(tf.nn.conv2d(x, through[None, None], 1, "VALID"), constant)

        return _folded(unit, x, gamma, beta, kernel, shape, mean, variance, correction), mean, variance

    return fused


@functools.cache
def _by_batch(unit: _Unit) -> Callable:
    """Returns what any other `ConvNorm` computes with the statistics of the batch, and these."""
    import tensorflow as tf

    @unit.function()
    def fused(x, gamma, beta, kernel, shape):
        @tf.custom_gradient
        def with_gradient(x, gamma, beta):
            z = unit.convolve(x, kernel)
            normed, mean, variance, *saved = tf.raw_ops.FusedBatchNormV3(
                x=z, scale=gamma, offset=beta, mean=[], variance=[], epsilon=unit.epsilon, is_training=True
            )
            y = unit.activate(normed)

            def gradient(dy, *_):
                spaces = {f"reserve_space_{i}": each for i, each in enumerate(saved, 1)}
                by_z, by_gamma, by_beta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                    y_backprop=unit.before_activation(dy, y), x=z, scale=gamma, epsilon=unit.epsilon, **spaces
                )
                return unit.by_input(by_z, kernel, shape), by_gamma, by_beta

            # Keras keeps the variance of the batch itself, the operation gives the unbiased estimate.
            count = tf.cast(tf.size(z) // tf.size(gamma), "float32")
            return (y, mean, variance * ((count - 1) / count)), gradient

        return with_gradient(x, gamma, beta)

    return fused


def _folded(unit: _Unit, x, gamma, beta, kernel, shape, mean, variance, correction: Callable | None = None):
    """Returns a `ConvNorm`'s output with given statistics, and with the gradient that is computed from it.

    Args:
        correction: returns what the gradient with respect to x is more than with frozen statistics.
    """
    import tensorflow as tf

    rate = tf.math.rsqrt(variance + unit.epsilon)

    @tf.custom_gradient
    def with_gradient(x, gamma, beta):
        scale = gamma * rate
        shift = beta - mean * scale
        y = unit.activate(tf.nn.bias_add(unit.convolve(x, unit.scaled(kernel, scale)), shift))

        def gradient(dy):
            dz = unit.before_activation(dy, y)
            scaled, by_distance, by_beta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=dz,
                x=y,
                scale=scale,
                reserve_space_1=beta,
                reserve_space_2=tf.ones_like(beta),
                reserve_space_3=[],
                epsilon=0.0,
                is_training=False,
            )
            precise = tf.abs(gamma) > PRECISE * (tf.abs(beta) + tf.abs(shift))
            inputs = [tf.math.divide_no_nan(by_distance, gamma), dz, x, kernel, mean, by_beta, rate, precise]
            unchanged, again = _branches(unit)
            # `tf.cond` would trace both branches again for each kind of layer, and write them into the graph of each layer.
            (by_gamma,) = tf.raw_ops.StatelessIf(
                cond=tf.reduce_all(precise), input=inputs, Tout=[tf.float32], then_branch=unchanged, else_branch=again
            )
            dx = unit.by_input(scaled, kernel, shape)
            if correction:
                dx += correction(x, by_gamma, by_beta, scale, rate)
            return dx, by_gamma, by_beta

        return y, gradient

    return with_gradient(x, gamma, beta)


@functools.cache
def _branches(unit: _Unit) -> list:
    """Returns two functions to the gradient by gamma: the one that was computed from the output, and from the input again."""
    import tensorflow as tf

    def unchanged(from_output, *others):
        return from_output

    def from_input(from_output, dz, x, kernel, mean, by_beta, rate, precise):
        normed = _by_channel(dz * unit.convolve(x, kernel)) - mean * by_beta
        return tf.where(precise, from_output, rate * normed)

    images, channels = tf.TensorSpec([None] * 4), tf.TensorSpec([None])
    specs = [channels, images, images, images, *[channels] * 3, tf.TensorSpec([None], "bool")]
    with tf.init_scope():
        return [tf.function(each, specs, autograph=False).get_concrete_function() for each in (unchanged, from_input)]


def _by_channel(x):
    """Returns the sums over all axes but the last; this operation is several times faster on CPUs than a reduction."""
    import tensorflow as tf

    return tf.raw_ops.BiasAddGrad(out_backprop=x)
