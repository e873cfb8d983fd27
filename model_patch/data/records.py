"""Images in TFRecord files, in the form of ImageNet's and of TF-slim's: `image/encoded`, `image/class/label`, `image/class/text`."""

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from model_patch.data import split_names
from model_patch.data.folder_index import cache_folder
from model_patch.data.images import ImageData
from model_patch.data.rows import Row, open_rows
from model_patch.errors import ModelPatchError
from model_patch.files import as_path, matching, read_bytes, stamp, write_bytes
from model_patch.progress import progress
from model_patch.spec import Spec

ENCODED, LABEL, TEXT = "image/encoded", "image/class/label", "image/class/text"

HEADER, FOOTER = 12, 4
"""Bytes before and after a record: its length as 8 bytes and a checksum, and a checksum of the contents."""

GZIP = b"\x1f\x8b"


def open_records(spec: Spec, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens `tfrecord:PATTERN[?test=PATTERN&labels=NAME,NAME]`, see `data.labelled_files`.

    Files are of the part that their names say, such as `validation-00000-of-00128` (see `data.split_names`); those of the
    option `test` are tested on. Each file is read once to find its records; where they are and their labels are kept in
    the cache folder, so that later each image is read by itself, in any order.

    Classes are the values of `image/class/text`, where every record has it, or the numbers of `image/class/label`, which
    the option `labels` names, from 0.

    Raises:
        ModelPatchError: no file has such a name; a file is compressed; a record is damaged, has no image or not one label;
            or as `open_rows`.
    """
    options = spec.take(test="", labels="")
    if not spec.rest:
        raise ModelPatchError(f"{spec.text!r} names no file: expected tfrecord:PATTERN")
    train = matching([spec.rest])
    test = matching([options["test"]]) if options["test"] else []
    rows = [
        row
        for part, files in (("", train), (split_names.TEST, test))
        for file in progress(files, "listing records", len(files), "file")
        for row in _rows(file, part or _part(file) or (split_names.TRAIN if test else ""))
        if part or file not in test
    ]
    if rows and not all(row.split for row in rows):
        rows = [row._replace(split="") for row in rows]
    labels: tuple[str, ...] = ()
    texts = [row.label.partition("\0")[2] for row in rows if not row.problem]
    if options["labels"]:
        labels = tuple(options["labels"].split(","))
        rows = [_named(row, labels) for row in rows]
    else:
        rows = [row._replace(label=row.label.partition("\0")[2 if all(texts) else 0]) for row in rows]
    place = as_path(spec.rest)
    checks: dict[str, Any] = {"skip_bad_images": skip_bad_images, "verify_images": verify_images}
    return open_rows(rows, spec.text, place.parent, place.parent.name, labels=labels, read=_read, **checks)


def _part(file: str) -> str | None:
    """Returns the part of the data that a file's name says; None if it says none."""
    words = re.split(r"[\W\d_]+", as_path(file).name)
    return next((part for word in words if (part := split_names.part_of(word))), None)


def _named(row: Row, labels: tuple[str, ...]) -> Row:
    if row.problem:
        return row
    number = row.label.partition("\0")[0]
    if int(number) < len(labels):
        return row._replace(label=labels[int(number)])
    return row._replace(problem=f"the label {number}, expected less than {len(labels)}")


def _rows(file: str, split: str) -> list[Row]:
    """Returns a row for each record of a file, whose path names the record's place and whose label is number, NUL and text."""
    held = stamp(as_path(file))
    name = hashlib.sha256(os.fsencode(f"{as_path(file).resolve()} {held}")).hexdigest()[:32]
    kept = cache_folder() / "records" / f"{name}.npz"
    try:
        with np.load(kept) as table:  # Without pickles: whatever is in it, nothing of it is run.
            places, labels = table["places"].tolist(), bytes(table["labels"]).decode().split("\n")
            problems = bytes(table["problems"]).decode().split("\n")
            records = list(zip(places, labels, problems, strict=True))
    except Exception:  # Missing or damaged: the file is read again.
        records = _scan(as_path(file))
        contents = io.BytesIO()
        texts = {"labels": [each[1] for each in records], "problems": [each[2] for each in records]}
        joined: dict[str, Any] = {key: np.frombuffer("\n".join(of).encode(), "uint8") for key, of in texts.items()}
        np.savez(contents, places=np.array([each[0] for each in records], "int64").reshape(-1, 2), **joined)
        write_bytes(kept, contents.getvalue())
    folder = f"{as_path(file).parent}/"
    return [
        Row(
            f"record {i} of {file}",
            f"{file.removeprefix(folder)}#{start}+{size}",
            label,
            split,
            problem,
            (size, held[1]),
        )
        for i, ((start, size), label, problem) in enumerate(records)
    ]


def _scan(file: Path) -> list[tuple[tuple[int, int], str, str]]:
    """Returns place and size of each record of a file, its label, and what is wrong with it."""
    records = []
    with file.open("rb") as opened:
        at = 0
        while head := opened.read(HEADER):
            if at == 0 and head.startswith(GZIP):
                raise ModelPatchError(f"{file} is compressed: decompress it, so that each record can be read by itself")
            size = int.from_bytes(head[:8], "little")
            contents = opened.read(size + FOOTER) if len(head) == HEADER and size < 2**31 else b""
            if len(contents) < size + FOOTER:
                records.append(((at, 0), "", "the file is cut short or damaged from here on"))
                break
            records.append(((at + HEADER, size), *_label(contents[:size])))
            at += HEADER + size + FOOTER
    return records


def _label(record: bytes) -> tuple[str, str]:
    """Returns number, NUL and text of a record's class, and what is wrong with it."""
    try:
        features = _features(record)
    except ValueError as error:
        return "", str(error)
    numbers, texts = features[LABEL].int64_list.value, features[TEXT].bytes_list.value
    if not features[ENCODED].bytes_list.value:
        return "", f"no {ENCODED}"
    if len(numbers) != 1 or numbers[0] < 0:
        return "", f"{LABEL} is {list(numbers)}, expected one number"
    text = texts[0].decode("utf-8", "replace") if len(texts) == 1 else ""
    return f"{numbers[0]}\0{' '.join(text.split())}", ""


def _features(record: bytes):
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        return tf.train.Example.FromString(record).features.feature
    except DecodeError:
        raise ValueError("no tf.train.Example") from None


def _read(path: str) -> bytes:
    """Returns the encoded image of a record, by the path that `_rows` gave it."""
    file, _, place = path.rpartition("#")
    start, _, size = place.partition("+")
    found = _features(read_bytes(file, int(start), int(start) + int(size)))[ENCODED].bytes_list.value
    if not found:
        raise ValueError(f"no {ENCODED}")
    return found[0]
