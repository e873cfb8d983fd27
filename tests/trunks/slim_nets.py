"""Nets as slim wrote them, in plain TensorFlow: what the tables of `architectures` are held against.

Written from the sources of slim, and of EfficientNet, apart from this package and from Keras. Values are random, and uneven as after training.
"""

import numpy as np
import tensorflow as tf

relu, relu6 = tf.nn.relu, tf.nn.relu6


def hard_swish(x):
    return x * relu6(x + 3.0) * (1.0 / 6.0)


class SlimNet(tf.Module):
    """A net whose variables have slim's names, as TensorFlow Hub's reusable SavedModels have them.

    Called with images `(batch, size, size, 3)` it gives features `(batch, channels)`. With `training=True` batch norms use
    the batch's mean and variance and move their own.
    """

    def __init__(self, scope, net, size, seed=0, scale=lambda images: images, momentum=0.9):
        super().__init__()
        self.scope, self.net, self.scale, self.momentum = scope, net, scale, momentum
        self.rng = np.random.default_rng(seed)
        self.by_name = {}
        self.features(np.zeros((1, size, size, 3), "float32"), False)  # Makes the variables.
        self.variables_ = list(self.by_name.values())

    def features(self, images, training):
        self.training, self.made = training, {}
        return self.net(self, self.scale(tf.cast(images, tf.float32)))

    def value(self, name, shape, kind):
        name = f"{self.scope}/{name}"
        if name not in self.by_name:
            values = {
                "weights": lambda: self.rng.normal(0, (1.6 / np.prod(shape[:-1])) ** 0.5, shape),
                "depthwise": lambda: self.rng.normal(0, (1.6 / np.prod(shape[:2])) ** 0.5, shape),
                "positive": lambda: self.rng.uniform(0.5, 1.5, shape),
                "small": lambda: self.rng.uniform(-0.2, 0.2, shape),
            }[kind]()
            learnt = "moving" not in name
            self.by_name[name] = tf.Variable(values.astype("float32"), trainable=learnt, name=name)
        return self.by_name[name]

    def norm(self, x, scope, activation=None, scaled=True, epsilon=1e-3):
        channels = (x.shape[-1],)
        beta = self.value(f"{scope}/beta", channels, "small")
        gamma = self.value(f"{scope}/gamma", channels, "positive") if scaled else None
        mean = self.value(f"{scope}/moving_mean", channels, "small")
        variance = self.value(f"{scope}/moving_variance", channels, "positive")
        used = mean, variance
        if self.training:
            used = tf.nn.moments(x, [0, 1, 2])
            for moving, new in zip((mean, variance), used, strict=True):
                moving.assign(moving * self.momentum + new * (1 - self.momentum))
        x = tf.nn.batch_normalization(x, *used, beta, gamma, epsilon)
        return activation(x) if activation else x

    def conv(self, x, scope, channels, kernel, stride=1, padding="SAME", activation=relu, **norm):
        """Convolution, batch norm, activation; with `channels=None` a depthwise convolution."""
        x = self.plain_conv(x, scope, channels, kernel, stride, padding, biases=False)
        return self.norm(x, f"{scope}/BatchNorm", activation, **norm)

    def plain_conv(self, x, scope, channels, kernel, stride=1, padding="SAME", activation=None, biases=True):
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        if channels is None:
            weights = self.value(f"{scope}/depthwise_weights", (height, width, x.shape[-1], 1), "depthwise")
            x = tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], padding)
        else:
            weights = self.value(f"{scope}/weights", (height, width, x.shape[-1], channels), "weights")
            x = tf.nn.conv2d(x, weights, stride, padding)
        if biases:
            x += self.value(f"{scope}/biases", (x.shape[-1],), "small")
        return activation(x) if activation else x

    def weights(self, x, scope, channels, kernel, stride=1, biases=False):
        """Convolution, or with `channels=None` a depthwise one, named as by EfficientNet's authors."""
        shape = (kernel, kernel, x.shape[-1], channels or 1)
        if channels is None:
            weights = self.value(f"{scope}/depthwise_kernel", shape, "depthwise")
            return tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], "SAME")
        x = tf.nn.conv2d(x, self.value(f"{scope}/kernel", shape, "weights"), stride, "SAME")
        return x + self.value(f"{scope}/bias", (channels,), "small") if biases else x

    def number(self, scope):
        """Returns a scope's name made unique as TensorFlow 1 does: the second one gets `_1`."""
        count = self.made[scope] = self.made.get(scope, -1) + 1
        return f"{scope}_{count}" if count else scope


