"""Random pixels with random labels: what a net is built and timed with where its images are not at hand."""

import numpy as np

from model_patch.data.images import ImageData, array_split
from model_patch.errors import ModelPatchError
from model_patch.spec import Spec


def open_random(spec: Spec) -> ImageData:
    """Opens `random:CLASSES[?images=64&size=32]`, the same pixels every time; as many images to test on as to train on.

    Raises:
        ModelPatchError: a number is not a whole one, or is less than 2.
    """
    options = spec.take(images="64", size="32") | {"classes": spec.rest}
    for name, text in options.items():
        if not text.isdecimal() or int(text) < 2:
            raise ModelPatchError(
                f"{name}={text} in {spec.text!r} is not a whole number of at least 2: write for example random:10"
            )
    classes, number, size = (int(options[name]) for name in ("classes", "images", "size"))
    random = np.random.RandomState(0)
    train, test = (
        array_split(random.randint(0, 256, (number, size, size, 3), "uint8"), random.randint(0, classes, number))
        for _ in range(2)
    )
    return ImageData("random", tuple(f"class {i}" for i in range(classes)), train, test, "none")
