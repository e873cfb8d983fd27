"""Trunks out of saved Keras models, of Keras 3 and of Keras 2."""

import contextlib
import contextvars
import json
import logging
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from model_patch.errors import ModelPatchError, reason
from model_patch.files import as_path, local_copy
from model_patch.graph.keras_private import maker
from model_patch.graph.rewrite import functional, layer_at, output_of, resized, rewrite
from model_patch.preprocessing import Preprocessing
from model_patch.spec import Spec
from model_patch.trunk import Trunk, image_graph
from model_patch.trunks import keras2

_logger = logging.getLogger(__name__)

SUFFIXES = (".keras", ".h5", ".hdf5")

PYTHON = {
    "Lambda": "has a Lambda layer, which is Python code",
    "__lambda__": "has a function that is Python code",
}
"""Classes in a configuration that bring code of their own: refused, but within `lambdas_allowed`."""

UNREADABLE = ("TFOpLambda", "SlicingOpLambda")
"""Layers that are TensorFlow functions in graphs of Keras 2."""

_allows_lambdas = contextvars.ContextVar("allows_lambdas", default=False)

SCALING = ("Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract", "Add")
"""Classes of layers and of bare operations that change pixel values, when they come before the first weights."""


@contextlib.contextmanager
def lambdas_allowed() -> Iterator[None]:
    """Within it, Lambda layers of trunk files are loaded, and their Python code runs with all that this process may do.

    Only for files whose maker is trusted; the flag `--allow_lambda` of every script. Not within threads that are started in it.
    """
    token = _allows_lambdas.set(True)
    try:
        yield
    finally:
        _allows_lambdas.reset(token)


