"""Trunks out of saved Keras models, of Keras 3 and of Keras 2."""

import difflib
import json
import zipfile
from pathlib import Path

import h5py
import keras

from model_patch.errors import ModelPatchError
from model_patch.preprocessing import Preprocessing
from model_patch.rewrite import functional
from model_patch.spec import Spec
from model_patch.trunk import Trunk

SCALING_LAYERS = (keras.layers.Rescaling, keras.layers.Normalization)


def open_file(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `file:PATH[?preprocessing=MODE][#layer]`, a `.keras` or `.h5` file with a whole model.

    `#layer` names a nested model, which is then the trunk, or a layer, at whose output the graph is cut; a path with `/`
    leads into nested models. Nothing in the file is executed: models with Lambda layers are refused.

    `preprocessing` says how pixels are scaled for the net. By default it is `none` where the net scales them itself, with
    a Rescaling or Normalization layer, and else `tf`.

    Args:
        spec: the parsed spec.
        image_size: pixels; None for the model's own, or 224 where it takes any.

    Raises:
        ModelPatchError: the file is missing, damaged or no saved model; it holds code; there is no such layer; the model
            does not take one image of three channels, or cannot be used at this size.
    """
    options = spec.take(preprocessing="")
    path = Path(spec.rest).expanduser()
    model = _at(load_model(path), spec.fragment, path)
    shape = model.inputs[0].shape if len(model.inputs) == 1 else ()
    if len(shape) != 4 or shape[-1] != 3:
        found = ", ".join(str(tuple(x.shape)) for x in model.inputs)
        raise ModelPatchError(f"{spec.text!r} takes {found}: a trunk takes one image (batch, height, width, 3)")
    size = image_size or shape[1] or 224
    if shape[1:3] != (size, size):
        model = _resized(model, size, spec.text)
    scales = any(isinstance(layer, SCALING_LAYERS) for layer in model._flatten_layers())
    mode = options["preprocessing"] or ("none" if scales else "tf")
    return Trunk(model, spec.text, Preprocessing(size, mode))


def load_model(path: Path) -> keras.Model:
    """Loads a saved Keras model, without running code from it.

    Raises:
        ModelPatchError: the file is missing, damaged, holds weights only, or holds code.
    """
    if not path.is_file():
        raise ModelPatchError(f"the trunk file {path} does not exist: expected file:PATH of a .keras or .h5 file")
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ModelPatchError(f"{path} is no saved Keras model: expected a .keras or .h5 file")
    if "Lambda" in _layer_classes(path):
        raise ModelPatchError(f"{path} has a Lambda layer, which is code, and is not run: save the model without it")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, AttributeError, ImportError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelPatchError(f"{path} cannot be loaded as a Keras model: {line}") from None


def _layer_classes(path: Path) -> set[str]:
    """Returns the class names in a saved model's configuration, without making anything of it."""
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
        else:
            with h5py.File(path) as file:
                if "model_config" not in file.attrs:
                    raise ModelPatchError(f"{path} holds weights without a model: use keras:NAME?weights={path}")
                config = json.loads(file.attrs["model_config"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        if isinstance(error, ModelPatchError):
            raise
        raise ModelPatchError(f"{path} is damaged, or is not a saved Keras model ({error})") from None
    found, rest = set(), [config]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            found |= {value["class_name"]} if isinstance(value.get("class_name"), str) else set()
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return found


def _at(model: keras.Model, layer_path: str, file: Path) -> keras.Model:
    """Returns the nested model of that path, or the graph up to the layer of that path."""
    model = functional(model)
    for name in layer_path.split("/") if layer_path else ():
        names = [layer.name for layer in model.layers]
        if name not in names:
            close = difflib.get_close_matches(name, names, 3, 0.4) or names[-5:]
            raise ModelPatchError(f"{file} has no layer {name!r} in {model.name!r}: did you mean {', '.join(close)}?")
        layer = model.get_layer(name)
        model = functional(layer) if isinstance(layer, keras.Model) else keras.Model(model.inputs, layer.output)
    return model


def _resized(model: keras.Model, size: int, text: str) -> keras.Model:
    """Returns the same layers as a graph for another image size."""
    try:
        image = keras.Input((size, size, 3), name=model.inputs[0].name)
        return keras.models.clone_model(
            model, input_tensors=image, clone_function=lambda layer: layer, call_function=lambda layer, *a, **k: layer(*a, **k)
        )
    except ValueError as error:
        raise ModelPatchError(f"{text!r} was saved for {model.inputs[0].shape[1]} px and cannot be used at {size}: {error}") from None
