"""Reading whole models that Keras 2 saved: Keras 3 reads most of such files, and this module translates the rest.

The differences, found in files written by tf_keras 2.21 and read by Keras 3.15:

- Depthwise and separable convolutions and random augmentations carry arguments that Keras 3 refuses. None has an effect.
- `.keras` files name the classes of graphs by modules that Keras 3 does not have.
- A graph inside a Sequential, and every graph in a `.keras` file, mixes the old and the new format. In these Keras 3 leaves
  arguments untranslated: an axis in a list, the input shape of a first layer, a mixed precision policy.
- Keras 3 drops an axis argument of several axes from HDF5 files, and computes along the last axis instead.
- Names may contain `/`, as in Keras 2's DenseNet. Keras 3 refuses them; its own DenseNet has `_` in these places.
- A nested graph's calls are counted from 1, after the one that built it. Keras 3 counts its calls from 0, and knows of the
  difference only where the nested graph is the output.
"""

import json
import shutil
import zipfile
from pathlib import Path

import h5py

_OF_CONV = {"groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"}

_RANDOM = ("Brightness", "Contrast", "Crop", "Flip", "Rotation", "Translation", "Zoom")

WITHOUT_EFFECT = {
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"), _OF_CONV),
    **{f"Conv{rank}DTranspose": {"groups"} for rank in (1, 2, 3)},
    **{f"SpatialDropout{rank}D": {"noise_shape", "trainable"} for rank in (1, 2, 3)},
    **{f"Random{name}": {"rng_type"} for name in _RANDOM},
    "MultiHeadAttention": {"query_shape", "key_shape", "value_shape", "softmax_robust_masking"},
}
"""Arguments that Keras 2 writes for a layer, by its class, and Keras 3 does not take."""

GRAPHS = {"Functional": "keras.src.models.functional", "Sequential": "keras.src.models.sequential"}
"""Modules of the classes of graphs, as in files of Keras 3."""


POLICIES = ("Policy", "PolicyV1")
"""Classes of mixed precision policies in Keras 2. Keras 3 knows the policies by the same names."""


def translated(config):
    """Returns a saved model's configuration, any JSON value, as Keras 3 reads it; equal where it can be read already."""
    if isinstance(config, list):
        return [translated(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: translated(value) for key, value in config.items()}
    if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), dict):
        _modernise_layer(config)
    if isinstance(config.get("layers"), list):
        _modernise_graph(config)
    return config


def _modernise_layer(layer: dict):
    """Rewrites the configuration of one layer or graph, in place."""
    name, module = layer["class_name"], layer.get("module")
    if name in GRAPHS and isinstance(module, str) and "keras" in module and ".engine" in module:
        layer |= {"module": GRAPHS[name], "registered_name": name}
    arguments = {key: value for key, value in layer["config"].items() if key not in WITHOUT_EFFECT.get(name, ())}
    if not arguments.get("time_major", True):
        del arguments["time_major"]  # Of recurrent layers; Keras 3 knows the other order only.
    if isinstance(arguments.get("name"), str):
        arguments["name"] = arguments["name"].replace("/", "_")
    shape = arguments.pop("batch_input_shape", None)
    if shape and name == "InputLayer":
        # An adapted Normalization layer leaves even the channels open: images have three.
        arguments["batch_shape"] = [*shape[:-1], 3] if len(shape) == 4 and not shape[-1] else shape
    axis = arguments.get("axis")
    if isinstance(axis, list) and len(axis) == 1:
        (arguments["axis"],) = axis
    elif isinstance(axis, list) and not module:
        layer |= {"module": "keras.layers", "registered_name": None}  # Read in the new format, it keeps its axes.
    policy = arguments.get("dtype")
    if isinstance(policy, dict) and policy.get("class_name") in POLICIES:
        arguments["dtype"] = policy["config"]["name"]
    layer["config"] = arguments


def _modernise_graph(graph: dict):
    """Rewrites the names of a graph's layers and how it says what calls what, in place. Does not change one of Keras 3."""
    names: dict[str, str] = {}
    classes: dict[str, str] = {}
    for layer in graph["layers"]:
        old = layer.get("name", layer["config"].get("name"))
        new = layer["config"].get("name", old)
        while new in names.values():
            new += "_"
        layer["config"]["name"] = names[old] = new
        if "name" in layer:
            layer["name"] = new
        if "layers" in layer["config"]:
            classes[old] = layer["class_name"]

    def reference(given: list, is_output: bool = False) -> list:
        name, call, *rest = given
        counted_from_1 = classes.get(name) == "Sequential" if is_output else name in classes
        return [names[name], call - counted_from_1, *rest]

    calls = [call for layer in graph["layers"] for call in layer.get("inbound_nodes", ()) if isinstance(call, list)]
    if not calls:
        return  # Keras 3 writes dicts.
    for layer in graph["layers"]:
        layer.pop("build_config", None)  # The calls build the layers.
    for call in calls:
        call[:] = [reference(each) for each in call]
    for key in ("input_layers", "output_layers"):
        ends, is_output = graph[key], key == "output_layers"
        if isinstance(ends, dict):
            ends = {name: reference(end, is_output) for name, end in ends.items()}
        else:
            ends = [reference(end, is_output) for end in ([ends] if isinstance(ends[0], str) else ends)]
        # One tensor in place of a list or dict of one, which Keras 2 takes for the same. Keras 3 warns at every call.
        graph[key] = next(iter(ends.values() if isinstance(ends, dict) else ends)) if len(ends) == 1 else ends


def with_config(path: Path, config, folder: Path) -> Path:
    """Copies a `.keras` or HDF5 file into a folder with another configuration in it, and returns the copy's path."""
    copy = folder / path.name
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
            for name in old.namelist():
                new.writestr(name, json.dumps(config) if name == "config.json" else old.read(name))
    else:
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
    return copy
