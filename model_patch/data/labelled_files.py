"""From a list of image files, each with its label, to training and test images.

The rules of `data.image_files` say what files of real life become, and what is left out; one note sums up where they applied.
"""

import dataclasses
import hashlib
import io
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_patch.data import image_files
from model_patch.data.decoding import FORMATS, REDUCTIONS, decode, read_file
from model_patch.data.folder_index import READABLE, UNKNOWN, UNREADABLE, FolderIndex
from model_patch.data.images import NUM_NAMED, ImageData, Split
from model_patch.data.split_names import TEST, TRAIN
from model_patch.errors import ModelPatchError
from model_patch.files import as_path, is_remote, joined, read_bytes, stamp
from model_patch.progress import progress
from model_patch.tasks import CLASSIFICATION

_logger = logging.getLogger(__name__)

TEST_FRACTION = 0.2
"""Share of the images split off for testing where nothing says which those are."""

CHUNK = 64
"""Files that a thread takes at a time."""


class File(NamedTuple):
    """An image file: its path relative to a folder, `/` between its parts; its label, see `ImageData.type`; its size and time, as
    in `files.Entry`.
    """

    path: str
    label: int | tuple[float, ...]
    num_bytes: int
    modified: int


Found = dict[str, list[str]]
"""Relative paths by the rule of `data.image_files` that applies to them."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """Image files and what is known of them before any is read.

    Attributes:
        source: the folder or table that lists them.
        root: the folder that paths are relative to.
        labels: class names.
        files: by part of the data, see `data.split_names`. The training files are among them; without a test part a fifth
            of each class is split off from these.
        found: what else there was, by rule.
        place: where the images of a part and class are expected, for errors.
        read: returns the encoded image of a whole path, and raises ValueError where it holds none; None where paths are files.
        tests_all_classes: whether each class needs an image in every part, not only to train on.
        type: as of `ImageData`.
    """

    source: str | Path
    root: str | Path
    labels: tuple[str, ...]
    files: dict[str, list[File]]
    found: Found
    place: Callable[[str, str], object]
    tests_all_classes: bool = True
    read: Callable[[str], bytes] | None = None
    type: str = CLASSIFICATION

    def path(self, file: str) -> str:
        """Returns the whole path of a file."""
        return joined(self.root, file)

    def contents(self, path: str) -> bytes:
        """Returns the encoded image of a whole path. Raises as `read`."""
        return (self.read or read_bytes)(path)


def open_listed(listed: Listed, name: str, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens image files.

    The header and the last bytes of each file are read once, in parallel; what they say is kept in an index (see
    `data.folder_index`), and only new and changed files are looked at again. A file that is cut short, or of a form that is
    not always readable, is decoded at once, so that a bad one is found now. Which images are split off for testing depends on
    nothing but each one's path, so a new file moves no other; only in a class of a few images, where that would leave none
    to train on or none to test, the next one is taken.

    Args:
        listed: the files.
        name: name of the data.
        skip_bad_images: leave out images that cannot be read, with a note, instead of failing.
        verify_images: decode every image that was not decoded before, so that all that cannot be read are found now.

    Raises:
        ModelPatchError: an image cannot be read, or a class has no image.
    """
    source, labels, found = listed.source, listed.labels, listed.found
    index = _examine(listed, [file for files in listed.files.values() for file in files], verify_images)
    for i in np.flatnonzero((index.rules != 0) & (index.verdict != UNREADABLE)):
        for bit, rule in enumerate(image_files.RULES):
            if index.rules[i] >> bit & 1:
                found[rule].append(index.paths[i])
    bad = found[image_files.UNREADABLE] = [index.paths[i] for i in np.flatnonzero(index.verdict == UNREADABLE)]
    if bad and not skip_bad_images:
        raise ModelPatchError(
            f"{len(bad)} of {len(index.paths)} images in {source} cannot be read: {image_files.named(bad, NUM_NAMED)}; mend "
            "or remove them, or leave them out with --skip_bad_images"
        )
    if bad:
        left_out = set(bad)
        readable = {part: [file for file in of if file.path not in left_out] for part, of in listed.files.items()}
        listed = dataclasses.replace(listed, files=readable)
        for part in listed.files if listed.tests_all_classes else (TRAIN,):
            check_classes(listed, part, "readable image")
    files = dict(listed.files)
    note = image_files.summary(source, sum(map(len, files.values())), found)
    if TEST not in files:
        files[TRAIN], files[TEST] = _hold_out(listed, files[TRAIN])
    splits = {part: _split(listed, of_part, index, skip_bad_images) for part, of_part in files.items()}
    return ImageData(name, labels, augmentation="crop+flip", notes=(note,) if note else (), type=listed.type, **splits)