def divisible(value, by=8):
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


def tiny(m, x):
    """No net of anybody: 8 and 12 channels."""
    x = m.conv(x, "first", 8, 3, 2)
    x = m.conv(x, "second/depthwise", None, 3)
    return tf.reduce_mean(m.plain_conv(x, "third", 12, 1), [1, 2])


def mobilenet_v1(alpha):
    def net(m, x):
        x = m.conv(x, "Conv2d_0", int(32 * alpha), 3, 2, activation=relu6)
        channels = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
        for i, (number, stride) in enumerate(zip(channels, [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1], strict=True), 1):
            x = m.conv(x, f"Conv2d_{i}_depthwise", None, 3, stride, activation=relu6)
            x = m.conv(x, f"Conv2d_{i}_pointwise", int(number * alpha), 1, activation=relu6)
        return tf.reduce_mean(x, [1, 2])

    return net


def mobilenet_v2(alpha):
    def net(m, x):
        x = m.conv(x, "Conv", divisible(32 * alpha), 3, 2, activation=relu6)
        rows = [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]
        for factor, channels, repeats, first_stride in rows:
            for i in range(repeats):
                scope, before, stride = m.number("expanded_conv"), x, first_stride if i == 0 else 1
                if factor > 1:
                    x = m.conv(x, f"{scope}/expand", x.shape[-1] * factor, 1, activation=relu6)
                x = m.conv(x, f"{scope}/depthwise", None, 3, stride, activation=relu6)
                x = m.conv(x, f"{scope}/project", divisible(channels * alpha), 1, activation=None)
                if before.shape[1:] == x.shape[1:]:
                    x += before
        x = m.conv(x, "Conv_1", divisible(1280 * max(alpha, 1)), 1, activation=relu6)
        return tf.reduce_mean(x, [1, 2])

    return net


def mobilenet_v3_small(minimalistic=False):
    swish, five = (relu, 3) if minimalistic else (hard_swish, 5)

    def net(m, x):
        x = m.conv(x, m.number("Conv"), 16, 3, 2, activation=swish)
        rows = [(1, 16, 3, 2, relu, True), (72 / 16, 24, 3, 2, relu, False), (88 / 24, 24, 3, 1, relu, False)]
        rows += [(4, 40, five, 2, swish, True), *[(6, 40, five, 1, swish, True)] * 2]
        rows += [(3, 48, five, 1, swish, True)] * 2
        rows += [(6, 96, five, 2, swish, True), *[(6, 96, five, 1, swish, True)] * 2]
        for factor, channels, kernel, stride, activation, squeezes in rows:
            scope, before, inner = m.number("expanded_conv"), x, divisible(x.shape[-1] * factor)
            if inner > x.shape[-1]:
                x = m.conv(x, f"{scope}/expand", inner, 1, activation=activation)
            x = m.conv(x, f"{scope}/depthwise", None, kernel, stride, activation=activation)
            if squeezes and not minimalistic:
                gate = tf.reduce_mean(x, [1, 2], keepdims=True)
                gate = m.plain_conv(gate, f"{scope}/squeeze_excite/Conv", divisible(inner / 4), 1, activation=relu)
                gate = m.plain_conv(gate, f"{scope}/squeeze_excite/Conv_1", inner, 1)
                x *= relu6(gate + 3) * 0.16667
            x = m.conv(x, f"{scope}/project", channels, 1, activation=None)
            if stride == 1 and before.shape[-1] == channels:
                x += before
        x = m.conv(x, m.number("Conv"), 576, 1, activation=swish)
        x = tf.reduce_mean(x, [1, 2], keepdims=True)
        return tf.squeeze(m.plain_conv(x, m.number("Conv"), 1024, 1, activation=swish), [1, 2])

    return net


