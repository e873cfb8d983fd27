"""A trunk's weights in a file: a safetensors file whose keys are those of `Trunk.variables`."""

from pathlib import Path

import keras
import numpy as np
import safetensors
import safetensors.numpy

from model_patch.errors import ModelPatchError, mismatches
from model_patch.files import local_copy, write_bytes
from model_patch.graph.rewrite import walk
from model_patch.trunk import Trunk


def save_weights(trunk: Trunk, path: str | Path):
    """Writes every variable of a trunk, whole or not at all. Raises as `write_bytes`."""
    values = {key: np.array(keras.ops.convert_to_numpy(v)) for key, v in trunk.variables().items()}
    write_bytes(path, safetensors.numpy.save(values))


def load_weights(trunk: Trunk, path: str | Path):
    """Sets every variable of a trunk to a file's values, or none.

    Raises:
        ModelPatchError: the file is missing or damaged, or its keys or shapes are not those of the trunk.
    """
    try:
        with local_copy(path) as local:
            values = safetensors.numpy.load_file(local)
    except OSError as error:
        raise ModelPatchError(f"the weights {path} cannot be read: {error}") from None
    except safetensors.SafetensorError as error:
        raise ModelPatchError(f"{path} is damaged, or is not a safetensors file ({error})") from None
    variables = trunk.variables()
    shapes = {key: tuple(variable.shape) for key, variable in variables.items()}
    mismatched = mismatches(shapes, {key: value.shape for key, value in values.items()})
    if mismatched:
        raise ModelPatchError(f"the weights {path} do not fit {trunk.name}: {mismatched}")
    for key, variable in variables.items():
        variable.assign(values[key])
    refresh(trunk.model)


def refresh(model: keras.Model):
    """Makes layers compute with what was assigned: Keras' Normalization keeps a copy of its mean and variance."""
    for _, layer in walk(model):
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()
