"""A file of predictions: a line per image and task, appended image by image, so that an interrupted run resumes."""

import csv
import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from model_patch.data.image_files import image_paths
from model_patch.errors import ModelPatchError
from model_patch.experiments.locks import lock
from model_patch.files import as_path, is_remote, read_bytes, write_bytes
from model_patch.progress import progress

UPLOAD_SECONDS = 60.0
"""How often a remote file is replaced by what was written since, at least; never so often that it takes more than 5 % of the time."""


class PredictionFile:
    """Writes predictions as CSV or as JSON lines, by the ending of the file's name.

    The lines of an image are written at once. When a run resumes, an image whose lines are not all there, because the
    process was killed while it wrote them, is removed and predicted again. A remote file is written here and uploaded as
    a whole every `UPLOAD_SECONDS` and at the end: what came after the last upload is predicted again.
    """

    def __init__(self, path: str | Path, tasks: Sequence[str], values: Sequence[str], *, one_each: bool = False):
        """Opens the file, or makes it.

        Args:
            path: ends in `.csv` or `.jsonl`.
            tasks: names of the tasks that predict.
            values: names of the columns after `path` and `task`.
            one_each: whether each image is predicted by one of the tasks, instead of by all.

        Raises:
            ModelPatchError: the ending is another; the file cannot be written, holds something else, or is written by
                another process.
        """
        self._place = as_path(path)
        self._columns = ["path", "task", *values]
        if not is_table(path):
            raise ModelPatchError(f"--output={path} is no table: expected a name that ends in .csv or .jsonl")
        self._is_csv = self._place.suffix == ".csv"
        remote = is_remote(path)
        if not lock(f"{path}.lock" if remote else path):
            raise ModelPatchError(f"another process is writing to {path}: wait for its end, or choose another --output")
        self._scratch = tempfile.TemporaryDirectory() if remote else None
        self._path = Path(self._scratch.name) / "rows" if self._scratch else self._place
        if remote:
            self._path.write_bytes(read_bytes(self._place) if self._place.exists() else b"")
            self._uploaded, self._interval = time.monotonic(), UPLOAD_SECONDS
        self._done: set[int] = set()
        end = self._resume(tasks, 1 if one_each else len(tasks))
        try:
            self._file = self._path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)
            if self._is_csv and not end:
                self._write([self._columns])
        except OSError as error:
            raise ModelPatchError(f"{path} cannot be written ({error.strerror}): choose another --output") from None

    def __contains__(self, path: str) -> bool:
        """Whether an image's predictions are in the file."""
        return hash(path) in self._done

    def missing(self, paths: Iterable[str]) -> Iterator[str]:
        """Yields the images whose predictions are not in the file."""
        return (path for path in paths if path not in self)

    def append(self, rows: Sequence[Sequence]):
        """Writes the predictions of one image: a row of path, task and values for each task."""
        self._write(rows)
        if self._scratch and time.monotonic() - self._uploaded > self._interval:
            self.upload()

    def upload(self):
        """Replaces a remote file by what was written so far; a local one is complete at any time."""
        if not self._scratch:
            return
        start = time.monotonic()
        write_bytes(self._place, self._path.read_bytes())
        self._uploaded = time.monotonic()
        self._interval = max(UPLOAD_SECONDS, 20 * (self._uploaded - start))

    def _write(self, rows: Sequence[Sequence]):
        text = io.StringIO()
        if self._is_csv:
            cells = ([json.dumps(each) if isinstance(each, list | dict) else each for each in row] for row in rows)
            csv.writer(text, lineterminator="\n").writerows(cells)
        else:
            text.writelines(json.dumps(dict(zip(self._columns, row, strict=True))) + "\n" for row in rows)
        self._file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        self._file.flush()

    def _resume(self, tasks: Sequence[str], lines: int) -> int:
        """Notes the images whose predictions are all there; returns where the file ends after the last of them."""
        end, current = 0, None
        found: set[str] = set()
        for position, row in self._rows():
            if position and row is None:
                break  # A line that was cut off.
            if self._is_csv and not end:
                if row != self._columns:
                    raise self._foreign()
                end = position
                continue
            match row:
                case [path, task, *_] if self._is_csv and task in tasks:
                    pass
                case dict() as fields if list(fields) == self._columns and fields["task"] in tasks:
                    path, task = fields["path"], fields["task"]
                case _:
                    raise self._foreign()
            if path != current:
                current, found = path, set()
            found.add(task)
            if len(found) == lines:
                self._done.add(hash(path))
                end = position
        return end

    def _rows(self) -> Iterator[tuple[int, list | dict | None]]:
        """Yields each line with the position of its end; None for a last one that was cut off."""
        record, end = b"", 0
        with self._path.open("rb") as file:
            for line in file:
                record += line
                if not line.endswith(b"\n"):
                    yield end + len(record), None
                    return
                if self._is_csv and record.count(b'"') % 2:
                    continue  # A line break within a path.
                end += len(record)
                text, record = record.decode("utf-8", "surrogateescape"), b""
                try:
                    yield end, next(csv.reader(io.StringIO(text, newline=""))) if self._is_csv else json.loads(text)
                except (ValueError, StopIteration, csv.Error):
                    raise self._foreign() from None

    def _foreign(self) -> ModelPatchError:
        return ModelPatchError(
            f"{self._place} holds other columns or tasks than this run writes: choose another --output, or delete it"
        )


def paths_from(lines: Iterable[str]) -> Iterator[str]:
    """Yields the paths in lines of text, such as standard input; empty lines are passed over."""
    for line in lines:
        if path := line.rstrip("\r\n"):
            yield os.path.expanduser(path)  # noqa: PTH111 - a Path would drop a leading `./`.


def is_table(path: str | Path) -> bool:
    """Whether a path is that of a table, by its ending."""
    return as_path(path).suffix in (".csv", ".jsonl")


def images_from(names: Sequence[str]) -> tuple[Iterable[str], int | None]:
    """Returns the paths that names, patterns and folders represent, and their number; `-` are the lines of standard input.

    Raises:
        ModelPatchError: a name matches no file.
    """
    if list(names) == ["-"]:
        return paths_from(sys.stdin), None
    paths = image_paths(names)
    return paths, len(paths)


def write_predictions(predict: Callable, images: tuple[Iterable[str], int | None], file: PredictionFile, row: Callable):
    """Predicts the images that are missing in a file, and writes them, with a progress bar.

    Args:
        predict: from an iterator of paths to predictions, each with its `file`, those of an image one after the other.
        images: as `images_from` returns them.
        file: where they are written.
        row: from a prediction to its row.
    """
    paths, total = images
    of_images = itertools.groupby(predict(file.missing(paths)), lambda prediction: prediction.file)
    try:
        for _, predictions in progress(of_images, "predicting", total, "image"):
            file.append([row(each) for each in predictions])
    finally:
        file.upload()