def inception_v3(m, x):
    def conv(x, scope, channels, kernel, stride=1, padding="SAME"):
        return m.conv(x, scope, channels, kernel, stride, padding, scaled=False)

    def chain(x, scope, *convolutions):
        for name, channels, kernel in convolutions:
            x = conv(x, f"{scope}/{name}", channels, kernel)
        return x

    def pooled(x, scope, channels):
        return conv(tf.nn.avg_pool2d(x, 3, 1, "SAME"), f"{scope}/Branch_3/Conv2d_0b_1x1", channels, 1)

    x = conv(x, "Conv2d_1a_3x3", 32, 3, 2, "VALID")
    x = conv(x, "Conv2d_2a_3x3", 32, 3, 1, "VALID")
    x = conv(x, "Conv2d_2b_3x3", 64, 3)
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    x = conv(x, "Conv2d_3b_1x1", 80, 1, 1, "VALID")
    x = conv(x, "Conv2d_4a_3x3", 192, 3, 1, "VALID")
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    for s, channels in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        one, five = ("Conv2d_0b_1x1", "Conv_1_0c_5x5") if s == "Mixed_5c" else ("Conv2d_0a_1x1", "Conv2d_0b_5x5")
        a = chain(x, f"{s}/Branch_0", ("Conv2d_0a_1x1", 64, 1))
        b = chain(x, f"{s}/Branch_1", (one, 48, 1), (five, 64, 5))
        c = chain(x, f"{s}/Branch_2", ("Conv2d_0a_1x1", 64, 1), ("Conv2d_0b_3x3", 96, 3), ("Conv2d_0c_3x3", 96, 3))
        x = tf.concat([a, b, c, pooled(x, s, channels)], 3)
    a = conv(x, "Mixed_6a/Branch_0/Conv2d_1a_1x1", 384, 3, 2, "VALID")
    b = chain(x, "Mixed_6a/Branch_1", ("Conv2d_0a_1x1", 64, 1), ("Conv2d_0b_3x3", 96, 3))
    b = conv(b, "Mixed_6a/Branch_1/Conv2d_1a_1x1", 96, 3, 2, "VALID")
    x = tf.concat([a, b, tf.nn.max_pool2d(x, 3, 2, "VALID")], 3)
    across, down = (1, 7), (7, 1)
    for s, n in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        a = chain(x, f"{s}/Branch_0", ("Conv2d_0a_1x1", 192, 1))
        b = chain(
            x, f"{s}/Branch_1", ("Conv2d_0a_1x1", n, 1), ("Conv2d_0b_1x7", n, across), ("Conv2d_0c_7x1", 192, down)
        )
        c = chain(x, f"{s}/Branch_2", ("Conv2d_0a_1x1", n, 1), ("Conv2d_0b_7x1", n, down), ("Conv2d_0c_1x7", n, across))
        c = chain(c, f"{s}/Branch_2", ("Conv2d_0d_7x1", n, down), ("Conv2d_0e_1x7", 192, across))
        x = tf.concat([a, b, c, pooled(x, s, 192)], 3)
    a = chain(x, "Mixed_7a/Branch_0", ("Conv2d_0a_1x1", 192, 1))
    a = conv(a, "Mixed_7a/Branch_0/Conv2d_1a_3x3", 320, 3, 2, "VALID")
    b = chain(x, "Mixed_7a/Branch_1", ("Conv2d_0a_1x1", 192, 1), ("Conv2d_0b_1x7", 192, across))
    b = chain(b, "Mixed_7a/Branch_1", ("Conv2d_0c_7x1", 192, down))
    b = conv(b, "Mixed_7a/Branch_1/Conv2d_1a_3x3", 192, 3, 2, "VALID")
    x = tf.concat([a, b, tf.nn.max_pool2d(x, 3, 2, "VALID")], 3)
    for s, second in (("Mixed_7b", "Conv2d_0b_3x1"), ("Mixed_7c", "Conv2d_0c_3x1")):
        a = chain(x, f"{s}/Branch_0", ("Conv2d_0a_1x1", 320, 1))
        b = chain(x, f"{s}/Branch_1", ("Conv2d_0a_1x1", 384, 1))
        b = [conv(b, f"{s}/Branch_1/Conv2d_0b_1x3", 384, (1, 3)), conv(b, f"{s}/Branch_1/{second}", 384, (3, 1))]
        c = chain(x, f"{s}/Branch_2", ("Conv2d_0a_1x1", 448, 1), ("Conv2d_0b_3x3", 384, 3))
        c = [conv(c, f"{s}/Branch_2/Conv2d_0c_1x3", 384, (1, 3)), conv(c, f"{s}/Branch_2/Conv2d_0d_3x1", 384, (3, 1))]
        x = tf.concat([a, *b, *c, pooled(x, s, 192)], 3)
    return tf.reduce_mean(x, [1, 2])


