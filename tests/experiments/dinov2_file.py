"""A small DINOv2 of random values as an ONNX file, with the names of the package that real_bench fetches."""

import numpy as np
import pytest

ATTENTION = (*(f"attention.attention.{part}" for part in ("query", "key", "value")), "attention.output.dense")


def write_dinov2(path, blocks: int = 1, width: int = 64) -> dict[str, np.ndarray]:
    """Writes the file; returns its arrays by name. Positions are those of 5 x 5 patches, images thus of 70 px."""
    onnx = pytest.importorskip("onnx")
    random = np.random.default_rng(0)
    names = [f"backbone.encoder.layer.{i}" for i in range(blocks)]
    linear = {f"{block}.{name}": (width, width) for block in names for name in ATTENTION}
    for block in names:
        linear |= {f"{block}.mlp.fc1": (width, 4 * width), f"{block}.mlp.fc2": (4 * width, width)}
    norms = ["backbone.layernorm", *(f"{block}.norm{i}" for block in names for i in (1, 2))]
    shapes = {
        "backbone.embeddings.cls_token": (1, 1, width),
        "position of the class token": (1, 1, width),
        "positions": (1, 25, width),
        "backbone.embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "backbone.embeddings.patch_embeddings.projection.bias": (width,),
        **{f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")},
        **{f"{block}.layer_scale{i}.lambda1": (width,) for block in names for i in (1, 2)},
        **{f"{name}.bias": shape[1:] for name, shape in linear.items()},
        **{f"matrix {name}": shape for name, shape in linear.items()},
    }
    values = {name: random.uniform(-0.5, 0.5, shape).astype("float32") for name, shape in shapes.items()}
    make = onnx.helper.make_node
    nodes = [make("MatMul", ["x", f"matrix {name}"], [f"product {name}"]) for name in linear]
    nodes += [make("Add", [f"{name}.bias", f"product {name}"], [f"sum {name}"]) for name in linear]
    arrays = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", [], [], arrays)), path)
    return values
