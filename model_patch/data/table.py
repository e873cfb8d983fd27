"""Images listed in a table: a row with a path and a label for each.

path,label,split
photos/1.jpg,cat,train
photos/2.jpg,dog,test
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from model_patch.data import split_names
from model_patch.data.images import ImageData
from model_patch.data.rows import Row, open_rows
from model_patch.errors import ModelPatchError
from model_patch.files import as_path, read_bytes
from model_patch.spec import Spec

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath")
LABEL_COLUMNS = ("label", "class", "category", "target", "label_name")
SPLIT_COLUMNS = ("split", "part", "subset", "set")
"""Names of columns that are looked for, in this order and in any case, where the spec names none."""


def open_table(spec: Spec, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens `csv:FILE[?path=COLUMN&label=COLUMN&split=COLUMN]`, see `data.labelled_files`.

    The first line names the columns. They are separated by commas, in a `.tsv` file by tabs. Paths are relative to the
    file. Splits are written as people call them, see `data.split_names`; validation images
    without test images are tested on. Without the column a fifth of each class is held out.

    Args:
        spec: the parsed spec.
        skip_bad_images: leave out images that cannot be read and rows that cannot be used, with a note, instead of failing.
        verify_images: decode every image now.

    Raises:
        ModelPatchError: the file is missing or is no table, a column is missing, a row has no path, no label, another number
            of fields than the first, an unknown split, or the path of a row above; a class has no image to train on; or an
            image cannot be read.
    """
    options = spec.take(path="", label="", split="")
    if not spec.rest:
        raise ModelPatchError(f"{spec.text!r} names no file: expected csv:FILE")
    file = as_path(spec.rest)
    rows = list(read_rows(file, **options))
    return open_rows(rows, file, file.parent, file.stem, skip_bad_images=skip_bad_images, verify_images=verify_images)


def read_rows(file: Path, path: str = "", label: str = "", split: str = "") -> Iterator[Row]:
    """Yields the rows of a table.

    Args:
        file: the table.
        path, label, split: names of columns; those of `PATH_COLUMNS` and so on by default.

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
        at_label = _column(file, header, label, LABEL_COLUMNS, "label")
        at_split = _column(file, header, split, SPLIT_COLUMNS, "split", needed=bool(split))
        for fields in reader:
            if fields:
                yield _row(fields, reader.line_num, len(header), at_path, at_label, at_split)
    except csv.Error as error:
        raise ModelPatchError(f"{file} is not a readable table: line {reader.line_num} has {error}") from None


def _row(fields: list[str], line: int, width: int, at_path: int, at_label: int, at_split: int) -> Row:
    if len(fields) != width:
        return Row(f"line {line}", "", "", problem=f"{len(fields)} fields, expected {width}")
    path, label = fields[at_path].strip(), fields[at_label].strip()
    given = fields[at_split].strip() if at_split >= 0 else ""
    split = split_names.part_of(given) if at_split >= 0 else ""
    problem = ""
    if not path or not label:
        problem = "no path" if not path else "no label"
    elif split is None:
        problem = f"the split {given!r}"
    return Row(f"line {line}", path, label, split or "", problem)


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
