"""Detection data in COCO's JSON format: one annotation file for training, one for testing, and a folder of images.

The size of an image in the annotation file says on which pixels its boxes were drawn: on those of the upright image or, where
EXIF turns the image, on those as stored. A size that is neither is an error.
"""

import dataclasses
import hashlib
import os
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from model_patch.data.decoding import FORMATS, decode, read_file
from model_patch.data.image_files import Frame, read_frame
from model_patch.data.images import Split
from model_patch.detection.data import coco_file
from model_patch.detection.data.coco_file import TOLERANCE, CocoFile
from model_patch.detection.data.images import DetectionData, ragged_split, turned
from model_patch.errors import ModelPatchError
from model_patch.files import as_path, is_remote, read_bytes
from model_patch.progress import progress
from model_patch.spec import Spec

FEW_BOXES = 20
"""Up to this many boxes may all lie in the top left quarter of their images by chance."""


def open_coco(spec: Spec) -> DetectionData:
    """Opens `coco:FOLDER[?train=train.json&test=test.json&train_images=.&test_images=.]`.

    The options are paths inside FOLDER: the annotation files, and the folders that hold the images, to which `file_name`
    is relative. For COCO 2017 as downloaded: `coco:FOLDER?train=annotations/instances_train2017.json&train_images=
    train2017&test=annotations/instances_val2017.json&test_images=val2017`.

    Raises:
        ModelPatchError: a file is missing, is not of the format, or contradicts itself or its images; an image is missing or
            cannot be read; a box is not in pixels or lies wholly outside its image; train and test have different categories.
    """
    options = spec.take(train="train.json", test="test.json", train_images=".", test_images=".")
    root = as_path(spec.rest)
    if not spec.rest or not root.is_dir():
        raise ModelPatchError(f"{spec.text!r} names no folder: expected coco:FOLDER with annotation files in it")
    train, test = (coco_file.read(root / options[name]) for name in ("train", "test"))
    if train.labels != test.labels:
        differing = sorted(set(train.labels) ^ set(test.labels)) or ["their order"]
        raise ModelPatchError(
            f"{options['train']} and {options['test']} in {root} differ in their categories ({differing[0]}): expected the "
            "same in both"
        )
    notes: list[str] = []
    folders = root / options["train_images"], root / options["test_images"]
    _compare(train, test, *folders, notes)
    of_train, of_test = (
        _split(annotated(file, folder, notes)) for file, folder in zip((train, test), folders, strict=True)
    )
    return DetectionData(root.resolve().name, train.labels, of_train, of_test, "crop+flip", tuple(notes))


@dataclasses.dataclass(frozen=True)
class Annotated:
    """An image and its boxes: float32 `(boxes, 4)`, classes int64 `(boxes,)`, crowds bool `(boxes,)`; all have an area."""

    path: Path
    boxes: np.ndarray
    classes: np.ndarray
    crowds: np.ndarray


def _compare(train: CocoFile, test: CocoFile, train_folder: Path, test_folder: Path, notes: list[str]):
    trained, tested = (
        {os.path.normpath(str(folder / image.file_name)) for image in file.images.values()}
        for file, folder in ((train, train_folder), (test, test_folder))
    )
    if both := trained & tested:
        notes.append(
            f"{len(both)} of {len(tested)} test images are training images too, such as {min(both)}: results on them say "
            "nothing about new images"
        )


