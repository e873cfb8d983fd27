"""Layers of a bank: every example of a batch is computed with the values of its own task.

A bank computes in the layout HWBC, (height, width, batch, channels). A scale per example and channel is then one row to
multiply with, and batch times channels can pass for the channels of a single image: what differs from example to example
becomes an ordinary depthwise convolution, which libraries run fused with bias and activation. Pointwise convolutions,
activations and sums do not care for the order of height, width and batch. Everything else is put into `BatchFirst`.
"""

import functools
import math
from collections.abc import Callable, Sequence

import keras
from keras import ops

from model_patch.bank.layout import is_elementwise
from model_patch.layers.wrapped import Wrapped

TO_HWBC, FROM_HWBC = (1, 2, 0, 3), (2, 0, 1, 3)
"""Permutations of (batch, height, width, channels) to the layout of a bank, and back."""


class Banked(keras.layers.Layer):
    """A layer that reads vectors of each example's patch.

    Attributes:
        widths: the widths of the vectors it reads, in its own order.
        places: where they are, `(table, vector)` for each, in a `tables.PatchTable`, which sets them.

    Call arguments:
        inputs: what the layer computes with.
        patches: what the `tables.PatchTable` returned.
    """

    _mp_takes_extra = True

    def __init__(self, widths: Sequence[int], **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.widths = tuple(widths)
        self.places: list[tuple[int, int]] = []

    def build(self, inputs_shape, patches_shape=None):
        self.built = True

    def read(self, patches, start: int, count: int = 1):
        """Returns neighbouring vectors of one width, `(batch, width)`, or `(count, batch, width)` for more than one."""
        table, first = self.places[start]
        return patches[table][first] if count == 1 else patches[table][first : first + count]


class BankedAffine(Banked):
    """Scale and bias per example and channel: what a normalisation in inference, or a convolution's bias, comes to.

        y[b, ..., c] = activation(scale[b, c] * core(x)[b, ..., c] + bias[b, c])

    Args:
        channels: number of channels of the output.
        core: the layer without its scale, bias and activation; None for batch norm, which is nothing else.
        activation: applied last.
        hwbc: whether what has four axes is in HWBC.

    Reads: scale and bias, `(batch, channels)` each. Output shape: that of the core.
    """

    def __init__(
        self,
        channels: int,
        core: keras.Layer | None = None,
        activation: Callable | None = None,
        hwbc: bool = False,
        **kwargs,
    ):
        super().__init__((channels, channels), **kwargs)
        self.core = core
        self.activation = activation
        self.hwbc = hwbc

    def call(self, inputs, patches):
        x = self.core(inputs) if self.core else inputs
        scale, bias = self.read(patches, 0), self.read(patches, 1)
        if self.hwbc and len(x.shape) == 4:
            return _as_one_image(x, ops.reshape(scale, (1, 1, -1, 1)), bias, self.activation)
        shape = (-1, *[1] * (len(x.shape) - 2), x.shape[-1])
        x = x * ops.reshape(scale, shape) + ops.reshape(bias, shape)
        return self.activation(x) if self.activation else x

    def compute_output_spec(self, inputs, patches):
        return self.core.compute_output_spec(inputs) if self.core else keras.KerasTensor(inputs.shape, inputs.dtype)


class BankedBias(Banked):
    """Bias per example of a layer whose bias has any shape, such as the projections of attention.

        y[b] = activation(core(x)[b] + bias[b])

    Args:
        shape: shape of the bias, which is that of the last axes of the output, or of 1 there.
        core: the layer without its bias and activation.
        activation: applied last.

    Reads: the bias, flattened, `(batch, values)`. Output shape: that of the core.
    """

    def __init__(self, shape: Sequence[int], core: keras.Layer, activation: Callable | None = None, **kwargs):
        super().__init__((math.prod(shape),), **kwargs)
        self.bias_shape = tuple(shape)
        self.core = core
        self.activation = activation

    def call(self, inputs, patches):
        x = self.core(inputs)
        ones = [1] * (len(x.shape) - 1 - len(self.bias_shape))
        x = x + ops.cast(ops.reshape(self.read(patches, 0), (-1, *ones, *self.bias_shape)), x.dtype)
        return self.activation(x) if self.activation else x

    def compute_output_spec(self, inputs, patches):
        return self.core.compute_output_spec(inputs)


class BankedDepthwise(Banked):
    """Depthwise convolution with a kernel per example.

        y[i, j, b, c] = activation(bias[b, c] + sum over k, l of kernel[k, l, b, c] * x[i*s + k, j*s + l, b, c])

    (s: stride.) Kernels are either all the task's own, or one shared kernel times a scale per example and channel.

    Args:
        kernel: the shared kernel `(height, width, channels, 1)`; without it each task has its own.
        kernel_size, strides, padding, dilation_rate: as in `keras.layers.DepthwiseConv2D`.
        activation: applied last.
        hwbc: whether images come in HWBC; if not they are brought to it, and back.

    Reads: bias, then the scale, or the kernel as `height * width` vectors; `(batch, channels)` each.
    """

    def __init__(
        self,
        channels: int,
        kernel: keras.Variable | None,
        kernel_size: tuple[int, int],
        strides: tuple[int, int] = (1, 1),
        padding: str = "valid",
        dilation_rate: tuple[int, int] = (1, 1),
        activation: Callable | None = None,
        hwbc: bool = True,
        **kwargs,
    ):
        taps = 1 if kernel is not None else kernel_size[0] * kernel_size[1]
        super().__init__((channels,) * (1 + taps), **kwargs)
        self.kernel = kernel
        self.kernel_size = tuple(kernel_size)
        self.options = (tuple(strides), padding, "channels_last", tuple(dilation_rate))
        self.activation = activation
        self.hwbc = hwbc

    def call(self, inputs, patches):
        x = inputs if self.hwbc else ops.transpose(inputs, TO_HWBC)
        bias = self.read(patches, 0)
        if self.kernel is None:
            kernel = self.read(patches, 1, len(self.widths) - 1)
        else:
            kernel = ops.reshape(self.kernel, (*self.kernel_size, 1, -1)) * self.read(patches, 1)
        x = _as_one_image(x, ops.reshape(kernel, (*self.kernel_size, -1, 1)), bias, self.activation, *self.options)
        return x if self.hwbc else ops.transpose(x, FROM_HWBC)

    def compute_output_spec(self, inputs, patches):
        order = FROM_HWBC if self.hwbc else (0, 1, 2, 3)
        strides, padding, _, dilation_rate = self.options
        one = keras.layers.DepthwiseConv2D(self.kernel_size, strides, padding, dilation_rate=dilation_rate)
        shape = one.compute_output_shape(tuple(inputs.shape[i] for i in order))
        back = TO_HWBC if self.hwbc else (0, 1, 2, 3)
        return keras.KerasTensor([shape[i] for i in back], inputs.dtype)


class BankedSeparable(Banked):
    """Separable convolution: a depthwise one with a kernel per example, then a pointwise one with scale and bias.

    Args:
        depthwise, pointwise: the two, which share the vectors that this layer reads.
    """

    def __init__(self, depthwise: BankedDepthwise, pointwise: BankedAffine, **kwargs):
        super().__init__((*depthwise.widths, *pointwise.widths), **kwargs)
        self.depthwise = depthwise
        self.pointwise = pointwise

    def call(self, inputs, patches):
        count = len(self.depthwise.widths)
        self.depthwise.places, self.pointwise.places = self.places[:count], self.places[count:]
        return self.pointwise(self.depthwise(inputs, patches), patches)

    def compute_output_spec(self, inputs, patches):
        return self.pointwise.compute_output_spec(self.depthwise.compute_output_spec(inputs, patches), patches)


class BatchFirst(Wrapped):
    """A layer of images among layers in HWBC: what has four axes is brought to (batch, height, width, channels), and back.

    TensorFlow's optimizer takes out what two of them undo of one another.
    """

    def around(self, *args, **options):
        args, options = keras.tree.map_structure(lambda x: _permuted(x, FROM_HWBC), (args, options))
        return keras.tree.map_structure(lambda x: _permuted(x, TO_HWBC), self.layer(*args, **options))

    def compute_output_spec(self, *args, **options):
        args, options = keras.tree.map_structure(lambda x: _permuted_spec(x, FROM_HWBC), (args, options))
        outputs = super().compute_output_spec(*args, **options)
        return keras.tree.map_structure(lambda x: _permuted_spec(x, TO_HWBC), outputs)


class Permute(keras.layers.Layer):
    """Brings all four axes of images into another order, the batch's too."""

    def __init__(self, order: Sequence[int], **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.order = tuple(order)

    def call(self, inputs):
        return ops.transpose(inputs, self.order)

    def compute_output_spec(self, inputs):
        return _permuted_spec(inputs, self.order)


class GlobalMean(keras.layers.Layer):
    """Global average pooling in HWBC: to `(batch, channels)`, or with `keepdims` to `(1, 1, batch, channels)`."""

    def __init__(self, keepdims: bool, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.keepdims = keepdims

    def call(self, inputs):
        return ops.mean(inputs, axis=(0, 1), keepdims=self.keepdims)

    def compute_output_shape(self, inputs_shape):
        return (1, 1, *inputs_shape[2:]) if self.keepdims else inputs_shape[2:]


class Product(keras.layers.Layer):
    """Product of tensors in HWBC. That of Keras would take differing heights for differing batches."""

    def call(self, inputs):
        return functools.reduce(ops.multiply, inputs)

    def compute_output_spec(self, inputs):
        shapes = zip(*(x.shape for x in inputs), strict=True)
        return keras.KerasTensor([next((n for n in sizes if n != 1), 1) for sizes in shapes], inputs[0].dtype)


def _permuted(x, order):
    return ops.transpose(x, order) if len(getattr(x, "shape", ())) == 4 else x


def _permuted_spec(x, order):
    return keras.KerasTensor([x.shape[i] for i in order], x.dtype) if len(getattr(x, "shape", ())) == 4 else x


def _as_one_image(x, kernel, bias, activation, *options):
    """Convolves `(height, width, batch, channels)` as one image with batch * channels channels; bias and activation follow.

    In this order, and without anything between the three, TensorFlow computes them as one operation.

    Args:
        x: the images; height, width and channels are static.
        kernel: `(k, l, batch * channels, 1)`.
        bias: `(batch, channels)`.
        activation: or None; one that is not elementwise is applied in Keras' layout.
        *options: options of `ops.depthwise_conv`.
    """
    height, width, _, channels = x.shape
    y = ops.depthwise_conv(ops.reshape(x, (1, height, width, -1)), kernel, *options)
    y = _add_bias(y, ops.reshape(bias, (-1,)))
    fuses = is_elementwise(activation)
    y = activation(y) if activation and fuses else y
    y = ops.reshape(y, (*y.shape[1:3], -1, channels))
    return y if fuses else _permuted(activation(_permuted(y, FROM_HWBC)), TO_HWBC)


def _add_bias(x, bias):
    if keras.backend.backend() != "tensorflow":
        return x + bias
    # An addition of which it does not know the shapes, TensorFlow does not join with the convolution.
    import tensorflow as tf

    return tf.nn.bias_add(x, bias)
