"""Reading whole models that Keras 2 saved: Keras 3 reads most of what such files hold, and this module translates the rest.

What differs, seen with files of tf_keras 2.21 and Keras 3.15:

- Depthwise and separable convolutions and random augmentations carry arguments that Keras 3 refuses. None has an effect.
- `.keras` files name the classes of graphs by modules that Keras 3 does not have.
- A nested graph's calls are counted from 1, after the one that built it. Keras 3 counts its calls from 0, and knows of the
  difference only where the nested graph is the output.
"""

import json
import shutil
import zipfile
from pathlib import Path

import h5py

_OF_CONV = {"groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"}

_OF_RANDOM = {"rng_type", "batch_input_shape"}

WITHOUT_EFFECT = {
    "DepthwiseConv2D": _OF_CONV,
    "SeparableConv2D": _OF_CONV,
    "RandomBrightness": _OF_RANDOM,
    "RandomContrast": _OF_RANDOM,
    "RandomCrop": _OF_RANDOM,
    "RandomFlip": _OF_RANDOM,
    "RandomRotation": _OF_RANDOM,
    "RandomTranslation": _OF_RANDOM,
    "RandomZoom": _OF_RANDOM,
}
"""Arguments that Keras 2 writes for a layer, by its class, and Keras 3 does not take."""

GRAPHS = {"Functional": "keras.src.models.functional", "Sequential": "keras.src.models.sequential"}
"""Modules of the classes of graphs, as in files of Keras 3."""


def translated(config):
    """Returns a saved model's configuration, any JSON value, as Keras 3 reads it; equal where it can be read already."""
    if isinstance(config, list):
        return [translated(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: translated(value) for key, value in config.items()}
    name, module, arguments = config.get("class_name"), config.get("module"), config.get("config")
    if name in GRAPHS and isinstance(module, str) and "keras" in module and ".engine" in module:
        config |= {"module": GRAPHS[name], "registered_name": name}
    if name in WITHOUT_EFFECT and isinstance(arguments, dict):
        config["config"] = {key: value for key, value in arguments.items() if key not in WITHOUT_EFFECT[name]}
    if "output_layers" in config:
        _modernise_calls(config)
    return config


def _modernise_calls(graph: dict):
    """Rewrites how one graph's configuration says what calls what, in place. Does not change one of Keras 3."""
    nested = [layer for layer in graph["layers"] if "layers" in layer["config"]]
    graphs = {layer["name"]: layer["class_name"] for layer in nested}

    def one_less(reference, classes):
        name, call, *rest = reference
        return [name, call - 1, *rest] if graphs.get(name) in classes else reference

    of_keras2 = False
    for layer in graph["layers"]:
        for call in layer.get("inbound_nodes", ()):
            if isinstance(call, list):  # Keras 3 writes a dict.
                of_keras2 = True
                call[:] = [one_less(reference, GRAPHS) for reference in call]
    if of_keras2:
        outputs = [one_less(reference, ("Sequential",)) for reference in graph["output_layers"]]
        # Keras 2 takes a tensor for a list of one. Keras 3 warns at every call.
        graph["output_layers"] = outputs[0] if len(outputs) == 1 else outputs
        inputs = graph["input_layers"]
        graph["input_layers"] = inputs[0] if len(inputs) == 1 else inputs


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
