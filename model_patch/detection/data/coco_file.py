"""Annotation files in COCO's JSON format, read whole or refused: a file that contradicts itself is an error that names where.

The format: https://cocodataset.org/#format-data. Read are `images` (`id`, `file_name`, `width`, `height`), `categories`
(`id`, `name`) and `annotations` (`image_id`, `category_id`, `bbox` as `[x, y, width, height]` in pixels, and `iscrowd`). An
annotation's `id`, `area` and `segmentation` only serve to find contradictions.
"""

import dataclasses
import os
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np

from model_patch.errors import ModelPatchError
from model_patch.files import read_json

FORMAT = "expected COCO's format, see https://cocodataset.org/#format-data"
BOX = "expected [x, y, width, height] in pixels"

TOLERANCE = 1.0
"""Pixels that annotators and rounding are off by."""

OVERHANG = 0.05
"""Corners that are read as sizes stick out of their images by more than this fraction of a side."""


@dataclasses.dataclass(frozen=True)
class ImageEntry:
    """An entry of `images`: the file's name, and width and height in pixels; None if the file has neither."""

    file_name: str
    size: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """An annotation file.

    Attributes:
        path: where it is.
        labels: category names, in the order of the categories' ids.
        images: the images by id.
        annotations: the annotations in the file, for `where`.
        image_ids: the image of each annotation.
        classes: int64 `(annotations,)`, indices into `labels`.
        crowds: bool `(annotations,)`.
        boxes: float64 `(annotations, 4)`, `[x, y, width, height]` in pixels.
    """

    path: Path
    labels: tuple[str, ...]
    images: dict[Hashable, ImageEntry]
    annotations: list[dict]
    image_ids: list[Hashable]
    classes: np.ndarray
    crowds: np.ndarray
    boxes: np.ndarray

    def where(self, i: int) -> str:
        """Names an annotation by its id, or by its place in the file if it has none."""
        return _where(self.path, "annotation", i, self.annotations[i])

    def check_units(self, sizes: np.ndarray):
        """Checks that the boxes are in pixels, and hold sizes rather than a second corner.

        Args:
            sizes: float64 `(annotations, 2)`, width and height in pixels of each annotation's image.

        Raises:
            ModelPatchError: a box cannot be meant as `[x, y, width, height]` in pixels.
        """
        positions, extents = self.boxes[:, :2], self.boxes[:, 2:]
        width, height = extents.T
        has_area = np.all(extents > 0, axis=1)
        self._refuse(np.any(extents < 0, axis=1), "a negative width or height")
        fractions = has_area & (self.boxes <= 1).all(axis=1) & (sizes > 2).all(axis=1)
        self._refuse(fractions, "less than one pixel, as if in fractions of the image")
        outside = (positions > sizes).any(axis=1) | (positions + extents < 0).any(axis=1)
        self._refuse(outside, lambda i: f"outside its image of {sizes[i, 0]:g} x {sizes[i, 1]:g} pixels")

        inside = (positions >= -TOLERANCE) & (extents <= sizes + TOLERANCE)
        as_corners = np.all(inside & (extents > positions), axis=1)
        overhang = ((positions + extents - sizes) / sizes).max(axis=1, initial=0)
        if as_corners[has_area].all():
            self._refuse(has_area & (overhang > OVERHANG), "outside its image unless these are two corners")
        areas, box_areas = self._areas(), width * height
        corner_areas = (extents - positions).prod(axis=1)
        is_box, is_corners = (np.isclose(areas, each, rtol=1e-3) for each in (box_areas, corner_areas))
        if (is_box | (is_corners & as_corners) | np.isnan(areas)).all():  # All areas are those of boxes.
            self._refuse(is_corners & as_corners & ~is_box, "the area of one with two corners")
        low, high = self._outlines()
        for other, noun in (((low, high), "two corners"), (((low + high) / 2, high - low), "a centre and a size")):
            fits, fits_other = (
                (np.abs(self.boxes - np.concatenate(each, axis=1)) <= 2 * TOLERANCE).all(axis=1)
                for each in ((low, high - low), other)
            )
            self._refuse(fits_other & ~fits, f"the segmentation of one with {noun}")

    def _refuse(self, wrong: np.ndarray, says):
        if wrong.any():
            i = int(wrong.argmax())
            box = [float(each) for each in self.boxes[i]]
            says = says(i) if callable(says) else says
            raise ModelPatchError(f"{self.where(i)} has the box {box}, which is {says}: {BOX}")

    def _areas(self) -> np.ndarray:
        """Returns the `area` of each annotation, NaN where it has none."""
        areas = [each.get("area") for each in self.annotations]
        return np.array([each if isinstance(each, int | float) and each > 0 else np.nan for each in areas], "float64")

    def _outlines(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the corners of each annotation's polygons, `(annotations, 2)` twice; NaN where it has none."""
        corners = np.full((2, len(self.annotations), 2), np.nan)
        for i, each in enumerate(self.annotations):
            polygons = each.get("segmentation")
            if isinstance(polygons, list) and polygons and all(isinstance(each, list) and each for each in polygons):
                for axis in (0, 1):
                    values = [value for polygon in polygons for value in polygon[axis::2]]
                    if values and all(isinstance(value, int | float) for value in values):
                        corners[:, i, axis] = min(values), max(values)
        return corners[0], corners[1]


def read(path: Path) -> CocoFile:
    """Reads an annotation file.

    Raises:
        ModelPatchError: it is missing or is not of the format; it has no images or no categories; an id, a category's name or
            an image's file is there twice; an annotation's image or category is not in the file; a value is of another type.
    """
    content = read_json(path)
    for name in ("images", "categories", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ModelPatchError(f"{path} has no list {name!r}: {FORMAT}")
    categories, images = _categories(path, content["categories"]), _images(path, content["images"])
    if not images or not categories:
        raise ModelPatchError(
            f"{path} has {len(images)} images and {len(categories)} categories: expected some of both"
        )
    index = {key: i for i, key in enumerate(categories)}
    annotations, numbers, rows = content["annotations"], set(), []
    for i, entry in enumerate(annotations):
        where = _where(path, "annotation", i, entry)
        image, category = (
            _known(entry, name, keys, where) for name, keys in (("image_id", images), ("category_id", index))
        )
        number = _id(entry, where) if entry.get("id") is not None else None
        if number in numbers:
            raise ModelPatchError(f"{path} has two annotations with the id {number!r}: expected each id once")
        if number is not None:
            numbers.add(number)
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise ModelPatchError(f"{where} has iscrowd {crowd!r}: expected 0 or 1")
        rows.append((image, index[category], bool(crowd), _box(entry, where)))
    return CocoFile(
        path,
        tuple(categories.values()),
        images,
        annotations,
        [image for image, *_ in rows],
        np.array([category for _, category, *_ in rows], "int64"),
        np.array([crowd for *_, crowd, _ in rows], bool),
        np.array([box for *_, box in rows], "float64").reshape(-1, 4),
    )


def _where(path: Path, noun: str, i: int, entry) -> str:
    number = entry.get("id") if isinstance(entry, dict) else None
    return f"{noun} number {i + 1} in {path}" if number is None else f"{noun} {number!r} in {path}"


def _field(entry, name: str, where: str):
    if not isinstance(entry, dict) or entry.get(name) is None:
        raise ModelPatchError(f"{where} has no {name!r}: {FORMAT}")
    return entry[name]


def _id(entry, where: str) -> int | float | str:
    number = _field(entry, "id", where)
    if isinstance(number, bool) or not isinstance(number, int | float | str):
        raise ModelPatchError(f"{where} has the id {number!r}: expected a number or text")
    return number


def _known(entry, name: str, keys: Mapping, where: str) -> Hashable:
    key, noun = _field(entry, name, where), name.removesuffix("_id")
    if isinstance(key, bool) or not isinstance(key, Hashable) or key not in keys:
        raise ModelPatchError(f"{where} is of the {noun} {key!r}, which is not in the file: {FORMAT}")
    return key


def _box(entry, where: str) -> list[float]:
    given = _field(entry, "bbox", where)
    try:
        box = [float(each) for each in given]
    except (TypeError, ValueError):
        box = []
    if len(box) != 4 or not np.isfinite(box).all():
        raise ModelPatchError(f"{where} has the box {given}: {BOX}")
    return box


def _by_id(path: Path, noun: str, entries: list) -> dict:
    found: dict = {}
    for i, entry in enumerate(entries):
        key = _id(entry, _where(path, noun, i, entry))
        if key in found:
            raise ModelPatchError(f"{path} has two entries with the {noun} id {key!r}: expected each id once")
        found[key] = entry
    return found


def _categories(path: Path, entries: list) -> dict[Hashable, str]:
    """Returns the names by id, in the order of the ids."""
    found = _by_id(path, "category", entries)
    owners: dict = {}
    texts = [key for key in found if isinstance(key, str)]
    if 0 < len(texts) < len(found):
        raise ModelPatchError(f"{path} has numbers as category ids, but also {texts[0]!r}: expected one or the other")
    for key in sorted(found):
        name = str(_field(found[key], "name", f"category {key!r} in {path}"))
        if name in owners:
            raise ModelPatchError(
                f"{path} calls the categories {owners[name]!r} and {key!r} both {name!r}: make them one, or rename one"
            )
        owners[name] = key
    return {key: name for name, key in owners.items()}


def _images(path: Path, entries: list) -> dict[Hashable, ImageEntry]:
    images: dict[Hashable, ImageEntry] = {}
    owners: dict[str, Hashable] = {}
    for key, entry in _by_id(path, "image", entries).items():
        where = f"image {key!r} in {path}"
        name = _field(entry, "file_name", where)
        if not isinstance(name, str) or not name:
            raise ModelPatchError(f"{where} has the file_name {name!r}: expected a path")
        other = owners.setdefault(os.path.normpath(name), key)
        if other != key:
            raise ModelPatchError(f"{path} has {name!r} as the images {other!r} and {key!r}: expected each file once")
        images[key] = ImageEntry(name, _size(entry, where))
    return images


def _size(entry: dict, where: str) -> tuple[float, float] | None:
    given = entry.get("width"), entry.get("height")
    if given == (None, None):
        return None
    try:
        width, height = (float(each) for each in given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        width = height = 0.0
    if not (width > 0 and height > 0):
        raise ModelPatchError(f"{where} is {given[0]} x {given[1]} pixels: expected its true width and height")
    return width, height
