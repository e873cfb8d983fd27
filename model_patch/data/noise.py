"""Random pixels with random labels: what a net is built and timed with where its images are not at hand."""

import numpy as np

from model_patch.data.images import ImageData, array_split
from model_patch.data.rows import MULTI_LABEL, REGRESSION
from model_patch.errors import ModelPatchError, require_known
from model_patch.spec import Spec
from model_patch.tasks import CLASSIFICATION


def open_random(spec: Spec) -> ImageData:
    """Opens `random:CLASSES[?images=64&size=32&type=TYPE]`, the same pixels every time; as many images to test on as to train on.

    Raises:
        ModelPatchError: a number is not a whole one, or is less than 2; or there is no such type of data.
    """
    options = spec.take(images="64", size="32", type=CLASSIFICATION) | {"classes": spec.rest}
    type = options.pop("type")
    require_known("type", [type], [CLASSIFICATION, MULTI_LABEL, REGRESSION])
    for name, text in options.items():
        if name == "classes" and text == "1" and type != CLASSIFICATION:
            continue
        if not text.isdecimal() or int(text) < 2:
            raise ModelPatchError(
                f"{name}={text} in {spec.text!r} is not a whole number of at least 2: write for example random:10"
            )
    classes, number, size = (int(options[name]) for name in ("classes", "images", "size"))
    random = np.random.RandomState(0)
    train, test = (
        array_split(
            random.randint(0, 256, (number, size, size, 3), "uint8"), random_labels(type, number, classes, random)
        )
        for _ in range(2)
    )
    return ImageData("random", tuple(f"class {i}" for i in range(classes)), train, test, "none", type=type)


def random_labels(type: str, number: int, classes: int, random: np.random.RandomState) -> np.ndarray:
    """Returns the labels of a number of images of a type of data, see `ImageData.type`."""
    if type == CLASSIFICATION:
        return random.randint(0, classes, number)
    if type == MULTI_LABEL:
        return random.randint(0, 2, (number, classes))
    return random.standard_normal((number, classes)).astype("float32")