def stamped(root: str | Path, labelled: Sequence[tuple[str, Any]]) -> list[File]:
    """Returns files of known paths and labels; a missing one becomes an image that cannot be read."""
    stamps = dict(_each(range(len(labelled)), lambda i: stamp(as_path(joined(root, labelled[i][0]))), "listing images"))
    return [File(path, label, *stamps[i]) for i, (path, label) in enumerate(labelled)]


def check_classes(listed: Listed, part: str, noun: str = "image"):
    """Checks that every class has a file in a part of the data, or if labels are no classes that there is one at all.

    Raises:
        ModelPatchError: one has none.
    """
    if listed.type != CLASSIFICATION:
        if not listed.files[part]:
            raise ModelPatchError(f"{listed.source} has no {noun} in its {part} part: expected {FORMATS} files")
        return
    present = {file.label for file in listed.files[part]}
    for label, name in enumerate(listed.labels):
        if label not in present:
            use = "" if part == TRAIN else f" to {'test on' if part == TEST else 'validate on'}"
            place = listed.place(part, name)
            raise ModelPatchError(f"the class {name!r} has no {noun}{use}: expected {FORMATS} files in {place}")


def _examine(listed: Listed, files: Sequence[File], verify: bool) -> FolderIndex:
    """Returns the index of the files, with everything that can be known without decoding, or with `verify` by decoding."""
    index = FolderIndex(
        listed.source,
        [file.path for file in files],
        np.array([file.num_bytes for file in files], "int64"),
        np.array([file.modified for file in files], "int64"),
    )
    doubtful = _each(index.unseen(), lambda i: _look(listed, index, i), "reading headers")
    rest = index.undecoded() if verify else [i for i, is_plain in doubtful if not is_plain]
    decoded = _each(rest, lambda i: _decode(listed, index, i), "decoding images")
    if doubtful or decoded:
        index.save()
    return index


def _each(positions: Iterable[int], do: Callable[[int], Any], what: str) -> list[tuple[int, Any]]:
    """Calls for each position, in parallel and with progress; returns positions and results."""
    positions = [int(i) for i in positions]
    chunks = [positions[i : i + CHUNK] for i in range(0, len(positions), CHUNK)]
    results: list[tuple[int, Any]] = []
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool, progress(None, what, len(positions), "image") as bar:
        for done in pool.map(lambda chunk: [(i, do(i)) for i in chunk], chunks):
            results += done
            bar.update(len(done))
    return results


def _look(listed: Listed, index: FolderIndex, i: int) -> bool:
    """Writes what the header of a file says into the index; returns whether that is enough to take it for readable."""
    path = listed.path(index.paths[i])
    if listed.read:
        try:
            file = io.BytesIO(listed.read(path))
        except ValueError:
            return False
        header = image_files.read_header(lambda: file, path, file.getbuffer().nbytes)
    else:
        header = image_files.read_header(lambda: as_path(path).open("rb"), path, int(index.sizes[i]))
    if header is None:
        return False
    index.pixels[i], index.jpeg_sides[i] = header.pixels, header.jpeg_side
    index.rules[i] = sum(1 << image_files.RULES.index(rule) for rule in header.rules)
    return header.is_plain


