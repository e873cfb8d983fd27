"""From rows, each an image with a label and perhaps a split, to training and test images: what tables and records share."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_patch.data import image_files, split_names
from model_patch.data.images import NUM_NAMED, ImageData
from model_patch.data.labelled_files import File, Found, Listed, check_classes, open_listed, stamped
from model_patch.errors import ModelPatchError
from model_patch.tasks import CLASSIFICATION

MULTI_LABEL, REGRESSION = "multi_label", "regression"
"""Further types of data, see `ImageData.type`."""


class Row(NamedTuple):
    """An image of a table or of a file of records.

    Attributes:
        place: where it is, for errors, such as `line 7`.
        path: path of its image, relative or absolute.
        label: its text; for multi-label data a tuple of those that the image has, for regression one of numbers.
        split: one of `split_names.PARTS`; empty where nothing says it.
        problem: what is wrong with the row; empty if nothing is.
        stamp: size in bytes and modification time of its image; None for those of the file `path`.
    """

    place: str
    path: str
    label: Any
    split: str = ""
    problem: str = ""
    stamp: tuple[int, int] | None = None


def open_rows(
    rows: Sequence[Row],
    source: str | Path,
    root: str | Path,
    name: str,
    *,
    labels: Sequence[str] = (),
    read: Callable[[str], bytes] | None = None,
    skip_bad_images: bool = False,
    verify_images: bool = False,
    type: str = CLASSIFICATION,
) -> ImageData:
    """Opens the images of rows, see `data.labelled_files`.

    Validation images without test images are tested on. Where no row has a split, a fifth of each class becomes the test split.

    Args:
        rows: in any order.
        source: what holds them.
        root: what their paths are relative to.
        name: name of the data.
        labels: class names in their order; by default the distinct labels of the training rows, see `class_names`.
        read: returns the encoded image of a path; None where paths are those of files.
        skip_bad_images: leave out images that cannot be read and rows that cannot be used, with a note, instead of failing.
        verify_images: decode every image now.
        type: see `ImageData`. Rows of multi-label data with one path are one image with the labels of all.

    Raises:
        ModelPatchError: a row has a problem, or the path of a row above; a class has no image to train on; or an image
            cannot be read.
    """
    found: Found = defaultdict(list)
    rows = list(_each_path_once(_united(rows) if type == MULTI_LABEL else rows))
    bad = [f"{row.place} ({row.problem})" for row in rows if row.problem]
    if bad and not skip_bad_images:
        raise ModelPatchError(
            f"{len(bad)} of {len(rows)} rows in {source} cannot be used: {', '.join(bad[:NUM_NAMED])}"
            f"{', ...' if len(bad) > NUM_NAMED else ''}; mend or remove them, or leave them out with --skip_bad_images"
        )
    found[image_files.BAD_ROW] = bad
    rows = [row for row in rows if not row.problem]

    parts = {part: [row for row in rows if row.split == part] for part in ("", *split_names.PARTS)}
    train = parts[split_names.TRAIN] or parts[""]
    test, validation = parts[split_names.TEST], parts[split_names.VALIDATION]
    if not test:
        test, validation = validation, []
    if not train:
        raise ModelPatchError(
            f"{source} has no row to train on: expected some, with {split_names.TRAIN!r} as their split"
        )
    labels = tuple(labels) or class_names(label for row in train for label in _labels_of(row))
    if len(labels) < (2 if type == CLASSIFICATION else 1):
        some, few = ("only one class, " + repr(labels[0]), "two") if labels else ("no label", "one")
        raise ModelPatchError(f"{source} has {some}: expected at least {few}")
    others = [] if type == REGRESSION else [*train, *test, *validation]
    unknown = next(((row, label) for row in others for label in _labels_of(row) if label not in labels), None)
    if unknown:
        raise ModelPatchError(
            f"{source} has the class {unknown[1]!r} in {unknown[0].place} to test on, but no image of it to train on"
        )
    files = {
        part: _files(root, of_part, labels, type)
        for part, of_part in zip(split_names.PARTS, (train, test, validation), strict=True)
        if of_part
    }

    def place(part: str, label: str) -> str:
        return f"{source}, labelled {label!r}"

    listed = Listed(source, root, labels, files, found, place, tests_all_classes=False, read=read, type=type)
    check_classes(listed, split_names.TRAIN)
    return open_listed(listed, name, skip_bad_images, verify_images)


def _labels_of(row: Row) -> Sequence[str]:
    return row.label if isinstance(row.label, tuple) else (row.label,)


def _united(rows: Iterable[Row]) -> Iterable[Row]:
    """Returns rows of multi-label data, those with one path and split as one row with the labels of all."""
    united: dict[tuple, Row] = {}
    for i, row in enumerate(rows):
        key = (row.path, row.split) if not row.problem else (i,)
        before = united.get(key)
        united[key] = before._replace(label=tuple(dict.fromkeys((*before.label, *row.label)))) if before else row
    return united.values()


def _each_path_once(rows: Iterable[Row]):
    seen: set[str] = set()
    for row in rows:
        yield row._replace(problem=f"{row.path} again") if not row.problem and row.path in seen else row
        seen.add(row.path)


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct labels in order: of numbers that of their values, else that of the alphabet."""
    distinct = set(labels)
    numeric = all(label.isdecimal() for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label), label) if numeric else (0, label)))


def _files(root: str | Path, rows: Sequence[Row], labels: Sequence[str], type: str) -> list[File]:
    position = {label: i for i, label in enumerate(labels)}
    encoded: dict[str, Callable[[Any], Any]] = {
        CLASSIFICATION: position.__getitem__,
        MULTI_LABEL: lambda given: multi_hot({position[label] for label in given}, len(labels)),
        REGRESSION: lambda given: given,
    }
    labelled = [(row.path, encoded[type](row.label)) for row in rows]
    if all(row.stamp for row in rows):
        return [File(*each, *row.stamp) for each, row in zip(labelled, rows, strict=True) if row.stamp]
    return stamped(root, labelled)


def multi_hot(present: Collection[int], number: int) -> tuple[int, ...]:
    """Returns the label of an image in multi-label data, 0 or 1 for each of a number of labels."""
    return tuple(int(i in present) for i in range(number))
