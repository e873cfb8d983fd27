"""What is known of the image files in a folder, kept between processes, so that a file is looked at again only if it changed."""

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_patch.errors import ModelPatchError
from model_patch.files import write_bytes

CACHE = "MODEL_PATCH_CACHE"
"""Environment variable that names the cache folder; `~/.cache/model_patch` where it is not set."""

FORMAT = 2
"""Part of the file's name, so that another version of this package starts an index of its own."""

SETTLED_SECONDS = 2.0
"""A file that changed less than this before it was looked at may change again within one tick of its clock: not kept."""

UNKNOWN, READABLE, UNREADABLE = 0, 1, 2
"""Verdicts: only the header was read; the image was decoded; it cannot be decoded."""

_COLUMNS = {
    "size": "int64",
    "modified": "int64",
    "pixels": "int64",
    "jpeg_side": "int64",
    "rules": "int64",
    "verdict": "int8",
}


def cache_folder() -> Path:
    """Returns the folder for what this package keeps between processes, see `CACHE`."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "model_patch"


class FolderIndex:
    """A row per image file of one folder: its size and modification time, and what was found out about it.

    Rows that a file's size and modification time no longer match are unknown again. The index is one file in the cache
    folder, replaced as a whole, so a second process sees the old or the new one; both are right. If it cannot be read or
    written, every file is looked at again.

    Attributes:
        paths: as they were given, in that order.
        sizes: int64 `(files,)`, bytes.
        pixels: int64 `(files,)`, width times height; -1 where it is not known yet.
        jpeg_sides: int64 `(files,)`, the shorter side of a JPEG image; 0 for others.
        rules: int64 `(files,)`, a bit per rule of `data.image_files`.
        verdict: int8 `(files,)`, one of `UNKNOWN`, `READABLE`, `UNREADABLE`.
    """

    def __init__(self, source: str | Path, paths: Sequence[str], sizes: np.ndarray, modified: np.ndarray):
        """Opens the index of a folder, or of a table of files.

        Args:
            source: the folder or table, or a text that names what holds them.
            paths: its image files, each once.
            sizes: int64 `(files,)`, bytes.
            modified: int64 `(files,)`, nanoseconds since 1970.
        """
        name = hashlib.sha256(os.fsencode(source if isinstance(source, str) else str(source.resolve()))).hexdigest()[
            :32
        ]
        self._file = cache_folder() / "folders" / f"{name}-{FORMAT}.npz"
        self.paths, self.sizes, self._modified = list(paths), sizes, modified
        self.pixels = np.full(len(paths), -1, "int64")
        self.jpeg_sides = np.zeros(len(paths), "int64")
        self.rules = np.zeros(len(paths), "int64")
        self.verdict = np.zeros(len(paths), "int8")
        self._restore()

    def unseen(self) -> np.ndarray:
        """Returns the positions of the files of which nothing is known."""
        return np.flatnonzero((self.pixels < 0) & (self.verdict != UNREADABLE))

    def undecoded(self) -> np.ndarray:
        """Returns the positions of the files that were not decoded so far."""
        return np.flatnonzero(self.verdict == UNKNOWN)

    def save(self):
        """Writes the index; without a word where the cache folder cannot be written."""
        settled = self._modified < time.time_ns() - int(SETTLED_SECONDS * 1e9)
        table = {
            "path": np.frombuffer(_joined([p for p, keep in zip(self.paths, settled, strict=True) if keep]), "uint8"),
            "size": self.sizes[settled],
            "modified": self._modified[settled],
            "pixels": self.pixels[settled],
            "jpeg_side": self.jpeg_sides[settled],
            "rules": self.rules[settled],
            "verdict": self.verdict[settled],
        }
        contents = io.BytesIO()
        np.savez(contents, **table)
        with contextlib.suppress(ModelPatchError):
            write_bytes(self._file, contents.getvalue())

    def _restore(self):
        try:
            with np.load(self._file) as file:  # Without pickles: whatever is in it, nothing of it is run.
                joined = file["path"].tobytes()
                held = {name: file[name] for name in _COLUMNS}
        except Exception:  # Missing, cut short or of a foreign make: what it said is found out again.
            return
        paths = os.fsdecode(joined).split("\0") if joined else []
        if any(column.shape != (len(paths),) or column.dtype != _COLUMNS[name] for name, column in held.items()):
            return
        if paths == self.paths:
            here = there = np.arange(len(paths))
        else:
            position = {path: i for i, path in enumerate(paths)}
            there = np.array([position.get(path, -1) for path in self.paths], "int64")
            here = np.flatnonzero(there >= 0)
            there = there[here]
        same = (held["size"][there] == self.sizes[here]) & (held["modified"][there] == self._modified[here])
        here, there = here[same], there[same]
        self.pixels[here], self.rules[here] = held["pixels"][there], held["rules"][there]
        self.jpeg_sides[here], self.verdict[here] = held["jpeg_side"][there], held["verdict"][there]


def _joined(paths: Sequence[str]) -> bytes:
    return os.fsencode("\0".join(paths))
