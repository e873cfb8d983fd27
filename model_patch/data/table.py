"""Images listed in a table: a row with a path and a label for each.

path,label,split
photos/1.jpg,cat,train
photos/2.jpg,dog,test

With several labels for an image, or a number, see `open_table`.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_patch.data import split_names
from model_patch.data.images import ImageData
from model_patch.data.rows import MULTI_LABEL, REGRESSION, Row, open_rows
from model_patch.errors import ModelPatchError, require_known
from model_patch.files import as_path, read_bytes
from model_patch.spec import Spec
from model_patch.tasks import CLASSIFICATION

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath")
LABEL_COLUMNS = ("label", "class", "category", "target", "label_name")
SPLIT_COLUMNS = ("split", "part", "subset", "set")
"""Names of columns that are looked for, in this order and in any case, where the spec names none."""

SEPARATORS = ";|,"
"""Between the labels in a cell."""

FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
"""What a column that is named after a label holds."""


def open_table(spec: Spec, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens `csv:FILE[?path=COLUMN&label=COLUMN&split=COLUMN&type=TYPE]`, see `data.labelled_files`.

    The first line names the columns. They are separated by commas, in a `.tsv` file by tabs. Paths are relative to the
    file. Splits are written as people call them, see `data.split_names`; validation images
    without test images are tested on. Without the column a fifth of each class becomes the test split.

    With `type=multi_label` an image has any number of labels: in one cell, separated by any of the characters of `separator`,
    by default `;|,`; in several cells, `label=COLUMN+COLUMN`; in several rows; or as columns of 0 and 1, named after the
    labels, `label=COLUMN+COLUMN`. With `type=regression` the column holds a number; several columns hold one each.

    Args:
        spec: the parsed spec.
        skip_bad_images: leave out images that cannot be read and rows that cannot be used, with a note, instead of failing.
        verify_images: decode every image now.

    Raises:
        ModelPatchError: the file is missing or is no table, a column is missing, a row has no path, no label, another number
            of fields than the first, an unknown split, no number where one is expected, or the path of a row above; a class has no image to train on; or an
            image cannot be read.
    """
    options = spec.take(path="", label="", split="", type=CLASSIFICATION, separator=SEPARATORS)
    if not spec.rest:
        raise ModelPatchError(f"{spec.text!r} names no file: expected csv:FILE")
    file = as_path(spec.rest)
    require_known("type", [options["type"]], [CLASSIFICATION, MULTI_LABEL, REGRESSION])
    rows, labels = read_rows(file, **options)
    checks: dict[str, Any] = {"skip_bad_images": skip_bad_images, "verify_images": verify_images}
    return open_rows(rows, file, file.parent, file.stem, labels=labels, type=options["type"], **checks)


def read_rows(
    file: Path,
    path: str = "",
    label: str = "",
    split: str = "",
    type: str = CLASSIFICATION,
    separator: str = SEPARATORS,
) -> tuple[list[Row], tuple[str, ...]]:
    """Returns the rows of a table, and the labels where columns name them.

    Args:
        file: the table.
        path, label, split: names of columns; those of `PATH_COLUMNS` and so on by default.
        type, separator: see `open_table`.

    Raises:
        ModelPatchError: the file is missing, is no text in UTF-8, or lacks a column.
    """
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except FileNotFoundError:
        raise ModelPatchError(f"the file {str(file)!r} does not exist: expected csv:FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelPatchError(f"{file} is not a readable table ({error})") from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if file.suffix == ".tsv" else ",")
    try:
        header = [name.strip() for name in next(reader, [])]
        at_path = _column(file, header, path, PATH_COLUMNS, "path")
        names = [label] if type == CLASSIFICATION else label.split("+")
        at_label = [_column(file, header, name, LABEL_COLUMNS, "label") for name in names]
        at_split = _column(file, header, split, SPLIT_COLUMNS, "split", needed=bool(split))
        lines = [(reader.line_num, fields) for fields in reader if fields]
    except csv.Error as error:
        raise ModelPatchError(f"{file} is not a readable table: line {reader.line_num} has {error}") from None
    named = tuple(header[i] for i in at_label)
    whole = [[fields[i].strip() for i in at_label] for _, fields in lines if len(fields) == len(header)]
    are_flags = len(named) > 1 and all(cell.casefold() in FLAGS for cells in whole for cell in cells)

    def read(cells: list[str]) -> tuple[Any, str]:
        """Returns the label of a row, and what is wrong with it."""
        if type == REGRESSION:
            return _numbers(cells)
        if type == CLASSIFICATION:
            return cells[0], "" if cells[0] else "no label"
        if are_flags:
            return tuple(name for name, cell in zip(named, cells, strict=True) if FLAGS[cell.casefold()]), ""
        found = (part.strip() for cell in cells for part in re.split(f"[{re.escape(separator)}]", cell))
        return tuple(dict.fromkeys(part for part in found if part)), ""

    def row(line: int, fields: list[str]) -> Row:
        if len(fields) != len(header):
            empty: Any = "" if type == CLASSIFICATION else ()
            return Row(f"line {line}", "", empty, problem=f"{len(fields)} fields, expected {len(header)}")
        given = fields[at_split].strip() if at_split >= 0 else ""
        part = split_names.part_of(given) if at_split >= 0 else ""
        found, problem = read([fields[i].strip() for i in at_label])
        if part is None:
            problem = problem or f"the split {given!r}"
        if not fields[at_path].strip():
            problem = "no path"
        return Row(f"line {line}", fields[at_path].strip(), found, part or "", problem)

    return [row(*each) for each in lines], named if type == REGRESSION or are_flags else ()


def _numbers(cells: Sequence[str]) -> tuple[tuple[float, ...], str]:
    """Returns the numbers of a row, and what is wrong with them."""
    numbers = []
    for cell in cells:
        try:
            numbers.append(float(cell))
        except ValueError:
            numbers.append(math.nan)
    bad = [cell for cell, number in zip(cells, numbers, strict=True) if not math.isfinite(number)]
    return tuple(numbers), f"{bad[0]!r} for a number" if bad else ""


def _column(file: Path, header: Sequence[str], name: str, known: Sequence[str], what: str, needed: bool = True) -> int:
    """Returns the position of a column; -1 for one that is not needed and not there."""
    by_name = {each.casefold(): i for i, each in reversed(list(enumerate(header)))}
    for each in (name,) if name else known:
        if each.casefold() in by_name:
            return by_name[each.casefold()]
    if not needed:
        return -1
    expected = repr(name) if name else f"one of {', '.join(known)}"
    raise ModelPatchError(
        f"{file} has no column for the {what} among {', '.join(header) or 'none'}: expected {expected}, or name it with "
        f"?{what}=COLUMN"
    )
