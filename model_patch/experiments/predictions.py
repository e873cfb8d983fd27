"""A file of predictions: a line per image and task, appended image by image, so that an interrupted run resumes."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from model_patch.errors import ModelPatchError
from model_patch.files import lock
from model_patch.predict import Answer

COLUMNS = ("path", "task", "label", "probability")
ALL = "probabilities"
"""The further column, with the probability of every label."""


class PredictionFile:
    """Writes predictions as CSV or as JSON lines, by the ending of the file's name.

    The lines of an image are written at once. When a run resumes, an image whose lines are not all there, because the
    process was killed while it wrote them, is removed and predicted again.
    """

    def __init__(
        self, path: str | Path, tasks: Sequence[str], *, one_each: bool = False, all_probabilities: bool = False
    ):
        """Opens the file, or makes it.

        Args:
            path: ends in `.csv` or `.jsonl`.
            tasks: names of the tasks that predict.
            one_each: whether each image is predicted by one of them, instead of by all.
            all_probabilities: write the probability of every label, too.

        Raises:
            ModelPatchError: the ending is another; the file cannot be written, holds something else, or is written by
                another process.
        """
        self._path = Path(path)
        if self._path.suffix not in (".csv", ".jsonl"):
            raise ModelPatchError(f"--output={path} is no table: expected a name that ends in .csv or .jsonl")
        self._is_csv, self._all = self._path.suffix == ".csv", all_probabilities
        if not lock(self._path):
            raise ModelPatchError(f"another process is writing to {path}: wait for its end, or choose another --output")
        self._done: set[int] = set()
        end = self._resume(tasks, 1 if one_each else len(tasks))
        try:
            self._file = self._path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)
            if self._is_csv and not end:
                self._write([self._columns()])
        except OSError as error:
            raise ModelPatchError(f"{path} cannot be written ({error.strerror}): choose another --output") from None

    def __contains__(self, path: str) -> bool:
        """Whether an image's predictions are in the file."""
        return hash(path) in self._done

    def missing(self, paths: Iterable[str]) -> Iterator[str]:
        """Yields the images whose predictions are not in the file."""
        return (path for path in paths if path not in self)

    def append(self, answers: Sequence[Answer]):
        """Writes the predictions of one image."""
        rows = []
        for answer in answers:
            row = [answer.file, answer.task, *answer.top[0]]
            labels = answer.probabilities if self._all else None
            rows.append(row if labels is None else [*row, json.dumps(labels) if self._is_csv else labels])
        self._write(rows)

    def _columns(self) -> list[str]:
        return [*COLUMNS, *([ALL] if self._all else [])]

    def _write(self, rows: Sequence[Sequence]):
        text = io.StringIO()
        if self._is_csv:
            csv.writer(text, lineterminator="\n").writerows(rows)
        else:
            text.writelines(json.dumps(dict(zip(self._columns(), row, strict=True))) + "\n" for row in rows)
        self._file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        self._file.flush()

    def _resume(self, tasks: Sequence[str], lines: int) -> int:
        """Notes the images whose predictions are all there; returns where the file ends after the last of them."""
        end, current, found = 0, None, set()
        for position, row in self._rows():
            if position and row is None:
                break  # A line that was cut off.
            if self._is_csv and not end:
                if row != self._columns():
                    raise self._foreign()
                end = position
                continue
            path, task = (row[:2] if self._is_csv else (row.get("path"), row.get("task"))) if row else (None, None)
            if task not in tasks or (not self._is_csv and list(row) != self._columns()):
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
            f"{self._path} holds other columns or tasks than this run writes: choose another --output, or delete it"
        )


def paths_from(lines: Iterable[str]) -> Iterator[str]:
    """Yields the paths in lines of text, such as standard input; empty lines are passed over."""
    for line in lines:
        if path := line.rstrip("\r\n"):
            yield os.path.expanduser(path)  # noqa: PTH111 - a Path would drop a leading `./`.
