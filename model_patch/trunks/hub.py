"""Trunks out of TensorFlow Hub: reusable SavedModels, by URL or in a folder."""

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import keras
import numpy as np

from model_patch.errors import ModelPatchError, reason
from model_patch.files import as_path, require_no_pattern
from model_patch.preprocessing import MODES, Preprocessing
from model_patch.spec import Spec
from model_patch.trunk import Trunk
from model_patch.trunks import kaggle
from model_patch.trunks.reusable import FILES, features_of, load_module, own_size
from model_patch.trunks.source import Source, recognise

_logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference between a module's features and those of the Keras net that replaces it, for features of size 1."""


def open_hub(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `hub:HANDLE[?image_size=PIXELS&preprocessing=MODE&as_is=true]`, a reusable SavedModel.

    HANDLE is a URL of TensorFlow Hub, a URL or handle of Kaggle Models (`owner/model/framework/variation/version`, with
    `kaggle://` before it or without), or a folder.

    Where its variables are named as in `architectures`, they are put into the Keras net that they are of. All
    of them must fit, and the net must give the module's own features for the same images; which scaling of pixels the
    module expects shows then, too. The trunk is an ordinary Keras net.

    Any other module runs as a single layer, see `SavedModelLayer`. Tasks learn scales and biases of its batch norms
    and depthwise kernels, which are found by their names. It takes images of one size, scaled to [0, 1] unless the option
    says otherwise. `as_is=true` opens a module so whose architecture is known.

    Args:
        spec: the parsed spec.
        image_size: pixels; None for the option, or else for what the module says, or its architecture was trained at.

    Raises:
        ModelPatchError: the module cannot be had or loaded, it is no feature vector, or its variables or features are not
            those of the architecture by which they are named.
    """
    options = spec.take(image_size="", preprocessing="", as_is="false")
    if options["image_size"] and not options["image_size"].isdecimal():
        raise ModelPatchError(f"image_size={options['image_size']} in {spec.text!r} is not a number of pixels")
    if options["as_is"] not in ("true", "false"):
        raise ModelPatchError(f"as_is={options['as_is']} in {spec.text!r} is neither true nor false")
    if keras.backend.backend() != "tensorflow":
        raise ModelPatchError(
            f"{spec.text!r} is run by TensorFlow and Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow"
        )
    folder = resolve(spec.rest)
    module = load_module(folder)
    values = {variable.name.partition(":")[0]: variable.numpy() for variable in module.variables}
    source = recognise(values, f"the module {spec.rest}") if options["as_is"] == "false" else None
    wanted = image_size or int(options["image_size"] or 0)
    if source:
        return _mapped(spec, module, source, wanted, options["preprocessing"])
    size = own_size(module) or wanted or 224
    if wanted and wanted != size:
        raise ModelPatchError(
            f"the module {spec.rest} runs as a single layer and takes images of {size} px: {wanted} are given"
        )
    return _as_is(spec, folder, size, options["preprocessing"] or "unit")


def resolve(handle: str) -> Path:
    """Returns the folder of a module, downloaded where it is not in the cache: `TFHUB_CACHE_DIR`, or a temporary folder.

    Models of Kaggle have a cache of their own, see `trunks.kaggle`.

    Raises:
        ModelPatchError: it is neither a folder with a SavedModel nor in the cache, and cannot be downloaded.
    """
    of_kaggle = kaggle.handle_of(handle)
    if of_kaggle or not handle.startswith(("http://", "https://")):
        folder = kaggle.download(of_kaggle) if of_kaggle else as_path(handle)
        if not any((folder / name).is_file() for name in FILES):
            where = f"{handle} ({folder})" if of_kaggle else handle
            raise ModelPatchError(f"{where} is not a folder with a SavedModel: it has no {FILES[0]}")
        require_no_pattern(folder)
        return folder
    # TensorFlow Hub's layout of the cache, so that what is there can be used without the package and the network.
    cache = Path(os.environ.get("TFHUB_CACHE_DIR") or Path(tempfile.gettempdir()) / "tfhub_modules")
    cached = cache / hashlib.sha1(handle.encode()).hexdigest()
    if any((cached / name).is_file() for name in FILES):
        return cached
    absent = f"the module {handle} is not in the cache {cache} (TFHUB_CACHE_DIR)"
    advice = "or unpack it into a folder and give hub:FOLDER"
    try:
        import tensorflow_hub

        return Path(tensorflow_hub.resolve(handle))
    except Exception as error:  # Errors of sockets, of HTTP, of archives and of TensorFlow; all are about this handle.
        raise ModelPatchError(
            f"{absent} and cannot be downloaded ({reason(error)}): connect to the network, {advice}"
        ) from None


def _mapped(spec: Spec, module, source: Source, wanted: int, mode: str) -> Trunk:
    """Returns the Keras net that a module is, after it gave the module's own features."""
    size_shown = own_size(module) or wanted or source.image_size()
    net, scales, shown = _same_net(module, source, size_shown)
    if mode and mode != shown:
        raise ModelPatchError(
            f"preprocessing={mode} in {spec.text!r} is not the module's, which is {shown}: leave it out"
        )
    size = wanted or size_shown
    return Trunk(net if size == size_shown else source.net(size, scales), spec.text, Preprocessing(size, shown))


def _same_net(module, source: Source, size: int) -> tuple[keras.Model, bool, str]:
    """Returns the net that does what the module does with images in [0, 1], whether it scales pixels, and the preprocessing.

    Raises:
        ModelPatchError: there is none, so that the variables are not all of what the module computes with.
    """
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")
    expected = features_of(module, images / 255)
    nearest = np.inf
    usual = source.architecture.mode
    # Nets of Keras that scale by themselves may do it otherwise than the module.
    for scales in (True, False) if usual == "none" else (True,):
        net = source.net(size, scales)
        for mode in [usual, *(mode for mode in MODES if mode != usual)]:
            features = keras.ops.convert_to_numpy(net(Preprocessing(size, mode).scale(images), training=False))
            if features.shape != expected.shape:
                raise ModelPatchError(
                    f"{source.where} gives {expected.shape[1:]} where {source.scope} gives {features.shape[1:]} features: "
                    "expected a feature vector, not a classifier"
                )
            difference = np.abs(features - expected).max() / max(1.0, np.abs(expected).max())
            if difference <= TOLERANCE:
                return net, scales, mode
            nearest = min(nearest, difference)
    raise ModelPatchError(
        f"{source.where} has the variables of {source.scope} but computes otherwise (its features differ by {nearest:.1g}): "
        "open it with ?as_is=true"
    )


def _as_is(spec: Spec, folder: Path, size: int, mode: str) -> Trunk:
    from model_patch.trunks.saved_model_layer import SavedModelLayer

    policy = keras.config.dtype_policy().name
    if policy != "float32":
        _logger.warning(
            "%s runs as a single layer, which computes in float32: %s does not apply to it", spec.text, policy
        )
    preprocessing = Preprocessing(size, mode)
    image = keras.Input((size, size, 3), name="image", dtype="float32")
    layer = SavedModelLayer(str(folder), name="module", dtype="float32")
    return Trunk(keras.Model(image, layer(image), name="hub"), spec.text, preprocessing)