def _decode(listed: Listed, index: FolderIndex, i: int):
    """Decodes one image, and writes into the index whether it could be."""
    image = _decoded(listed, listed.path(index.paths[i]))
    if image is None:
        index.verdict[i] = UNREADABLE
    else:
        index.pixels[i], index.verdict[i] = image.shape[0] * image.shape[1], READABLE


def _decoded(listed: Listed, path: str, *decoding) -> np.ndarray | None:
    """Returns the pixels of an image; None if it is missing or cannot be read.

    Raises:
        OSError: a remote file cannot be read now, which says nothing of the image.
    """
    import tensorflow as tf

    try:
        with tf.device("CPU"):
            return decode(listed.contents(path), *decoding).numpy()
    except (ValueError, tf.errors.OpError):
        return None
    except OSError as error:
        if is_remote(path) and not isinstance(error, FileNotFoundError):
            raise
        return None


def _hold_out(listed: Listed, files: Sequence[File]) -> tuple[list[File], list[File]]:
    """Splits the images of each class, or if labels are no classes all images, into those to train on and those to test on."""
    by_class = listed.type == CLASSIFICATION
    of_label: dict[Any, list[tuple[float, str]]] = defaultdict(list)
    for file in files:
        of_label[file.label if by_class else 0].append((_draw("test", file.path), file.path))
    test: set[str] = set()
    for label, name in enumerate(listed.labels if by_class else ("",)):
        own = sorted(of_label[label])
        if len(own) < 2:
            what = f"the class {name!r} in {listed.source}" if by_class else listed.source
            raise ModelPatchError(f"{what} has one image: expected at least two, one to train and one to test on")
        number = sum(draw < TEST_FRACTION for draw, _ in own)
        test.update(path for _, path in own[: min(max(number, 1), len(own) - 1)])
    return [file for file in files if file.path not in test], [file for file in files if file.path in test]


def _draw(purpose: str, path: str) -> float:
    """Returns a number in [0, 1) that looks random, but depends on the path alone; on other systems it is the same."""
    text = f"{purpose} {path if path.isascii() else unicodedata.normalize('NFC', path)}"
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:6], "big") / 2**48


def _split(listed: Listed, files: Sequence[File], index: FolderIndex, skips: bool) -> Split:
    files = sorted(files, key=lambda file: _draw("order", file.path))
    paths = [os.fsencode(listed.path(file.path)) for file in files]
    labels = np.array([file.label for file in files], "float32" if listed.type == "regression" else "int64")
    position = {path: i for i, path in enumerate(index.paths)}
    at = [position[file.path] for file in files]
    is_plain = not (listed.read or is_remote(listed.root) or any(is_remote(file.path) for file in files))

    def stored(number: int):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((paths[:number], labels[:number]))

    def load(path, *decoding):
        return decode(read_file(path, None if is_plain else listed.contents), *decoding)

    def decoded_or_said(absolute: str, *decoding) -> np.ndarray | None:
        image = _decoded(listed, absolute, *decoding)
        if image is None:
            relative = absolute.removeprefix(f"{listed.root}/")
            i = position[relative if relative in position else absolute]
            if index.verdict[i] != UNREADABLE:
                index.verdict[i] = UNREADABLE
                index.save()
                _logger.warning("%s cannot be read and is left out", absolute)
        return image

    def image_bytes(least_side: int) -> int:
        sides = index.jpeg_sides[at]
        divisors = np.max([np.where(sides >= each * max(1, least_side), each, 1) for each in REDUCTIONS], axis=0)
        return int((3 * index.pixels[at] / np.square(divisors if least_side else 1)).sum())

    def find_bad() -> list[str]:
        _each([i for i in at if index.verdict[i] == UNKNOWN], lambda i: _decode(listed, index, i), "decoding images")
        index.save()
        return [index.paths[i] for i in at if index.verdict[i] == UNREADABLE]

    return Split(
        len(files),
        stored,
        load,
        sum(map(len, paths)),
        image_bytes,
        decoded_or_said if skips else None,
        find_bad,
        labels,
        list(map(os.fsdecode, paths)),
    )
