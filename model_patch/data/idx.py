"""Images in the four files of MNIST's format, plain or gzipped.

A file is a header of big-endian 32-bit integers, a magic number and the length of each axis, then bytes. The format is
described at the end of http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from model_patch.data.images import ImageData, array_split
from model_patch.errors import ModelPatchError
from model_patch.files import as_path, read_bytes
from model_patch.spec import Spec

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
LABELS_FILE = "labels.txt"
"""Class names, one a line, beside the other files; not part of the format."""

FASHION_MNIST = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""The ten classes of Fashion-MNIST (Xiao et al. 2017, table 1), which its files do not name."""


def open_idx(spec: Spec) -> ImageData:
    """Opens `idx:FOLDER[?labels=a,b,c]`.

    Labels are those of the option, else the lines of `labels.txt` in the folder, else Fashion-MNIST's if the folder is
    called `fashion-mnist`, else the numbers from 0.

    Raises:
        ModelPatchError: a file is missing, or is not of the format; images and labels differ in number; there are fewer
            names than classes.
    """
    option = spec.take(labels="")["labels"]
    folder = as_path(spec.rest)
    if not spec.rest or not folder.is_dir():
        raise ModelPatchError(f"{spec.text!r} names no folder: expected idx:PATH, with {FILES['train'][0]} in it")
    arrays = {split: _read_split(folder, *names) for split, names in FILES.items()}
    num_classes = 1 + max(int(labels.max()) for _, labels in arrays.values())

    name = folder.resolve().name
    fashion = name == "fashion-mnist"
    if option:
        labels = tuple(option.split(","))
    elif (folder / LABELS_FILE).is_file():
        labels = tuple(line.strip() for line in (folder / LABELS_FILE).read_text("utf-8").splitlines() if line.strip())
    else:
        labels = FASHION_MNIST if fashion else tuple(str(i) for i in range(num_classes))
    if len(labels) < num_classes:
        raise ModelPatchError(
            f"{folder} has labels up to {num_classes - 1}, but {len(labels)} names for them: expected {num_classes}"
        )
    augmentation = "shift+flip" if fashion else "shift"
    return ImageData(name, labels, array_split(*arrays["train"]), array_split(*arrays["test"]), augmentation)


def _read_split(folder: Path, images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read(_find(folder, images_name), num_axes=3)
    labels = _read(_find(folder, labels_name), num_axes=1)
    if len(images) != len(labels):
        raise ModelPatchError(
            f"{folder} has {len(images)} images in {images_name}, but {len(labels)} labels in {labels_name}"
        )
    if not images.size:
        raise ModelPatchError(f"{folder / images_name} holds no images")
    return images, labels


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ModelPatchError(f"{folder} lacks the file {name}, plain or with .gz")


def _read(path: Path, num_axes: int) -> np.ndarray:
    """Returns the uint8 array of a file.

    Raises:
        ModelPatchError: the file is not such an array with `num_axes` axes, or is longer or shorter than its header says.
    """
    try:
        contents = gzip.decompress(read_bytes(path)) if path.suffix == ".gz" else read_bytes(path)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelPatchError(f"{path} cannot be read: {error}") from None
    start = 4 * (1 + num_axes)
    magic, expected = int.from_bytes(contents[:4], "big"), 0x0800 + num_axes  # 8 means unsigned bytes.
    if len(contents) < start or magic != expected:
        raise ModelPatchError(f"{path} is not in MNIST's format: it begins with {magic}, expected {expected}")
    shape, size = np.frombuffer(contents[4:start], ">u4").tolist(), len(contents) - start
    if size != math.prod(shape):
        product = " x ".join(map(str, shape))
        raise ModelPatchError(f"{path} has {size} bytes after its header, which says {product} = {math.prod(shape)}")
    return np.frombuffer(contents, "uint8", offset=start).reshape(shape)
