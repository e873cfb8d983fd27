"""Nets that were trained with TensorFlow 1 and slim, and the Keras nets that they are.

A table says for each architecture what its variables are called and which Keras net takes them. The names are those of
slim's released checkpoints, which TensorFlow Hub's modules carry too. Where a net of `keras.applications` pads or
strides otherwise than slim's, the graph here is slim's.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import keras

from model_patch.graph.rewrite import rewrite, walk
from model_patch.trunks.applications import SIZES, build

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a net's variables by name, without the net's own scope."""

Substitution = tuple[str, str | Callable[[re.Match], str]]
"""A regular expression and what replaces it."""

SLIM = {"kernel": "weights", "bias": "biases", "depthwise_kernel": "depthwise_weights"}
"""What slim calls a layer's variables, where it is not the name in this package."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A family of nets.

    Attributes:
        scope: regular expression of the first part of its variables' names.
        build: given that part, the shapes of all variables and the image size, returns the Keras net.
        scopes: given the net, returns the scope of each layer's variables by the layer's path.
        image_size: pixels that it was trained at, for a scope.
        mode: the preprocessing of slim's checkpoints.
        names: what a layer's variables are called, where it is not the name in this package.
        bgr: whether the Keras net gets the channels of an image in the order blue, green, red.
    """

    scope: str
    build: Callable[[str, Shapes, int], keras.Model]
    scopes: Callable[[keras.Model], dict[str, str]]
    image_size: Callable[[str], int] = lambda scope: 224
    mode: str = "tf"
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: SLIM)
    bgr: bool = False


def _by_name(*substitutions: Substitution) -> Callable[[keras.Model], dict[str, str]]:
    """Returns the function that makes a scope out of each layer's name, by substitutions in this order."""

    def scope(name: str) -> str:
        for pattern, replacement in substitutions:
            name = re.sub(pattern, replacement, name)
        return name

    return lambda net: {path: scope(path) for path, _ in walk(net)}


def _width(shapes: Shapes, name: str, channels: int) -> float:
    """Returns the width multiplier of a net by the output channels of one variable: `channels` of them mean 1."""
    return shapes.get(name, (channels,))[-1] / channels


def _mobilenet_v1(scope: str, shapes: Shapes, size: int) -> keras.Model:
    net = build("MobileNet", size, arguments={"alpha": _width(shapes, "Conv2d_13_pointwise/weights", 1024)})

    def as_slim(path, layer):
        # Keras pads one row below and one column on the right, whatever the size. Slim pads as convolutions do.
        if isinstance(layer, keras.layers.ZeroPadding2D):
            return keras.layers.Identity(name=layer.name)
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            return keras.layers.DepthwiseConv2D.from_config(layer.get_config() | {"padding": "same"})
        return layer

    return rewrite(net, as_slim)


def _mobilenet_v2(scope: str, shapes: Shapes, size: int) -> keras.Model:
    return build("MobileNetV2", size, arguments={"alpha": _width(shapes, "expanded_conv_16/project/weights", 320)})


def _mobilenet_v3(scope: str, shapes: Shapes, size: int) -> keras.Model:
    """The features are those after the convolution after the pooling, 1280 or 1024 of them, as in Hub's modules."""
    is_large = "expanded_conv_14/project/weights" in shapes
    last, channels = ("expanded_conv_14", 160) if is_large else ("expanded_conv_10", 96)
    arguments = {
        "alpha": _width(shapes, f"{last}/project/weights", channels),
        "minimalistic": not any("squeeze_excite" in name for name in shapes),
        "include_top": True,
        "dropout_rate": 0,
    }
    net = build("MobileNetV3Large" if is_large else "MobileNetV3Small", size, arguments=arguments)
    features = keras.layers.Flatten(name="features")(net.get_layer("logits").input)
    net = keras.Model(net.input, features, name=net.name)

    def as_slim(layer, *args, **kwargs):
        # Where Keras divides by 6, slim's gates multiply by 0.16667: the features differ by some 1e-4 of their size.
        return layer(*(0.16667 if isinstance(arg, float) and arg == 1 / 6 else arg for arg in args), **kwargs)

    return rewrite(net, lambda path, layer: layer, as_slim)


def _inception_v3(scope: str, shapes: Shapes, size: int) -> keras.Model:
    return build("InceptionV3", size)


