"""Where trunks come from: one spec opens one.

Spec                                | Trunk
------------------------------------|------
`bundled`                           | the small net that this package ships, see `bundled/card.md`
`keras:NAME?alpha=..&weights=..`    | any net of `keras.applications`, without its top, pooled
`file:PATH[?..][#layer]`            | a saved Keras model, or the part of it that `#layer` names
`kerashub:PRESET[?weights=none]`    | an image backbone of KerasHub
`hub:HANDLE[?..]`                   | a URL of TensorFlow Hub or Kaggle, a Kaggle handle, or a folder with a reusable SavedModel
`slim:CHECKPOINT`                   | a checkpoint of TensorFlow 1's slim or Object Detection API
`tfjs:PATH[?..][#layer]`            | a layers model of TensorFlow.js, or the part of it that `#layer` names
"""

from model_patch.errors import require_number, unknown
from model_patch.graph.settings import check_settings
from model_patch.spec import parse
from model_patch.trunk import Trunk
from model_patch.trunks import applications, bundled, file, hub, kerashub, slim, tfjs

__all__ = ["open_trunk"]

_SOURCES = {
    "bundled": bundled.open_bundled,
    "keras": applications.open_application,
    "file": file.open_file,
    "hub": hub.open_hub,
    "kerashub": kerashub.open_kerashub,
    "slim": slim.open_slim,
    "tfjs": tfjs.open_tfjs,
}


def open_trunk(text: str, image_size: int | None = None) -> Trunk:
    """Opens a trunk by its spec.

    Args:
        text: for example `bundled`, `keras:MobileNetV2?alpha=0.35&weights=none` or `file:net.keras#backbone`.
        image_size: height and width in pixels that the net is built for; None for its own.

    Raises:
        ModelPatchError: the spec names no source, the source cannot be opened as its module describes, or Keras is set to
            another layout or float type, see `check_settings`.
    """
    check_settings()
    spec = parse(text)
    if spec.scheme not in _SOURCES:
        raise unknown("trunk", spec.scheme, _SOURCES)
    if image_size is not None:
        require_number("image_size", image_size, 1, whole=True)
    return _SOURCES[spec.scheme](spec, image_size)
