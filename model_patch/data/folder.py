"""Images in folders, one folder per class.

    photos/cat/1.jpg  photos/dog/2.png  ...                or the same below  photos/train/  and  photos/test/

Other usual names are known in any case, such as `Training`, `valid` and `val`, see `data.split_names`; of a test and a
validation folder the first is tested on. Where there is neither, a fifth of the images are held out for testing.
What files of real life become, and what is left out, are the rules of `data.image_files`; one note sums up where they applied.
"""

import hashlib
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_patch.data import image_files, split_names
from model_patch.data.decoding import FORMATS, decode
from model_patch.data.folder_index import READABLE, UNKNOWN, UNREADABLE, FolderIndex
from model_patch.data.images import NUM_NAMED, ImageData, Split
from model_patch.errors import ModelPatchError
from model_patch.progress import progress
from model_patch.spec import Spec

_logger = logging.getLogger(__name__)

TEST_FRACTION = 0.2
"""Share of the images kept for testing where there is no folder for that."""

CHUNK = 64
"""Files that a thread takes at a time."""


class File(NamedTuple):
    """An image file: its path relative to the opened folder, `/` between its parts; its label; its size and time."""

    path: str
    label: int
    num_bytes: int
    modified: int


Found = dict[str, list[str]]
"""Relative paths by the rule of `data.image_files` that applies to them."""


def open_folder(spec: Spec, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens `folder:PATH`.

    The header and the last bytes of each file are read once, in parallel; what they say is kept in an index (see
    `data.folder_index`), and only new and changed files are looked at again. A file that is cut short, or of a form that is
    not always readable, is decoded at once, so that a bad one is found now. Which images are kept for testing depends on
    nothing but each one's path, so a new file moves no other; only in a class of a few images, where that would leave none
    to train on or none to test, the next one is taken.

    Args:
        spec: the parsed spec.
        skip_bad_images: leave out images that cannot be read, with a note, instead of failing.
        verify_images: decode every image that was not decoded before, so that all that cannot be read are found now.

    Raises:
        ModelPatchError: the folder is missing or is none; it has no two class folders; a class has no image; an image
            cannot be read; train and test folders have different classes; it is not clear which folder is which.
    """
    spec.take()
    root = Path(spec.rest)
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

    index = _examine(root, train + test, verify_images)
    pixels = dict(zip(index.paths, index.pixels.tolist(), strict=True))
    for i in np.flatnonzero((index.rules != 0) & (index.verdict != UNREADABLE)):
        for bit, rule in enumerate(image_files.RULES):
            if index.rules[i] >> bit & 1:
                found[rule].append(index.paths[i])
    bad = found[image_files.UNREADABLE] = [index.paths[i] for i in np.flatnonzero(index.verdict == UNREADABLE)]
    if bad and not skip_bad_images:
        raise ModelPatchError(
            f"{len(bad)} of {len(pixels)} images in {root} cannot be read: {image_files.named(bad, NUM_NAMED)}; mend or "
            "remove them, or leave them out with --skip_bad_images"
        )
    if bad:
        left_out = set(bad)
        train, test = ([file for file in files if file.path not in left_out] for files in (train, test))
        _check_classes(train_folder, train, labels, "readable image")
        if test_folder:
            _check_classes(test_folder, test, labels, "readable image")
    note = image_files.summary(root, len(train) + len(test), found)
    if not test_folder:
        train, test = _hold_out(train_folder, train, labels)
    train_split, test_split = (_split(root, files, index, skip_bad_images) for files in (train, test))
    return ImageData(root.resolve().name, labels, train_split, test_split, "crop+flip", (note,) if note else ())


def _layout(root: Path, found: Found) -> tuple[Path, Path | None]:
    """Returns the folder to train on and that to test on, if there is one; warns of folders that are left out.

    Raises:
        ModelPatchError: two folders are for the same part, or folders beside that to train on could be classes.
    """
    folders = [root / name for name in _folders(root, root, defaultdict(list))]
    # A folder `train` that holds images is a class, beside `bus` and `car`.
    splits = {folder.name: folder for folder in folders if _folders(root, folder, defaultdict(list))}
    train = _only(root, splits, split_names.TRAIN)
    if not train:
        return root, None
    test = _only(root, splits, split_names.TEST) or _only(root, splits, split_names.VALIDATION)
    left_out = [folder for folder in folders if folder not in (train, test)]
    classes = [each for each in left_out if not split_names.part_of(each.name) and _holds_images(each)]
    if classes and not test:
        raise ModelPatchError(
            f"{root} has {train.name} with class folders in it, and beside it {classes[0].name} with images: expected class "
            f"folders, or {train.name} and a folder such as test"
        )
    if left_out:
        tested = f"images to test on are in {test.name}" if test else "a fifth of them is held out to test on"
        names = ", ".join(folder.name for folder in left_out)
        _logger.warning("%s: images to train on are in %s, %s; left out: %s", root, train.name, tested, names)
    for each in root.iterdir():
        if each not in folders:
            found[image_files.HIDDEN if image_files.is_hidden(each.name) else image_files.BESIDE].append(each.name)
    return train, test


def _only(root: Path, splits: dict[str, Path], part: str) -> Path | None:
    names = [name for name in splits if split_names.part_of(name) == part]
    if len(names) > 1:
        raise ModelPatchError(f"{root} has {names[0]} and {names[1]}, both {part} folders: rename or move one of them")
    return splits[names[0]] if names else None


def _holds_images(folder: Path) -> bool:
    return any(image_files.extension(each.name) in image_files.EXTENSIONS for each in folder.iterdir())


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
        inside = (folder / name).relative_to(root).as_posix()
        with os.scandir(folder / name) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                relative = f"{inside}/{entry.name}"
                if image_files.is_hidden(entry.name):
                    found[image_files.HIDDEN].append(relative)
                elif _is_folder(entry):
                    found[image_files.INNER].append(relative)
                elif image_files.extension(entry.name) in image_files.EXTENSIONS:
                    files.append(File(relative, label, *_stamp(entry)))
                else:
                    found[image_files.FOREIGN].append(relative)
    _check_classes(folder, files, labels, "image")
    return files


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads to itself.
        return False


def _stamp(entry: os.DirEntry) -> tuple[int, int]:
    """Returns a file's size in bytes and its modification time in nanoseconds; -1 for a link that leads nowhere."""
    try:
        status = entry.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _check_classes(folder: Path, files: Sequence[File], labels: Sequence[str], noun: str):
    present = {file.label for file in files}
    for label, name in enumerate(labels):
        if label not in present:
            raise ModelPatchError(f"the class {name!r} has no {noun}: expected {FORMATS} files in {folder / name}")


def _examine(root: Path, files: Sequence[File], verify: bool) -> FolderIndex:
    """Returns the index of the files, with everything that can be known without decoding, or with `verify` by decoding."""
    index = FolderIndex(
        root,
        [file.path for file in files],
        np.array([file.num_bytes for file in files], "int64"),
        np.array([file.modified for file in files], "int64"),
    )
    doubtful = _each(index.unseen(), lambda i: _look(root, index, i), "reading headers")
    rest = index.undecoded() if verify else [i for i, is_plain in doubtful if not is_plain]
    decoded = _each(rest, lambda i: _decode(root, index, i), "decoding images")
    if doubtful or decoded:
        index.save()
    return index


def _each(positions: Sequence[int], do: Callable[[int], object], what: str) -> list[tuple[int, object]]:
    """Calls for each position, in parallel and with progress; returns positions and results."""
    positions = [int(i) for i in positions]
    chunks = [positions[i : i + CHUNK] for i in range(0, len(positions), CHUNK)]
    results: list[tuple[int, object]] = []
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool, progress(None, what, len(positions), "image") as bar:
        for done in pool.map(lambda chunk: [(i, do(i)) for i in chunk], chunks):
            results += done
            bar.update(len(done))
    return results


def _look(root: Path, index: FolderIndex, i: int) -> bool:
    """Writes what the header of a file says into the index; returns whether that is enough to take it for readable."""
    header = image_files.read_header(root / index.paths[i], int(index.sizes[i]))
    if header is None:
        return False
    index.pixels[i] = header.pixels
    index.rules[i] = sum(1 << image_files.RULES.index(rule) for rule in header.rules)
    return header.is_plain


def _decode(root: Path, index: FolderIndex, i: int):
    """Decodes one image, and writes into the index whether it could be."""
    import tensorflow as tf

    try:
        with tf.device("CPU"):
            image = decode(tf.io.read_file(f"{root}/{index.paths[i]}"))
        index.pixels[i], index.verdict[i] = image.shape[0] * image.shape[1], READABLE
    except tf.errors.OpError:
        index.verdict[i] = UNREADABLE


def _hold_out(folder: Path, files: Sequence[File], labels: Sequence[str]) -> tuple[list[File], list[File]]:
    """Splits the images of each class into those to train on and those to test on."""
    of_label: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for file in files:
        of_label[file.label].append((_draw("test", file.path), file.path))
    test: set[str] = set()
    for label, name in enumerate(labels):
        own = sorted(of_label[label])
        if len(own) < 2:
            raise ModelPatchError(
                f"the class {name!r} in {folder} has one image: expected at least two, one to train and one to test on"
            )
        number = sum(draw < TEST_FRACTION for draw, _ in own)
        test.update(path for _, path in own[: min(max(number, 1), len(own) - 1)])
    return [file for file in files if file.path not in test], [file for file in files if file.path in test]


def _draw(purpose: str, path: str) -> float:
    """Returns a number in [0, 1) that looks random, but depends on the path alone; on other systems it is the same."""
    text = f"{purpose} {path if path.isascii() else unicodedata.normalize('NFC', path)}"
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:6], "big") / 2**48