def _resnet_v1(scope: str, shapes: Shapes, size: int) -> keras.Model:
    """Slim's ResNet V1: unlike Keras' it strides in the last unit of a block, and its convolutions have no bias."""

    def conv(x, name, channels, kernel, stride=1, activation="relu"):
        if stride > 1:
            x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        padding = "valid" if stride > 1 else "same"
        layer = keras.layers.Conv2D(channels, kernel, stride, padding, use_bias=False, name=f"{name}_conv")
        x = keras.layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(layer(x))
        return keras.layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x

    def unit(x, name, channels, stride):
        if x.shape[-1] != 4 * channels:
            shortcut = conv(x, f"{name}_0", 4 * channels, 1, activation=None)
        else:
            shortcut = keras.layers.MaxPooling2D(1, stride, name=f"{name}_0_pool")(x) if stride > 1 else x
        y = conv(x, f"{name}_1", channels, 1)
        y = conv(y, f"{name}_2", channels, 3, stride)
        y = conv(y, f"{name}_3", 4 * channels, 1, activation=None)
        y = keras.layers.Add(name=f"{name}_add")([shortcut, y])
        return keras.layers.Activation("relu", name=f"{name}_out")(y)

    image = keras.Input((size, size, 3), name="image")
    x = conv(image, "conv1", 64, 7, 2)
    x = keras.layers.MaxPooling2D(3, 2, "same", name="pool1")(x)
    units = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}[scope.rpartition("_")[2]]
    for block, number in enumerate(units):
        for i in range(1, number + 1):
            stride = 2 if i == number and block < 3 else 1
            x = unit(x, f"conv{block + 2}_block{i}", 64 * 2**block, stride)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D(name="avg_pool")(x), name=scope)


def _resnet_v2(scope: str, shapes: Shapes, size: int) -> keras.Model:
    net = build(f"ResNet{scope.rpartition('_')[2]}V2", size)

    def as_slim(path, layer):
        # Keras pads all around before its first pooling, with zeros. Slim's pooling pads as poolings do.
        if path == "pool1_pad":
            return keras.layers.Identity(name=path)
        return keras.layers.MaxPooling2D(3, 2, "same", name=path) if path == "pool1_pool" else layer

    return rewrite(net, as_slim)


def _efficientnet(scope: str, shapes: Shapes, size: int) -> keras.Model:
    return build(_efficientnet_name(scope), size)


def _efficientnet_name(scope: str) -> str:
    """Returns what Keras calls a net: `efficientnet-b0` is EfficientNetB0, `efficientnetv2-s` EfficientNetV2S."""
    family, _, size = scope.partition("-")
    return f"EfficientNet{'V2' if family.endswith('v2') else ''}{size.upper()}"


def _inception_scopes(net: keras.Model) -> dict[str, str]:
    """Keras numbers its layers in the order in which slim makes them; convolution and norm have the same number."""

    def of(path: str) -> str:
        kind, _, number = path.rpartition("_")
        if not number.isdecimal():
            kind, number = path, "0"
        return INCEPTION_V3[int(number)] + ("/BatchNorm" if kind == "batch_normalization" else "")

    return {path: of(path) for path, layer in walk(net) if layer.weights}


