"""Writing files so that nothing half-written is ever seen under its final name."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from model_patch.errors import ModelPatchError


def write_bytes(path: str | Path, contents: bytes):
    """Writes a file whole or not at all: a temporary file beside it, flushed to the disk, then renamed.

    Raises:
        ModelPatchError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            os.fchmod(file.fileno(), 0o644)
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ModelPatchError(
            f"{path} cannot be written ({error.strerror}): choose another place or free the disk"
        ) from None


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder whole or not at all: what is put into the yielded one stands under `path` when all is done.

    Raises:
        ModelPatchError: something of this name exists, or the folder cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise ModelPatchError(f"{path} exists: choose another --output, or delete it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            folder = Path(scratch) / path.name
            folder.mkdir()
            yield folder
            folder.replace(path)
    except OSError as error:
        raise ModelPatchError(f"{path} cannot be written ({error}): choose another --output or free the disk") from None


def write_json(path: str | Path, value):
    """Writes a value as indented JSON, whole or not at all. Raises as `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | Path):
    """Reads a JSON file.

    Raises:
        ModelPatchError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ModelPatchError(f"{path} is not a readable JSON file ({error})") from None
