"""Pretrained nets of other frameworks as Keras models: EfficientNet-Lite0 of a PyTorch file, DINOv2-S of an ONNX file."""

from __future__ import annotations

import collections
import functools
import math
import pickle
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_patch.errors import ModelPatchError

if TYPE_CHECKING:  # Configs import `real_bench`, which imports this module, and mistakes in flags import no Keras.
    import keras


def efficientnet_lite0(path: Path, size: int = 224) -> keras.Model:
    """Returns EfficientNet-Lite0 without its last layer, with ImageNet weights from a PyTorch state dict.

    The net is EfficientNet-B0 (Tan and Le 2019, table 1) with ReLU6, without squeeze-and-excitation.
    """
    import keras

    values = _state_dict(path)
    layers = keras.layers
    images = keras.Input((size, size, 3))

    def norm(x, name: str, activate: bool = True):
        x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if activate else x

    def conv(x, name: str, filters: int, kernel: int = 1, strides: int = 1):
        return layers.Conv2D(filters, kernel, strides, "same", use_bias=False, name=name)(x)

    x = norm(conv(images, "conv_stem", 32, 3, 2), "bn0")
    block = 0
    for expansion, channels, repeats, strides, kernel in (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):
        for i in range(repeats):
            name, before, stride = f"blocks_{block}", x, strides if i == 0 else 1
            if expansion > 1:
                x = norm(conv(x, f"{name}_expand_conv", before.shape[-1] * expansion), f"{name}_bn0")
            depthwise = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")
            x = norm(depthwise(x), f"{name}_bn1")
            x = norm(conv(x, f"{name}_project_conv", channels), f"{name}_bn2", activate=False)
            if stride == 1 and before.shape[-1] == channels:
                x = layers.Add(name=f"{name}_add")([x, before])
            block += 1
    x = norm(conv(x, "conv_head", 1280), "bn1")
    model = keras.Model(images, x, name="efficientnet_lite0")
    for layer in model.layers:
        key = "_" + re.sub(r"^blocks_(\d+)_", r"blocks.\1._", layer.name)
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([values[f"{key}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")])
        elif isinstance(layer, layers.DepthwiseConv2D):
            layer.set_weights([values[f"{key}.weight"].transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):
            layer.set_weights([values[f"{key}.weight"].transpose(2, 3, 1, 0)])
    return model


def dinov2_small(path: Path, size: int = 70, blocks: int = 12) -> keras.Model:
    """Returns DINOv2-S/14 with the weights of an ONNX file that has it as its backbone: images to tokens, class token first.

    A layer of `normalization` adds the positions, interpolated to this size, and in the first place the class token.

    Args:
        path: path of the file, with names as in Hugging Face's `Dinov2Model` after `backbone.`.
        size: height and width in pixels, a multiple of 14.
        blocks: number of transformer blocks (Oquab et al. 2023).

    Raises:
        ModelPatchError: `onnx` is not installed.
    """
    import keras

    values = _onnx_values(path)
    layers, side = keras.layers, size // 14
    layer_scale = sys.modules[keras.applications.ConvNeXtTiny.__module__].LayerScale
    (grid,) = [value for value in values.values() if value.ndim == 3 and value.shape[1] > 1]
    width, trained = grid.shape[-1], math.isqrt(grid.shape[1])
    resize = functools.partial(keras.ops.image.resize, interpolation="bicubic", antialias=True)
    grid = np.asarray(resize(grid.reshape(1, trained, trained, width), (side, side))).reshape(side * side, width)
    # The token and its position are two vectors of one shape.
    first = sum(value[0] for value in values.values() if value.shape == (1, 1, width))
    positions = np.concatenate([first, grid])

    images = keras.Input((size, size, 3))
    x = layers.Conv2D(width, 14, 14, name="patches")(images)
    x = layers.ZeroPadding1D((1, 0), name="class_token")(layers.Reshape((side * side, width), name="tokens")(x))
    x = layers.Normalization(axis=(1, 2), mean=-positions, variance=np.ones_like(positions), name="positions")(x)
    for i in range(blocks):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block_{i}_norm1")(x)
        y = layers.MultiHeadAttention(width // 64, 64, name=f"block_{i}_attention")(y, y)
        x = layers.Add(name=f"block_{i}_add1")([x, layer_scale(1.0, width, name=f"block_{i}_layer_scale1")(y)])
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block_{i}_norm2")(x)
        y = layers.Dense(4 * width, activation="gelu", name=f"block_{i}_mlp.fc1")(y)
        y = layers.Dense(width, name=f"block_{i}_mlp.fc2")(y)
        x = layers.Add(name=f"block_{i}_add2")([x, layer_scale(1.0, width, name=f"block_{i}_layer_scale2")(y)])
    model = keras.Model(images, layers.LayerNormalization(epsilon=1e-6, name="layernorm")(x), name="dinov2_small")
    for layer in model.layers:
        key = "backbone." + re.sub(r"^block_(\d+)_", r"encoder.layer.\1.", layer.name)
        if isinstance(layer, layers.Conv2D):
            key = "backbone.embeddings.patch_embeddings.projection"
            layer.set_weights([values[f"{key}.weight"].transpose(2, 3, 1, 0), values[f"{key}.bias"]])
        elif isinstance(layer, layers.MultiHeadAttention):
            names = [f"{key}.attention.{name}" for name in ("query", "key", "value")] + [f"{key}.output.dense"]
            given = [values[f"{name}.{part}"] for name in names for part in ("weight", "bias")]
            layer.set_weights([new.reshape(old.shape) for new, old in zip(given, layer.get_weights(), strict=True)])
        elif isinstance(layer, layers.Dense | layers.LayerNormalization):
            layer.set_weights([values[f"{key}.weight"], values[f"{key}.bias"]])
        elif isinstance(layer, layer_scale):
            layer.set_weights([values[f"{key}.lambda1"]])
    return model


def _onnx_values(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an ONNX file. A matrix without a name of its own is called as the bias that is added after it."""
    try:
        import onnx
    except ImportError:
        raise ModelPatchError(f"{path.name} is an ONNX file: pip install 'model_patch[onnx]'") from None
    graph = onnx.load(path).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        for bias, product in (node.input, node.input[::-1]) if node.op_type == "Add" else ():
            if bias.endswith(".bias") and products.get(product) in values:
                values[f"{bias.removesuffix('bias')}weight"] = values[products[product]]
    return values


def _state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch file of before version 1.6: pickles, then the storages' bytes. No code in it is run."""
    storages: dict[str, np.ndarray] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("collections", "OrderedDict"):
                return collections.OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda storage, offset, shape, stride, *_: (storage, offset, shape, stride)
            if module == "torch" and name in types:
                return types[name]
            raise pickle.UnpicklingError(f"{module}.{name} is not expected")

        def persistent_load(self, pid):
            _, dtype, key, _, size, _ = pid
            storages[key] = np.empty(size, dtype)
            return storages[key]

    types = {"FloatStorage": "<f4", "LongStorage": "<i8"}
    with path.open("rb") as file:
        for _ in range(3):
            Reader(file).load()  # Magic number, protocol, sizes of types.
        tensors = Reader(file).load()
        for key in Reader(file).load():
            file.read(8)
            storages[key][:] = np.frombuffer(file.read(storages[key].nbytes), storages[key].dtype)
    return {
        name: np.lib.stride_tricks.as_strided(storage[offset:], shape, [each * storage.itemsize for each in stride])
        for name, (storage, offset, shape, stride) in tensors.items()
    }
