"""Where the images of a detection task come from: one spec opens those to train on and those to test on.

Spec                         | Images
-----------------------------|-------
`scenes:DATA[?..]`           | real images of a classification data set, placed on larger canvases
`coco:FOLDER[?..]`           | an annotation file in COCO's JSON format and a folder of images
`tfds:coco/2017`, `tfds:voc` | a TensorFlow Datasets detection data set
"""

from model_patch.detection.data import coco, scenes, tfds
from model_patch.detection.data.images import DetectionData
from model_patch.errors import unknown
from model_patch.spec import parse

__all__ = ["DetectionData", "open_detection_data"]

_SOURCES = {"scenes": scenes.open_scenes, "coco": coco.open_coco, "tfds": tfds.open_tfds}


def open_detection_data(text: str) -> DetectionData:
    """Opens the images of a detection task by their spec.

    Args:
        text: for example `scenes:mnist`, `coco:photos?train=train.json&test=test.json` or `tfds:voc/2007`.

    Raises:
        ModelPatchError: the spec names no source, or the source cannot be opened as its module describes.
    """
    spec = parse(text)
    if spec.scheme not in _SOURCES:
        raise unknown("detection data", spec.scheme, _SOURCES)
    return _SOURCES[spec.scheme](spec)