def _split(root: Path, files: Sequence[File], index: FolderIndex, skips: bool) -> Split:
    files = sorted(files, key=lambda file: _draw("order", file.path))
    paths = [os.fsencode(f"{root}/{file.path}") for file in files]
    labels = np.array([file.label for file in files], "int64")
    position = {path: i for i, path in enumerate(index.paths)}
    at = [position[file.path] for file in files]

    def stored(number: int):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((paths[:number], labels[:number]))

    def load(path):
        import tensorflow as tf

        return decode(tf.io.read_file(path))

    def load_or_say(path):
        import tensorflow as tf

        return tf.ensure_shape(tf.numpy_function(decoded_or_said, [path], tf.uint8), (None, None, 3))

    def decoded_or_said(path: bytes):
        import tensorflow as tf

        try:
            return load(path).numpy()
        except tf.errors.OpError:
            i = position[os.fsdecode(path)[len(f"{root}/") :]]
            if index.verdict[i] != UNREADABLE:
                index.verdict[i] = UNREADABLE
                index.save()
                _logger.warning("%s cannot be read and is left out", os.fsdecode(path))
            raise

    def find_bad() -> list[str]:
        _each([i for i in at if index.verdict[i] == UNKNOWN], lambda i: _decode(root, index, i), "decoding images")
        index.save()
        return [index.paths[i] for i in at if index.verdict[i] == UNREADABLE]

    return Split(
        len(files),
        stored,
        load_or_say if skips else load,
        sum(map(len, paths)),
        3 * int(index.pixels[at].sum()),
        skips,
        find_bad,
    )
