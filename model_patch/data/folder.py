"""Images in folders, one folder per class.

    photos/cat/1.jpg  photos/dog/2.png  ...                or the same below  photos/train/  and  photos/test/

A test folder may also be called `val` or `validation`. Where there is none, a fifth of the images are kept for testing.
Names that start with a dot are ignored; so are files whose extension is not of JPEG, PNG, BMP or GIF, with a note.
"""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from model_patch.data.images import ImageData, Split
from model_patch.errors import ModelPatchError
from model_patch.preprocessing import decode
from model_patch.spec import Spec

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TRAIN = "train"
TEST = ("test", "val", "validation")
TEST_FRACTION = 0.2
"""Share of the images kept for testing where there is no folder for that."""

NUM_NAMED = 10
"""How many bad files an error names."""

File = tuple[str, int]
"""An image: its path relative to the opened folder, `/` between its parts, and its label."""


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
    train_folder, test_folder = _layout(root)
    labels = _labels(train_folder)
    train, ignored = _files(root, train_folder, labels)
    test: list[File] = []
    if test_folder:
        differing = sorted(set(labels) ^ set(_labels(test_folder)))
        if differing:
            raise ModelPatchError(
                f"the class {differing[0]!r} is in only one of {train_folder} and {test_folder}: expected it in both"
            )
        test, more = _files(root, test_folder, labels)
        ignored += more

    sizes = _decoded_sizes(root, [path for path, _ in train + test])
    bad = [path for path, size in sizes.items() if size is None]
    if bad and not skip_bad_images:
        raise ModelPatchError(
            f"{len(bad)} of {len(sizes)} images in {root} cannot be read: {_named(bad)}; mend or remove them, or leave "
            "them out with --skip_bad_images"
        )
    notes = []
    if bad:
        notes.append(f"{len(bad)} of {len(sizes)} images in {root} cannot be read and were skipped: {_named(bad)}")
        train, test = ([file for file in files if sizes[file[0]] is not None] for files in (train, test))
        _check_classes(train_folder, train, labels, "readable image")
        if test_folder:
            _check_classes(test_folder, test, labels, "readable image")
    if ignored:
        notes.append(f"{len(ignored)} files in {root} are no JPEG, PNG, BMP or GIF and were ignored: {_named(ignored)}")
    if not test_folder:
        train, test = _hold_out(train_folder, train, labels)
    readable = {path: size for path, size in sizes.items() if size is not None}
    train_split, test_split = (_split(root, files, readable) for files in (train, test))
    return ImageData(root.resolve().name, labels, train_split, test_split, "crop+flip", tuple(notes))


def _layout(root: Path) -> tuple[Path, Path | None]:
    """Returns the folder to train on and that to test on, if there is one."""
    train = root / TRAIN
    # A folder `train` that holds images is a class, beside `bus` and `car`.
    if not train.is_dir() or not _folders(train):
        return root, None
    return train, next((root / name for name in TEST if (root / name).is_dir()), None)


def _folders(folder: Path) -> list[str]:
    # `Path.is_dir` says no to a link that leads to itself, where `DirEntry.is_dir` raises.
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _labels(folder: Path) -> tuple[str, ...]:
    labels = tuple(_folders(folder))
    if len(labels) < 2:
        found = f"only one, {labels[0]!r}," if labels else "none"
        raise ModelPatchError(
            f"{folder} has {found} of the class folders that were expected: at least two, with images"
        )
    return labels


def _files(root: Path, folder: Path, labels: Sequence[str]) -> tuple[list[File], list[str]]:
    """Returns the images of each class, and the paths of all files that are not images by their extension."""
    files, ignored = [], []
    for label, name in enumerate(labels):
        for path in sorted((folder / name).iterdir()):
            if path.is_dir() or path.name.startswith("."):
                continue
            relative = path.relative_to(root).as_posix()
            if path.suffix.lower() in EXTENSIONS:
                files.append((relative, label))
            else:
                ignored.append(relative)
    _check_classes(folder, files, labels, "image")
    return files, ignored


def _check_classes(folder: Path, files: Sequence[File], labels: Sequence[str], noun: str):
    present = {label for _, label in files}
    for label, name in enumerate(labels):
        if label not in present:
            raise ModelPatchError(
                f"the class {name!r} has no {noun}: expected JPEG, PNG, BMP or GIF files in {folder / name}"
            )


def _decoded_sizes(root: Path, paths: Sequence[str]) -> dict[str, int | None]:
    """Decodes every image; returns its size in bytes once decoded, by path, or None where it cannot be read."""
    import tensorflow as tf

    def size(path: str) -> int | None:
        try:
            with tf.device("CPU"):
                return int(tf.size(decode(tf.io.read_file(os.fspath(root / path)))))
        except tf.errors.OpError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = tqdm(pool.map(size, paths), "checking images", len(paths), unit="image", delay=2, leave=False)
        return dict(zip(paths, sizes, strict=True))


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


def _named(paths: Sequence[str]) -> str:
    return ", ".join(paths[:NUM_NAMED]) + (", ..." if len(paths) > NUM_NAMED else "")
