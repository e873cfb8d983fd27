"""Writes layers models of TensorFlow.js, as its converter does."""

import json
from pathlib import Path

import h5py
import keras
import numpy as np

from model_patch.graph.rewrite import walk
from model_patch.layers import variables

QUANTISED = {"uint8": 255, "uint16": 65535}


def write_tfjs(h5: Path, model: keras.Model, folder: Path, quantised: str = "", shards: int = 1, **changes) -> Path:
    """Writes the topology of an HDF5 file and the weights of the model that it holds; returns the path of `model.json`.

    Args:
        quantised: type that the weights are stored in; float32 by default.
        shards: number of files for the weights.
        changes: changes of the contents of `model.json`.
    """
    with h5py.File(h5) as file:
        topology = {
            "keras_version": "2.15.0",
            "backend": "tensorflow",
            "model_config": json.loads(file.attrs["model_config"]),
        }
    entries, contents = [], b""
    for path, layer in walk(model):
        for key, variable in variables(path, layer).items():
            value = np.asarray(variable)
            entry = {"name": f"{layer.name}/{key.rpartition('/')[2]}", "shape": list(value.shape), "dtype": "float32"}
            if quantised == "float16":
                entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
                value = value.astype("float16")
            elif quantised:
                low, scale = float(value.min()), float(np.ptp(value)) / QUANTISED[quantised] or 1.0
                entry["quantization"] = {"dtype": quantised, "min": low, "scale": scale, "original_dtype": "float32"}
                value = np.round((value - low) / scale).astype(quantised)
            entries.append(entry)
            contents += value.tobytes()
    folder.mkdir(parents=True)
    names = [f"group1-shard{i + 1}of{shards}.bin" for i in range(shards)]
    size = -(-len(contents) // shards)
    for i, name in enumerate(names):
        (folder / name).write_bytes(contents[i * size : (i + 1) * size])
    model_json = {
        "format": "layers-model",
        "modelTopology": topology,
        "weightsManifest": [{"paths": names, "weights": entries}],
    }
    (folder / "model.json").write_text(json.dumps(model_json | changes))
    return folder / "model.json"
