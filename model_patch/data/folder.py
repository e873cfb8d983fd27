"""Images in folders, one folder per class.

    photos/cat/1.jpg  photos/dog/2.png  ...                or the same below  photos/train/  and  photos/test/

A test folder may also be called `val` or `validation`. Where there is none, a fifth of the images are kept for testing.
What files of real life become, and what is left out, are the rules of `data.image_files`; one note sums up where they applied.
"""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model_patch.data import image_files
from model_patch.data.images import ImageData, Split
from model_patch.errors import ModelPatchError
from model_patch.preprocessing import FORMATS, decode
from model_patch.progress import progress
from model_patch.spec import Spec

TRAIN = "train"
TEST = ("test", "val", "validation")
TEST_FRACTION = 0.2
"""Share of the images kept for testing where there is no folder for that."""

NUM_NAMED = 10
"""How many bad files an error names."""

File = tuple[str, int]
"""An image: its path relative to the opened folder, `/` between its parts, and its label."""

Found = dict[str, list[str]]
"""Relative paths by the rule of `data.image_files` that applies to them."""


def open_folder(spec: Spec, skip_bad_images: bool = False) -> ImageData:
    """Opens `folder:PATH`.

    Every image is decoded once, in parallel, so that a bad one is found now and not in the middle of a training. Which
    images are kept for testing depends on nothing but each one's path, so a new file moves no other; only in a class of
    a few images, where that would leave none to train on or none to test, the next one is taken.

    Args:
        spec: the parsed spec.
        skip_bad_images: leave out images that cannot be read, with a note, instead of failing.

    Raises:
        ModelPatchError: the folder is missing or is none; it has no two class folders; a class has no image; an image
            cannot be read; train and test folders have different classes.
    """
    spec.take()
    root = Path(spec.rest).expanduser()
    if not spec.rest or not root.exists():
        raise ModelPatchError(f"the folder {spec.rest!r} does not exist: expected folder:PATH with class folders in it")
    if not root.is_dir():
        raise ModelPatchError(f"{root} is a file: expected a folder with class folders in it")
    found: Found = defaultdict(list)
    train_folder, test_folder = _layout(root, found)
    labels = _labels(root, train_folder, found)
    train = _files(root, train_folder, labels, found)
    test: list[File] = []
    if test_folder:
        differing = sorted(set(labels) ^ set(_labels(root, test_folder, found)))
        if differing:
            raise ModelPatchError(
                f"the class {differing[0]!r} is in only one of {train_folder} and {test_folder}: expected it in both"
            )
        test = _files(root, test_folder, labels, found)

    sizes = _decoded_sizes(root, [path for path, _ in train + test], found)
    bad = found[image_files.UNREADABLE]
    if bad and not skip_bad_images:
        raise ModelPatchError(
            f"{len(bad)} of {len(sizes)} images in {root} cannot be read: {image_files.named(bad, NUM_NAMED)}; mend or "
            "remove them, or leave them out with --skip_bad_images"
        )
    if bad:
        train, test = ([file for file in files if sizes[file[0]] is not None] for files in (train, test))
        _check_classes(train_folder, train, labels, "readable image")
        if test_folder:
            _check_classes(test_folder, test, labels, "readable image")
    note = image_files.summary(root, len(train) + len(test), found)
    if not test_folder:
        train, test = _hold_out(train_folder, train, labels)
    readable = {path: size for path, size in sizes.items() if size is not None}
    train_split, test_split = (_split(root, files, readable) for files in (train, test))
    return ImageData(root.resolve().name, labels, train_split, test_split, "crop+flip", (note,) if note else ())


def _layout(root: Path, found: Found) -> tuple[Path, Path | None]:
    """Returns the folder to train on and that to test on, if there is one."""
    train = root / TRAIN
    # A folder `train` that holds images is a class, beside `bus` and `car`.
    if not train.is_dir() or not _folders(root, train, defaultdict(list)):
        return root, None
    test = next((root / name for name in TEST if (root / name).is_dir()), None)
    for each in root.iterdir():
        if each not in (train, test):
            found[image_files.HIDDEN if image_files.is_hidden(each.name) else image_files.BESIDE].append(each.name)
    return train, test