def open_file(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `file:PATH[?preprocessing=MODE&image_size=PIXELS&prefix_tokens=N&top=false][#layer]`, a `.keras` or `.h5` file with a whole model.

    `#layer` names a nested model, which is then the trunk, or a layer, at whose output the graph is cut; a path with `/`
    leads into nested models. Nothing in the file is executed: models with Lambda layers are refused, but within
    `lambdas_allowed`.

    `preprocessing` says how pixels are scaled for the net. By default it is `none` where the net itself begins by scaling
    them, with a Rescaling or Normalization layer or by arithmetic, and else `tf`. `prefix_tokens`: see `Trunk`. With
    `top=false` a classifier is opened without its last layer. That is the default for what Teachable Machine exports, a
    `keras_model.h5` with `labels.txt` beside it; `own_task` makes its classes a task.

    Args:
        spec: the parsed spec.
        image_size: pixels; None for the option, or else the model's own, or 224 where it takes any.

    Raises:
        ModelPatchError: the file is missing, damaged or no saved model; it holds code; there is no such layer; the model
            does not take one image of three channels, or cannot be used at this size.
    """
    options = file_options(spec)
    return trunk_of_model(load_model(as_path(spec.rest)), spec, options, image_size)


def file_options(spec: Spec) -> dict[str, str]:
    """Returns the options of a spec that names a saved model. Raises a `ModelPatchError` where one cannot be used."""
    options = spec.take(preprocessing="", image_size="", prefix_tokens="", top="")
    for name, what in (("image_size", "pixels"), ("prefix_tokens", "tokens")):
        if options[name] and not options[name].isdecimal():
            raise ModelPatchError(f"{name}={options[name]} in {spec.text!r} is not a number of {what}")
    if options["top"] not in ("", "true", "false"):
        raise ModelPatchError(f"top={options['top']} in {spec.text!r} is neither true nor false")
    return options


def trunk_of_model(model: keras.Model, spec: Spec, options: dict[str, str], image_size: int | None) -> Trunk:
    """Returns the trunk that a spec makes of a saved model. Arguments and errors as `open_file` and `file_options`."""
    model = functional(model)
    if spec.fragment:
        model = _at(model, spec.fragment)
    if options["top"] == "false" or (not options["top"] and not spec.fragment and is_teachable(as_path(spec.rest))):
        model, _ = without_top(model, spec.text)
    elif not spec.fragment:
        _warn_if_classifier(model, spec.text)
    model = image_graph(model, spec.text)
    height, width = model.input.shape[1:3]
    size = image_size or int(options["image_size"] or 0)
    if not size and height != width:
        raise ModelPatchError(
            f"{spec.text!r} takes images of {height} x {width}: give image_size, the side of a square"
        )
    size = size or height or 224
    mode = options["preprocessing"] or ("none" if _scales(model) else "tf")
    prefix_tokens = int(options["prefix_tokens"]) if options["prefix_tokens"] else None
    return Trunk(resized(model, (size, size, 3), spec.text), spec.text, Preprocessing(size, mode), prefix_tokens)


def load_model(path: Path) -> keras.Model:
    """Loads a saved Keras model, without running code from it; but for Lambda layers within `lambdas_allowed`.

    Raises:
        ModelPatchError: the file is missing, damaged, holds weights only, or holds code.
    """
    if path.is_dir():
        raise ModelPatchError(f"{path} is a folder: expected file:PATH of one .keras or .h5 file with a whole model")
    if not path.is_file():
        raise ModelPatchError(f"the trunk file {path} does not exist: expected file:PATH of a .keras or .h5 file")
    if path.suffix not in SUFFIXES:
        raise ModelPatchError(f"{path} is no saved Keras model: expected a file ending in {', '.join(SUFFIXES)}")
    try:
        with local_copy(path) as local:
            return _load(path, local)
    except OSError as error:
        raise ModelPatchError(f"{path} cannot be read: {reason(error)}") from None


def _load(path: Path, local: Path) -> keras.Model:
    config = _config(path, local)
    refuse_code(config, path)
    translated = keras2.translated(config)
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = local if translated == config else keras2.with_config(local, translated, Path(folder))
            return keras.models.load_model(source, compile=False, safe_mode=not _allows_lambdas.get())
        except Exception as error:  # Whatever Keras, zip and HDF5 raise while they read it, it is about this file.
            raise ModelPatchError(f"{path} cannot be loaded as a Keras model: {reason(error)}") from None


def refuse_code(config, path: Path):
    """Checks that a model's configuration brings no code of its own, or that it may be run.

    Raises:
        ModelPatchError: it has Lambda layers outside `lambdas_allowed`, or layers that Keras 3 cannot read.
    """
    classes, allows = _layer_classes(config), _allows_lambdas.get()
    for name in sorted(classes.intersection(UNREADABLE)):
        raise ModelPatchError(
            f"{path} has a {name} layer, a TensorFlow function in a graph of Keras 2, and Keras 3 cannot read it: build the "
            "model in Keras 3 and load the weights into it, or replace the function by a layer in Keras 2 and save again"
        )
    for name in sorted(classes & PYTHON.keys()):
        if not allows:
            raise ModelPatchError(
                f"{path} {PYTHON[name]}, and is not run: save the model without it, or give --allow_lambda if you trust "
                "whoever made the file"
            )
        _logger.warning("%s %s: it is run", path, PYTHON[name])


def _config(path: Path, local: Path):
    """Returns a saved model's configuration, without making anything of it."""
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(local) as archive:
                return json.loads(archive.read("config.json"))
        with h5py.File(local) as file:
            config = file.attrs.get("model_config")
            if config is not None:
                return json.loads(config)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelPatchError(f"{path} is damaged, or is not a saved Keras model: {reason(error)}") from None
    raise ModelPatchError(f"{path} holds weights without a model: open it as keras:NAME?weights={path}")


def _layer_classes(config) -> set[str]:
    if isinstance(config, dict):
        return {str(config.get("class_name"))} | _layer_classes([*config.values()])
    return set().union(*map(_layer_classes, config)) if isinstance(config, list) else set()


def _at(model: keras.Model, path: str) -> keras.Model:
    """Returns the nested model of that path, or the graph up to the layer of that path."""
    graph, layer = layer_at(model, path)
    if isinstance(layer, keras.Model):
        return functional(layer)
    return keras.Model(graph.input, output_of(graph, layer.name), name=graph.name)


def _warn_if_classifier(model: keras.Model, text: str):
    last = maker(model.outputs[0])
    probabilities = (keras.activations.softmax, keras.activations.sigmoid)
    if not isinstance(last, keras.layers.Dense) or last.activation not in probabilities:
        return
    before = maker(last.input)
    while isinstance(before, keras.layers.Dropout):
        before = maker(before.input)
    _logger.warning(
        "%s is a whole classifier, and its probabilities (%s) are taken as features: #%s takes the features before them, as ?top=false does",
        text,
        last.name,
        before.name,
    )


def is_teachable(path: Path) -> bool:
    """Whether a model is what Teachable Machine exports, which puts the labels beside it."""
    return path.name == "keras_model.h5" and labels_file(path).is_file()


def labels_file(path: Path) -> Path:
    """Returns where Teachable Machine puts the labels of a model: `labels.txt`, or for TensorFlow.js `metadata.json`."""
    metadata = path.with_name("metadata.json")
    return metadata if path.suffix == ".json" and metadata.is_file() else path.with_name("labels.txt")


def without_top(model: keras.Model, text: str) -> tuple[keras.Model, keras.layers.Dense]:
    """Returns a classifier without its last layer, a dense one with softmax, and that layer.

    Raises:
        ModelPatchError: it ends in anything else.
    """
    last = maker(functional(model).outputs[0])
    path = last.name
    while isinstance(last, keras.Model):
        last = maker(functional(last).outputs[0])
        path += f"/{last.name}"
    if not isinstance(last, keras.layers.Dense) or last.activation is not keras.activations.softmax:
        raise ModelPatchError(
            f"{text!r} ends in {last.name!r}, no dense layer with softmax: give #layer instead of top=false"
        )
    rebuilt = rewrite(model, lambda place, layer: keras.layers.Identity(name=layer.name) if place == path else layer)
    return rebuilt, last


def _scales(model: keras.Model) -> bool | None:
    """Whether pixel values change before the first layer that has weights; None where the graph has no such layer."""
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            inner = _scales(functional(operation))
            if inner is not None:
                return inner
        elif type(operation).__name__ in SCALING:
            return True
        elif getattr(operation, "weights", None):
            return False
    return None
