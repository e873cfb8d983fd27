"""Trunks out of `keras.applications`."""

import ast
import contextlib
import difflib
import inspect
import os
import random
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from model_patch.errors import ModelPatchError, reason
from model_patch.files import as_path, local_copy
from model_patch.graph import keras_private
from model_patch.preprocessing import MODES, Preprocessing
from model_patch.spec import Spec
from model_patch.trunk import Trunk
from model_patch.trunks.weights import load_weights

SIZES = {
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2L": 480,
    "EfficientNetV2M": 480,
    "EfficientNetV2S": 384,
    "InceptionResNetV2": 299,
    "InceptionV3": 299,
    "NASNetLarge": 331,
    "Xception": 299,
}
"""Image size in pixels that a net was trained at, where it is not 224."""

DECIDED = {
    "classes",
    "classifier_activation",
    "include_preprocessing",
    "include_top",
    "input_shape",
    "input_tensor",
    "name",
    "pooling",
}
"""Arguments of the constructors that a trunk decides itself."""

WEIGHTS_FILES = (".safetensors", ".h5", ".keras")

NETS = {name: net for name, net in vars(keras.applications).items() if inspect.isfunction(net)}
"""Every net of `keras.applications` by name."""


def open_application(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `keras:NAME[?weights=imagenet|none|PATH][&seed=0][&argument=value]`.

    `weights=none` gives random weights, the same for the same `seed`. PATH is a `.safetensors` file of `Trunk.variables`
    keys, or a Keras weights file for the net without its top. Other options are arguments of the net's constructor, such
    as `alpha`: numbers, `true` or `false`.

    Args:
        spec: the parsed spec.
        image_size: pixels; None for the size that the net was trained at.

    Raises:
        ModelPatchError: the net or an option is unknown, the net cannot be built at this size, or the weights are
            missing, damaged, do not fit, or cannot be downloaded.
    """
    name = spec.rest
    if name not in NETS:
        close = difflib.get_close_matches(name, NETS, 3)
        known = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(sorted(NETS))}"
        raise ModelPatchError(f"unknown net {name!r} in {spec.text!r}: {known}")
    accepted = inspect.signature(NETS[name]).parameters.keys() - DECIDED - {"weights"}
    options = spec.take(**dict.fromkeys(accepted, ""), weights="imagenet", seed="0")
    weights, seed = options["weights"], int(_literal(spec, "seed", options["seed"]))
    if weights not in ("imagenet", "none"):
        _check_weights_file(spec, weights)
    size = image_size or SIZES.get(name, 224)
    arguments = {key: _literal(spec, key, value) for key, value in spec.options.items() if key in accepted}
    model = build(name, size, "imagenet" if weights == "imagenet" else None, seed, arguments)
    trunk = Trunk(model, spec.text, Preprocessing(size, mode_of(NETS[name])))
    if weights not in ("imagenet", "none"):
        _load(trunk, as_path(weights), name)
    return trunk


def _check_weights_file(spec: Spec, weights: str):
    if not weights.endswith(WEIGHTS_FILES):
        expected = f"imagenet, none, or a path ending in {', '.join(WEIGHTS_FILES)}"
        raise ModelPatchError(f"weights={weights} in {spec.text!r} is unknown: expected {expected}")
    if not as_path(weights).is_file():
        raise ModelPatchError(
            f"the weights file {weights} does not exist: give weights=PATH of a file, or weights=none"
        )


def _load(trunk: Trunk, path: Path, name: str):
    if path.suffix == ".safetensors":
        load_weights(trunk, path)
        return
    # Keras passes over what a file lacks, with a warning at most. What is NaN afterwards was not in it.
    floats = {key: v for key, v in trunk.variables().items() if keras.backend.is_float_dtype(v.dtype)}
    for variable in floats.values():
        variable.assign(np.full(variable.shape, np.nan))
    try:
        with warnings.catch_warnings(action="ignore"), local_copy(path) as local:
            trunk.model.load_weights(local)
    except Exception as error:  # Whatever Keras and HDF5 raise while they read it, it is about this file.
        raise ModelPatchError(f"the weights {path} do not fit {name} without its top: {reason(error)}") from None
    missing = [key for key, v in floats.items() if np.isnan(keras.ops.convert_to_numpy(v)).any()]
    if missing:
        named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ModelPatchError(f"the weights {path} do not fit {name} without its top: no values, or NaN, for {named}")


def build(
    name: str, size: int, weights: str | None = None, seed: int = 0, arguments: dict | None = None
) -> keras.Model:
    """Builds a net of `keras.applications`, without its top and pooled unless the arguments say otherwise.

    Args:
        name: key of `NETS`.
        size: height and width in pixels.
        weights: `imagenet`, or None for random ones.
        seed: seed of the random weights.
        arguments: further arguments of the net's constructor.

    Raises:
        ModelPatchError: the net cannot be built so, or its weights cannot be had.
    """
    arguments = arguments or {}
    decided = {"include_top": False, "weights": weights, "pooling": "avg", "input_shape": (size, size, 3)}
    try:
        with _as_first_in_process(seed):
            return NETS[name](**decided | arguments)
    except (ValueError, TypeError) as error:
        given = "".join(f", {key}={value}" for key, value in arguments.items())
        raise ModelPatchError(f"keras:{name} cannot be built at {size} px{given}: {reason(error)}") from None
    except Exception as error:
        # Keras raises the bare class where it cannot connect, and OSError where the connection or the file breaks off.
        if not isinstance(error, OSError) and "URL fetch failure" not in str(error):
            raise
        cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
        url = re.search(r"https?://[^\s:]+", str(error))
        # Without a URL the file in the cache may be the cause: Keras does not download it again.
        advice = "delete its file there if there is one, and connect to the network"
        if url:
            advice = f"connect to the network, or fetch {url[0]} elsewhere and put it there as {Path(url[0]).name}"
        raise ModelPatchError(
            f"the ImageNet weights of {name} are not whole in {cache} and cannot be downloaded ({reason(error)}): "
            f"{advice}, or give weights=PATH or weights=none"
        ) from None


@contextlib.contextmanager
def _as_first_in_process(seed: int) -> Iterator[None]:
    """Makes what is built inside come out as in a new process: the same names, the same random weights.

    Keras counts names on from net to net, `conv2d_94` after InceptionV3's own 94, and names are part of keys. And it draws
    the seeds of initial values from Python's generator. Both are handed back as they were.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        with keras_private.names_counted_from_zero():
            yield
    finally:
        random.setstate(state)


def mode_of(net) -> str:
    """Returns the preprocessing mode of a net: the one that does what its module's `preprocess_input` does."""
    probe = np.array([[[[0.0, 10.0, 255.0], [127.0, 64.0, 3.0]]]], "float32")
    expected = np.asarray(sys.modules[net.__module__].preprocess_input(probe.copy(), data_format="channels_last"))
    for mode in MODES:
        if np.allclose(Preprocessing(1, mode).scale(probe), expected, rtol=1e-4, atol=1e-3):
            return mode
    raise ModelPatchError(
        f"the preprocessing of {net.__name__} is none of {', '.join(MODES)}: this version cannot use it"
    )


def _literal(spec: Spec, key: str, value: str) -> int | float | bool:
    try:
        literal = ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError):
        literal = None
    if key == "seed" and type(literal) is not int:
        raise ModelPatchError(f"seed={value} in {spec.text!r} is not a whole number")
    if not isinstance(literal, int | float):
        raise ModelPatchError(f"{key}={value} in {spec.text!r} is not a number, true or false")
    return literal
