"""Trunks out of `keras.applications`."""

import ast
import difflib
import inspect
import random
from pathlib import Path

import keras
import numpy as np

from model_patch.errors import ModelPatchError
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

FIXED = {"include_top", "include_preprocessing", "input_tensor", "input_shape", "pooling", "classes", "name"}
"""Arguments of the constructors that a trunk decides itself."""

WEIGHTS_FILES = (".safetensors", ".h5", ".keras")

NETS = {name: net for name, net in vars(keras.applications).items() if inspect.isfunction(net)}
"""Every net of `keras.applications` by name."""


def open_application(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `keras:NAME[?weights=imagenet|none|PATH][&seed=0][&argument=value]`.

    `weights=none` gives random weights, the same for the same `seed` on the same machine. PATH is a `.safetensors` file of
    `Trunk.variables` keys, or a Keras weights file for the net without its top. Other options are arguments of the net's
    constructor, such as `alpha`.

    Args:
        spec: the parsed spec.
        image_size: pixels; None for the size that the net was trained at.

    Raises:
        ModelPatchError: the net or an option is unknown, the net cannot be built at this size, or the weights are missing,
            do not fit, or cannot be downloaded.
    """
    name = spec.rest
    if name not in NETS:
        close = difflib.get_close_matches(name, NETS, 3, 0.4) or sorted(NETS)
        raise ModelPatchError(f"unknown net {name!r} in {spec.text!r}: did you mean {' or '.join(close)}?")
    if spec.fragment:
        raise ModelPatchError(f"{spec.text!r} has a part behind '#', which keras:NAME does not take")
    accepted = inspect.signature(NETS[name]).parameters.keys() - FIXED - {"classifier_activation"}
    options = {"weights": "imagenet", "seed": "0"} | spec.options
    unknown_options = sorted(options.keys() - accepted - {"weights", "seed"})
    if unknown_options:
        known = ", ".join(sorted(accepted | {"seed"}))
        raise ModelPatchError(f"unknown option {unknown_options[0]!r} in {spec.text!r}: expected one of {known}")
    arguments = {key: _literal(spec, key, value) for key, value in options.items() if key not in ("weights", "seed")}
    weights = options["weights"]
    if weights not in ("imagenet", "none"):
        if not weights.endswith(WEIGHTS_FILES):
            raise ModelPatchError(f"weights={weights} in {spec.text!r}: expected imagenet, none, or a path ending in {', '.join(WEIGHTS_FILES)}")
        if not Path(weights).is_file():
            raise ModelPatchError(f"the weights file {weights} does not exist")
    size = image_size or SIZES.get(name, 224)
    seed = _literal(spec, "seed", options["seed"])
    model = _build(name, size, "imagenet" if weights == "imagenet" else None, seed, arguments)
    trunk = Trunk(model, spec.text, Preprocessing(size, mode_of(NETS[name])))
    if weights.endswith(".safetensors"):
        load_weights(trunk, weights)
    elif weights.endswith(WEIGHTS_FILES):
        try:
            model.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            raise ModelPatchError(f"the weights {weights} do not fit {name} without its top: {_first_line(error)}") from None
    return trunk


def _build(name: str, size: int, weights: str | None, seed: int, arguments: dict) -> keras.Model:
    # Keras draws the seeds of initial values from Python's generator: borrow it, so that a random trunk can be had again.
    state = random.getstate()
    random.seed(seed)
    try:
        return NETS[name](include_top=False, weights=weights, pooling="avg", input_shape=(size, size, 3), **arguments)
    except (ValueError, TypeError) as error:
        raise ModelPatchError(f"keras:{name} cannot be built at {size} px with {arguments}: {_first_line(error)}") from None
    except Exception as error:  # Keras raises the bare class where a download fails.
        if "URL fetch failure" not in str(error):
            raise
        raise ModelPatchError(
            f"the ImageNet weights of {name} are not in {Path(keras.config.keras_home()) / 'models'} and cannot be downloaded: "
            "connect to the network, put them there, or give weights=PATH or weights=none"
        ) from None
    finally:
        random.setstate(state)


def mode_of(net) -> str:
    """Returns the preprocessing mode of a net: the one that does what its module's `preprocess_input` does."""
    probe = np.array([[[[0.0, 10.0, 255.0], [127.0, 64.0, 3.0]]]], "float32")
    expected = np.asarray(inspect.getmodule(net).preprocess_input(probe.copy(), data_format="channels_last"))
    for mode in MODES:
        if np.allclose(Preprocessing(1, mode).scale(probe), expected, rtol=1e-4, atol=1e-3):
            return mode
    raise ModelPatchError(f"the preprocessing of {net.__name__} is none of {', '.join(MODES)}: this version cannot use it")


def _literal(spec: Spec, key: str, value: str):
    try:
        literal = ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError):
        literal = None
    if not isinstance(literal, int | float):
        raise ModelPatchError(f"{key}={value} in {spec.text!r}: expected a number, true or false")
    return literal


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