def _inception_v3_convolutions() -> list[str]:
    """Returns the scopes of InceptionV3's convolutions in the order in which they are made, slim's odd names too."""
    pooled = ["Branch_3/Conv2d_0b_1x1"]
    dbl_3x3 = ["Branch_2/Conv2d_0a_1x1", "Branch_2/Conv2d_0b_3x3", "Branch_2/Conv2d_0c_3x3"]
    first_1x1 = ["Branch_0/Conv2d_0a_1x1"]
    blocks = {"Mixed_5b": [*first_1x1, "Branch_1/Conv2d_0a_1x1", "Branch_1/Conv2d_0b_5x5", *dbl_3x3, *pooled]}
    blocks["Mixed_5c"] = [*first_1x1, "Branch_1/Conv2d_0b_1x1", "Branch_1/Conv_1_0c_5x5", *dbl_3x3, *pooled]
    blocks["Mixed_5d"] = blocks["Mixed_5b"]
    blocks["Mixed_6a"] = [f"Branch_{x}" for x in ("0/Conv2d_1a_1x1", "1/Conv2d_0a_1x1", "1/Conv2d_0b_3x3")]
    blocks["Mixed_6a"] += ["Branch_1/Conv2d_1a_1x1"]
    sevens = [f"Branch_1/Conv2d_{x}" for x in ("0a_1x1", "0b_1x7", "0c_7x1")]
    dbl_sevens = [f"Branch_2/Conv2d_{x}" for x in ("0a_1x1", "0b_7x1", "0c_1x7", "0d_7x1", "0e_1x7")]
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        blocks[block] = [*first_1x1, *sevens, *dbl_sevens, *pooled]
    blocks["Mixed_7a"] = [*first_1x1, "Branch_0/Conv2d_1a_3x3", *sevens, "Branch_1/Conv2d_1a_3x3"]
    for block, second in (("Mixed_7b", "0b_3x1"), ("Mixed_7c", "0c_3x1")):
        threes = [f"Branch_1/Conv2d_{x}" for x in ("0a_1x1", "0b_1x3", second)]
        dbl_threes = [f"Branch_2/Conv2d_{x}" for x in ("0a_1x1", "0b_3x3", "0c_1x3", "0d_3x1")]
        blocks[block] = [*first_1x1, *threes, *dbl_threes, *pooled]
    stem = [f"Conv2d_{x}" for x in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
    return stem + [f"{block}/{scope}" for block, scopes in blocks.items() for scope in scopes]


INCEPTION_V3 = _inception_v3_convolutions()
"""Scopes of the 94 convolutions of InceptionV3, in the order in which they are made."""


def _efficientnet_scopes(net: keras.Model) -> dict[str, str]:
    """The published names restart the count of convolutions and norms in each block, and call them by their classes."""
    scopes = {"stem_conv": "stem/conv2d", "stem_bn": "stem/tpu_batch_normalization"}
    scopes |= {"top_conv": "head/conv2d", "top_bn": "head/tpu_batch_normalization"}
    counts: dict[str, int] = {}
    blocks: list[str] = []
    for path, layer in walk(net):
        if path in scopes or not layer.weights or not (match := re.fullmatch(r"(block\d+[a-z]+)_(\w+)", path)):
            continue
        block, part = match.groups()
        if block not in blocks:
            blocks.append(block)
        scope = f"blocks_{blocks.index(block)}"
        kinds = {"dwconv": "depthwise_conv2d", "se_reduce": "se/conv2d", "se_expand": "se/conv2d_1"}
        kinds["dwconv2"] = kinds["dwconv"]  # Its name in EfficientNetV2.
        kind = kinds.get(part) or ("tpu_batch_normalization" if part.endswith("bn") else "conv2d")
        if part not in kinds:
            number = counts.get(f"{scope}/{kind}", 0)
            counts[f"{scope}/{kind}"] = number + 1
            kind += f"_{number}" if number else ""
        scopes[path] = f"{scope}/{kind}"
    return scopes


def _resnet_scopes(version: int) -> Callable[[keras.Model], dict[str, str]]:
    return _by_name(
        (r"^conv1_", "1_"),
        (r"^conv(\d)_block(\d+)_", lambda match: f"block{int(match[1]) - 1}/unit_{match[2]}/bottleneck_v{version}/"),
        (r"0_(?=conv|bn)", "shortcut_"),
        (r"\b(\d)_(?=conv|bn)", r"conv\1_"),
        (r"preact_bn$", "preact"),
        (r"^post_bn$", "postnorm"),
        (r"_conv$", ""),
        (r"_bn$", "/BatchNorm"),
    )


ARCHITECTURES = [
    Architecture(
        "MobilenetV1",
        _mobilenet_v1,
        _by_name(
            (r"_bn$", "/BatchNorm"),
            (r"^conv1", "Conv2d_0"),
            (r"^conv_dw_(\d+)", r"Conv2d_\1_depthwise"),
            (r"^conv_pw_(\d+)", r"Conv2d_\1_pointwise"),
        ),
    ),
    Architecture(
        "MobilenetV2",
        _mobilenet_v2,
        _by_name(
            (r"^bn_Conv1$", "Conv1_bn"),
            (r"_(bn|BN)$", "/BatchNorm"),
            (r"^Conv1\b", "Conv"),
            (r"^block_(\d+)_", r"expanded_conv_\1/"),
            (r"^expanded_conv_(?=[a-z])", "expanded_conv/"),
        ),
    ),
    Architecture(
        "MobilenetV3",
        _mobilenet_v3,
        _by_name(
            (r"_bn$", "/BatchNorm"),
            (r"^conv", "Conv"),
            (r"_squeeze_excite_conv", "/squeeze_excite/Conv"),
            (r"_(?=expand|depthwise|project)", "/"),
        ),
        mode="none",  # Keras' net scales by itself, to what slim's takes.
    ),
    Architecture("InceptionV3", _inception_v3, _inception_scopes, lambda scope: 299),
    Architecture(r"resnet_v1_(50|101|152)", _resnet_v1, _resnet_scopes(1), mode="caffe", bgr=True),
    Architecture(r"resnet_v2_(50|101|152)", _resnet_v2, _resnet_scopes(2)),
    Architecture(
        r"efficientnet(-b[0-7]|v2-(b[0-3]|[sml]))",
        _efficientnet,
        _efficientnet_scopes,
        lambda scope: SIZES.get(_efficientnet_name(scope), 224),
        mode="none",  # As for MobileNetV3.
        names={},
    ),
]
"""Every architecture whose variables can be taken over."""