def annotated(file: CocoFile, folder: Path, notes: list[str]) -> list[Annotated]:
    """Returns the images of an annotation file with their boxes as fractions of the upright image, and adds to the notes.

    Raises:
        ModelPatchError: as `open_coco`.
    """
    paths = {key: folder / image.file_name for key, image in file.images.items()}
    frames = _frames(file, paths)
    drawn_as_stored = _drawn_as_stored(file, frames, paths, notes)
    sizes = {key: each.size if drawn_as_stored[key] else each.upright_size for key, each in frames.items()}

    of_each = np.array([sizes[key] for key in file.image_ids], "float64").reshape(-1, 2)
    file.check_units(of_each)
    boxes = np.concatenate([file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]], axis=1)
    over = np.maximum(-boxes[:, :2], boxes[:, 2:] - of_each).max(axis=1, initial=0) > TOLERANCE
    boxes = np.clip(boxes / np.tile(of_each, 2), 0.0, 1.0)[:, [1, 0, 3, 2]].astype("float32")
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    number = len(boxes)
    if over.any():
        notes.append(
            f"{over.sum()} of {number} boxes in {file.path} extend beyond their images and were clipped, first that of "
            f"{file.where(int(over.argmax()))}"
        )
    if not has_area.all():
        notes.append(f"{(~has_area).sum()} of {number} boxes in {file.path} have no area and were left out")
    if number > FEW_BOXES and boxes[has_area].max(initial=0) <= 0.5:
        notes.append(
            f"all boxes in {file.path} lie in the top left quarter of their images: check that they are in the pixels of these "
            "images"
        )

    # In an order that looks random but depends on the names alone, so that the first images are a fair sample.
    keys = sorted(paths, key=lambda key: hashlib.sha256(paths[key].name.encode()).digest())
    rows: dict[Hashable, list[int]] = {key: [] for key in keys}
    for i in np.flatnonzero(has_area):
        rows[file.image_ids[i]].append(int(i))
    without = sum(not own for own in rows.values())
    if without:
        notes.append(f"{without} of {len(keys)} images in {file.path} have no boxes and are trained on as background")
    for key, own in rows.items():
        if own and drawn_as_stored[key] and frames[key].orientation > 1:
            boxes[own] = turned(boxes[own], frames[key].orientation)
    return [Annotated(paths[key], boxes[own], file.classes[own], file.crowds[own]) for key, own in rows.items()]


def _split(images: list[Annotated]) -> Split:
    remote = any(is_remote(each.path) for each in images[:1])

    def load(path, *decoding):
        return decode(read_file(path, read_bytes if remote else None), *decoding)

    paths = [os.fsencode(str(each.path)) for each in images]
    boxes, classes, crowds = ([getattr(each, part) for each in images] for part in ("boxes", "classes", "crowds"))
    return ragged_split(paths, boxes, classes, crowds, load, sum(map(len, paths)))


def _frames(file: CocoFile, paths: Mapping[Hashable, Path]) -> dict[Hashable, Frame]:
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise ModelPatchError(
            f"{len(missing)} of {len(paths)} images in {file.path} do not exist, such as {missing[0]}: give the folder of the "
            "images as ?train_images=..&test_images=.."
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = pool.map(read_frame, paths.values())
        frames = list(progress(read, "checking images", len(paths), "image"))
    found = {key: each for key, each in zip(paths, frames, strict=True) if each}
    bad = [path for key, path in paths.items() if key not in found]
    if bad:
        raise ModelPatchError(
            f"{len(bad)} of {len(paths)} images in {file.path} cannot be read, such as {bad[0]}: expected {FORMATS} files"
        )
    return found


def _drawn_as_stored(
    file: CocoFile, frames: Mapping[Hashable, Frame], paths: Mapping[Hashable, Path], notes: list[str]
) -> dict[Hashable, bool]:
    """Returns whether each image's boxes were drawn on its pixels as stored, rather than on the upright image.

    Where the size in the file fits both, as after half a turn, the other turned images of the file decide.

    Raises:
        ModelPatchError: the size fits neither; or it fits both, and the other images are of both sorts.
    """
    said: dict[Hashable, bool] = {}
    open_ones = []
    for key, image in file.images.items():
        stored, upright = frames[key].size, frames[key].upright_size
        if image.size not in (None, stored, upright):
            by_exif = f", {upright[0]} x {upright[1]} once turned by its EXIF," if upright != stored else ""
            raise ModelPatchError(
                f"image {key!r} in {file.path} is {image.size[0]:g} x {image.size[1]:g} pixels, but {paths[key]} is {stored[0]} x "
                f"{stored[1]}{by_exif}: expected the size of the image that the boxes were drawn on"
            )
        if frames[key].orientation > 1 and (image.size is None or stored == upright):
            open_ones.append(key)
        elif frames[key].orientation > 1:
            said[key] = image.size == stored
    sorts = set(said.values())
    if open_ones and len(sorts) == 2:
        raise ModelPatchError(
            f"image {open_ones[0]!r} in {file.path} is turned by EXIF, and its size does not say whether its boxes are, too; other "
            f"images of the file are of either sort: save {paths[open_ones[0]]} upright, without an EXIF orientation"
        )
    if open_ones and not sorts:
        notes.append(
            f"{len(open_ones)} of {len(paths)} images in {file.path}, such as {paths[open_ones[0]]}, are turned by EXIF, and their "
            "sizes do not say whether their boxes are, too: taken as drawn on the upright image"
        )
    return {key: said.get(key, sorts == {True}) for key in file.images}
