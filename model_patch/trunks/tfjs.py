"""Trunks out of TensorFlow.js layers models, as Teachable Machine and many npm packages hold them."""

import json
import math
from pathlib import Path, PurePosixPath

import keras
import numpy as np

from model_patch.errors import ModelPatchError, mismatches, reason
from model_patch.files import as_path
from model_patch.graph.keras_private import model_of_old_config
from model_patch.graph.rewrite import functional, walk
from model_patch.layers import variables
from model_patch.spec import Spec
from model_patch.trunk import Trunk
from model_patch.trunks import keras2
from model_patch.trunks.file import file_options, refuse_code, trunk_of_model

DTYPES = ("float32", "int32", "bool", "uint8", "uint16", "float16")
"""Types of numbers in the files of weights."""


def open_tfjs(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `tfjs:PATH/model.json[?preprocessing=MODE&image_size=PIXELS&prefix_tokens=N&top=false][#layer]`.

    The model's topology is read as that of `file:`, with the same checks and options, and its weights out of the files that
    `model.json` names, beside it. Weights that were stored as 8 or 16 bits come back as float32. Nothing is executed. Graph
    models, the other format of TensorFlow.js, have no layers and are refused.

    Args:
        spec: the parsed spec.
        image_size: as for `file:`.

    Raises:
        ModelPatchError: a file is missing, damaged or of another format; or as for `file:`.
    """
    options = file_options(spec)
    path = as_path(spec.rest)
    path = path / "model.json" if path.is_dir() else path
    return trunk_of_model(load_model(path), spec, options, image_size)


def load_model(path: Path) -> keras.Model:
    """Loads a layers model of TensorFlow.js, without running code from it. Raises as `open_tfjs`."""
    if not path.is_file():
        raise ModelPatchError(f"{path} does not exist: expected tfjs:PATH of a model.json, or of its folder")
    try:
        contents = json.loads(path.read_bytes())
        topology, manifest = contents["modelTopology"], contents["weightsManifest"]
        is_graph = contents.get("format") == "graph-model" or "node" in topology
        config = topology.get("model_config", topology)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelPatchError(f"{path} is damaged, or is no model of TensorFlow.js: {reason(error)}") from None
    if is_graph:
        raise ModelPatchError(f"{path} is a graph model, which has no layers: expected a layers model of TensorFlow.js")
    if config.get("class_name") == "Sequential" and isinstance(config.get("config"), list):
        config = {**config, "config": {"name": "sequential", "layers": config["config"]}}
    refuse_code(config, path)
    try:
        model = functional(model_of_old_config(keras2.translated(config)))
    except ModelPatchError:
        raise
    except Exception as error:  # Whatever Keras raises while it makes a model of it, it is about this file.
        raise ModelPatchError(f"{path} cannot be loaded as a Keras model: {reason(error)}") from None
    _assign(model, _weights(path, manifest), path)
    return model


def _weights(path: Path, manifest) -> dict[str, np.ndarray]:
    """Reads the weights that a manifest lists, by name."""
    found: dict[str, np.ndarray] = {}
    try:
        for group in manifest:
            if any(name != PurePosixPath(name).name for name in group["paths"]):
                raise ModelPatchError(f"{path} names weights outside its folder: expected files beside it")
            contents = b"".join((path.parent / name).read_bytes() for name in group["paths"])
            offset = 0
            for weight in group["weights"]:
                value, offset = _weight(weight, contents, offset)
                found[weight["name"].removesuffix(":0").replace("/", "_", weight["name"].count("/") - 1)] = value
            if offset != len(contents):
                raise ValueError(f"{len(contents) - offset} bytes are left over")
    except OSError as error:
        raise ModelPatchError(f"the weights of {path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelPatchError):
            raise
        raise ModelPatchError(f"the weights of {path} are damaged, or of another format: {reason(error)}") from None
    return found


def _weight(weight: dict, contents: bytes, offset: int) -> tuple[np.ndarray, int]:
    """Returns one array of a group's contents, and where the next one begins."""
    stored = weight.get("quantization", {})
    dtype = stored.get("dtype", weight["dtype"])
    if dtype not in DTYPES:
        raise ValueError(f"{weight['name']} is of type {dtype}")
    count = math.prod(weight["shape"])
    values = np.frombuffer(contents, np.dtype(dtype).newbyteorder("<"), count, offset).reshape(weight["shape"])
    end = offset + values.nbytes
    if "scale" in stored:
        values = values.astype("float32") * np.float32(stored["scale"]) + np.float32(stored["min"])
    return values.astype("float32" if stored else weight["dtype"]), end


def _assign(model: keras.Model, weights: dict[str, np.ndarray], path: Path):
    """Sets all variables of a model, by the names of their layers: nested models do not enter the names of a manifest."""
    known: dict[str, keras.Variable] = {}
    for place, layer in walk(model):
        for key, variable in variables(place, layer).items():
            name = f"{layer.name}/{key.removeprefix(f'{place}/')}"
            if name in known:
                raise ModelPatchError(f"two layers of {path} are named {layer.name!r}: expected each name once")
            known[name] = variable
    mismatched = mismatches(
        {name: tuple(variable.shape) for name, variable in known.items()},
        {name: value.shape for name, value in weights.items()},
    )
    if mismatched:
        raise ModelPatchError(f"the weights of {path} are not those of its layers: {mismatched}")
    for name, variable in known.items():
        variable.assign(weights[name])
