"""Trunks out of KerasHub."""

import keras
import numpy as np

from model_patch.errors import ModelPatchError, reason
from model_patch.graph.inline import inline_layers
from model_patch.graph.keras_private import names_counted_from_zero
from model_patch.graph.rewrite import resized
from model_patch.preprocessing import MODES, Preprocessing
from model_patch.spec import Spec
from model_patch.trunk import Trunk, image_graph


def open_kerashub(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `kerashub:PRESET[?weights=none&preprocessing=MODE]`, an image backbone of KerasHub.

    PRESET is a name such as `mobilenet_v3_small_100_imagenet`, a handle of Kaggle (`kaggle://..`) or Hugging Face (`hf://..`),
    or a folder that `save_to_preset` wrote. Its blocks are opened, so that the layers inside them can be patched. How it scales pixels, and
    the image size, are the preset's own; where it has none, `preprocessing` says the first, and 224 px are taken.

    A backbone that is a Keras object already needs no spec: `Trunk(backbone, name, preprocessing)`.

    Args:
        spec: the parsed spec.
        image_size: pixels; None for the preset's own.

    Raises:
        ModelPatchError: KerasHub is not installed, there is no such preset, it is no backbone from one image to features,
            it cannot be followed, or scales pixels in a way that is none of `preprocessing.MODES`.
    """
    options = spec.take(weights="preset", preprocessing="")
    if options["weights"] not in ("preset", "none"):
        raise ModelPatchError(
            f"{spec.text!r} is not understood: expected kerashub:PRESET, with ?weights=none or without"
        )
    try:
        import keras_hub
    except ImportError as error:
        raise ModelPatchError(
            f"{spec.text!r} needs KerasHub ({reason(error)}): pip install 'model_patch[kerashub]'"
        ) from None
    try:
        with names_counted_from_zero():  # Layers without a name have the same in every process then.
            backbone = keras_hub.models.Backbone.from_preset(spec.rest, load_weights=options["weights"] == "preset")
    except Exception as error:  # Of the network, of files and of its constructor; all are about this preset.
        raise ModelPatchError(
            f"KerasHub cannot open the preset {spec.rest} ({reason(error)}): {_advice(keras_hub, spec.rest)}"
        ) from None
    converter = _converter(keras_hub, spec.rest)
    size = image_size or _size(backbone, converter)
    mode = options["preprocessing"] or _mode(converter, spec.text)
    return trunk_of(backbone, spec.text, Preprocessing(size, mode))


def _advice(keras_hub, preset: str) -> str:
    """Returns what to do about a preset that cannot be opened: without network, what to fetch elsewhere and where to put it."""
    handle = keras_hub.models.Backbone.presets.get(preset, {}).get("kaggle_handle", preset)
    host, _, name = handle.rpartition("://")
    fetch = {"kaggle": f"kagglehub.model_download({name!r})", "hf": f"huggingface_hub.snapshot_download({name!r})"}
    if host not in fetch:
        return "expected the name of a preset, kaggle://HANDLE, hf://HANDLE, or a folder with config.json and model.weights.h5"
    return f"without network, fetch it elsewhere with {fetch[host]}, copy the folder to any place here, and give kerashub:FOLDER"


def trunk_of(backbone: keras.Model, name: str, preprocessing: Preprocessing) -> Trunk:
    """Returns a trunk of a backbone object, for images of the preprocessing's size.

    Raises:
        ModelPatchError: the backbone is none from one image to features, or cannot be followed.
    """
    size = preprocessing.image_size
    opened = inline_layers(image_graph(_with_one_output(backbone), name), size)
    model = resized(opened, (size, size, 3), name)
    patch, tokens = getattr(backbone, "patch_size", None), model.output.shape[1]
    prefix_tokens = None
    if model.output.ndim == 3 and patch and tokens:
        side = size // (patch if isinstance(patch, int) else patch[0])
        prefix_tokens = tokens - side**2 if tokens >= side**2 else None
    return Trunk(model, name, preprocessing, prefix_tokens)


def _with_one_output(backbone: keras.Model) -> keras.Model:
    """Returns the backbone up to its coarsest map, which its classifiers take, where it gives a dict of several."""
    outputs = backbone.output
    if not isinstance(outputs, dict) or any(x.ndim != 4 for x in outputs.values()):
        return backbone
    coarsest = min(reversed(outputs.values()), key=lambda x: x.shape[1] or 0)
    return keras.Model(backbone.input, coarsest, name=backbone.name)


def _converter(keras_hub, preset: str):
    """Returns KerasHub's layer that prepares images for a preset; None where it has none."""
    try:
        return keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception:  # Presets without one raise errors of several classes.
        return None


def _size(backbone: keras.Model, converter) -> int:
    if getattr(converter, "image_size", None):
        return converter.image_size[0]
    return backbone.input.shape[1] or 224


def _mode(converter, text: str) -> str:
    """Returns the preprocessing that scales pixels as the converter does."""
    if converter is None:
        raise ModelPatchError(f"{text!r} does not say how pixels are scaled: give ?preprocessing={'|'.join(MODES)}")
    size = 8
    images = np.random.default_rng(0).uniform(0, 255, (1, size, size, 3)).astype("float32")
    converter.image_size = None  # Scales only.
    expected = keras.ops.convert_to_numpy(converter(images))
    for mode in MODES:
        if np.allclose(Preprocessing(size, mode).scale(images), expected, rtol=1e-4, atol=1e-3):
            return mode
    raise ModelPatchError(
        f"{text!r} scales pixels in none of the ways {', '.join(MODES)}: give the nearest as ?preprocessing="
    )