def resnet_50(version):
    def strided(x, pad):
        return tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])

    def unit_v1(m, x, scope, channels, stride):
        norm = {"epsilon": 1e-5}
        if x.shape[-1] == 4 * channels:
            shortcut = x[:, ::stride, ::stride]
        else:
            shortcut = m.conv(x, f"{scope}/shortcut", 4 * channels, 1, stride, activation=None, **norm)
        x = m.conv(x, f"{scope}/conv1", channels, 1, **norm)
        padding = "SAME" if stride == 1 else "VALID"
        x = m.conv(x if stride == 1 else strided(x, 1), f"{scope}/conv2", channels, 3, stride, padding, **norm)
        return relu(shortcut + m.conv(x, f"{scope}/conv3", 4 * channels, 1, activation=None, **norm))

    def unit_v2(m, x, scope, channels, stride):
        norm = {"epsilon": 1e-5}
        before = m.norm(x, f"{scope}/preact", relu, **norm)
        if x.shape[-1] == 4 * channels:
            shortcut = x[:, ::stride, ::stride]
        else:
            shortcut = m.plain_conv(before, f"{scope}/shortcut", 4 * channels, 1, stride)
        x = m.conv(before, f"{scope}/conv1", channels, 1, **norm)
        padding = "SAME" if stride == 1 else "VALID"
        x = m.conv(x if stride == 1 else strided(x, 1), f"{scope}/conv2", channels, 3, stride, padding, **norm)
        return shortcut + m.plain_conv(x, f"{scope}/conv3", 4 * channels, 1)

    def net(m, x):
        x = strided(x, 3)
        if version == 1:
            x = m.conv(x, "conv1", 64, 7, 2, "VALID", epsilon=1e-5)
        else:
            x = m.plain_conv(x, "conv1", 64, 7, 2, "VALID")
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        for block, (channels, units) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
            for i in range(1, units + 1):
                stride = 2 if i == units and block < 4 else 1
                unit = unit_v1 if version == 1 else unit_v2
                x = unit(m, x, f"block{block}/unit_{i}/bottleneck_v{version}", channels, stride)
        if version == 2:
            x = m.norm(x, "postnorm", relu, epsilon=1e-5)
        return tf.reduce_mean(x, [1, 2])

    return net


def efficientnet_b0(version):
    swish = tf.nn.swish
    # Factor of expansion, channels, kernel, stride of the first, how many; fused: one full convolution, and no gate.
    if version == 1:
        rows = [(1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3), (6, 112, 5, 1, 3)]
        rows += [(6, 192, 5, 2, 4), (6, 320, 3, 1, 1)]
        fused = 0
    else:
        rows = [(1, 16, 3, 1, 1), (4, 32, 3, 2, 2), (4, 48, 3, 2, 2), (4, 96, 3, 2, 3), (6, 112, 3, 1, 5)]
        rows += [(6, 192, 3, 2, 8)]
        fused = 3

    def convolved(m, x, scope, channels, kernel=1, stride=1, activation=swish):
        kind = "conv2d" if channels else "depthwise_conv2d"
        x = m.weights(x, m.number(f"{scope}/{kind}"), channels, kernel, stride)
        return m.norm(x, m.number(f"{scope}/tpu_batch_normalization"), activation)

    def block(m, x, scope, factor, channels, kernel, stride):
        before = x
        if factor > 1:
            x = convolved(m, x, scope, x.shape[-1] * factor)
        x = convolved(m, x, scope, None, kernel, stride)
        gate = tf.reduce_mean(x, [1, 2], keepdims=True)
        gate = swish(m.weights(gate, f"{scope}/se/conv2d", before.shape[-1] // 4, 1, biases=True))
        x *= tf.sigmoid(m.weights(gate, f"{scope}/se/conv2d_1", x.shape[-1], 1, biases=True))
        return convolved(m, x, scope, channels, activation=None)

    def fused_block(m, x, scope, factor, channels, kernel, stride):
        if factor == 1:
            return convolved(m, x, scope, channels, kernel, stride)
        return convolved(
            m, convolved(m, x, scope, x.shape[-1] * factor, kernel, stride), scope, channels, activation=None
        )

    def net(m, x):
        x = convolved(m, x, "stem", 32, 3, 2)
        number = 0
        for stage, (factor, channels, kernel, first_stride, repeats) in enumerate(rows):
            for i in range(repeats):
                before, stride = x, first_stride if i == 0 else 1
                make = fused_block if stage < fused else block
                x = make(m, x, f"blocks_{number}", factor, channels, kernel, stride)
                if stride == 1 and before.shape[-1] == channels:
                    x += before
                number += 1
        return tf.reduce_mean(convolved(m, x, "head", 1280), [1, 2])

    return net