def _folders(root: Path, folder: Path, found: Found) -> list[str]:
    """Returns the names of the class folders in a folder; what else is in it is put into `found`."""
    names = []
    for each in sorted(folder.iterdir()):
        # `Path.exists` and `Path.is_dir` say no to a link that leads to itself, where `DirEntry.is_dir` raises.
        leads_back = each.is_symlink() and each.is_dir() and folder.resolve().is_relative_to(each.resolve())
        if image_files.is_hidden(each.name):
            rule = image_files.HIDDEN
        elif leads_back or (each.is_symlink() and not each.exists()):
            rule = image_files.ASTRAY
        elif each.is_dir():
            names.append(each.name)
            continue
        else:
            rule = image_files.BESIDE
        found[rule].append(each.relative_to(root).as_posix())
    return names


def _labels(root: Path, folder: Path, found: Found) -> tuple[str, ...]:
    labels = tuple(_folders(root, folder, found))
    if len(labels) < 2:
        of_one = f"only one, {labels[0]!r}," if labels else "none"
        raise ModelPatchError(
            f"{folder} has {of_one} of the class folders that were expected: at least two, with images"
        )
    for name in labels:
        if any(
            "\ud800" <= character <= "\udfff" for character in name
        ):  # Bytes that are no UTF-8; no patch could hold them.
            raise ModelPatchError(f"the class folder {name!r} in {folder} has a name that is no text: rename it")
    return labels


def _files(root: Path, folder: Path, labels: Sequence[str], found: Found) -> list[File]:
    """Returns the images of each class; what else is in the class folders is put into `found`."""
    files = []
    for label, name in enumerate(labels):
        for path in sorted((folder / name).iterdir()):
            relative = path.relative_to(root).as_posix()
            if image_files.is_hidden(path.name):
                found[image_files.HIDDEN].append(relative)
            elif path.is_dir():
                found[image_files.INNER].append(relative)
            elif path.suffix.lower() in image_files.EXTENSIONS:
                files.append((relative, label))
            else:
                found[image_files.FOREIGN].append(relative)
    _check_classes(folder, files, labels, "image")
    return files


def _check_classes(folder: Path, files: Sequence[File], labels: Sequence[str], noun: str):
    present = {label for _, label in files}
    for label, name in enumerate(labels):
        if label not in present:
            raise ModelPatchError(f"the class {name!r} has no {noun}: expected {FORMATS} files in {folder / name}")


def _decoded_sizes(root: Path, paths: Sequence[str], found: Found) -> dict[str, int | None]:
    """Decodes every image; returns its size in bytes once decoded, by path, or None where it cannot be read.

    The rules that apply to the images are put into `found`.
    """
    import tensorflow as tf

    def examined(path: str) -> tuple[int | None, list[str]]:
        try:
            with tf.device("CPU"):
                size = int(tf.size(decode(tf.io.read_file(os.fspath(root / path)))))
        except tf.errors.OpError:
            return None, [image_files.UNREADABLE]
        return size, image_files.rules_of(root / path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = progress(pool.map(examined, paths), "checking images", len(paths), "image")
        sizes = {}
        for path, (size, rules) in zip(paths, results, strict=True):
            sizes[path] = size
            for rule in rules:
                found[rule].append(path)
    return sizes


def _hold_out(folder: Path, files: Sequence[File], labels: Sequence[str]) -> tuple[list[File], list[File]]:
    """Divides the images of each class into those to train on and those to test on."""
    test: set[str] = set()
    for label, name in enumerate(labels):
        own = sorted((_draw("test", path), path) for path, other in files if other == label)
        if len(own) < 2:
            raise ModelPatchError(
                f"the class {name!r} in {folder} has one image: expected at least two, one to train and one to test on"
            )
        number = sum(draw < TEST_FRACTION for draw, _ in own)
        test.update(path for _, path in own[: min(max(number, 1), len(own) - 1)])
    return [file for file in files if file[0] not in test], [file for file in files if file[0] in test]


def _draw(purpose: str, path: str) -> float:
    """Returns a number in [0, 1) that looks random, but depends on the path alone; on other systems it is the same."""
    text = f"{purpose} {unicodedata.normalize('NFC', path)}"
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:6], "big") / 2**48


def _split(root: Path, files: Sequence[File], sizes: dict[str, int]) -> Split:
    files = sorted(files, key=lambda file: _draw("order", file[0]))
    paths = [os.fsencode(root / path) for path, _ in files]
    labels = [label for _, label in files]

    def stored(number: int):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((paths[:number], tf.constant(labels[:number], "int64")))

    def load(path):
        import tensorflow as tf

        return decode(tf.io.read_file(path))

    return Split(len(files), stored, load, sum(map(len, paths)), sum(sizes[path] for path, _ in files))
