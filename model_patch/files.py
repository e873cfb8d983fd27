"""Writing files so that nothing half-written is ever seen under its final name; finding files by names and patterns."""

import contextlib
import fcntl
import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from model_patch.errors import ModelPatchError

TEMPORARY = ".tmp"
"""Ending of a file that is being written. One that is left over belongs to a process that ended while writing."""

_locks: dict[tuple[int, int], int] = {}
"""Descriptors of the locks that this process holds, by device and inode; the operating system lets them go at its end."""


def write_bytes(path: str | Path, contents: bytes):
    """Writes a file whole or not at all: a temporary file beside it, flushed to the disk, then renamed.

    Raises:
        ModelPatchError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=TEMPORARY, delete=False) as file:
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


def require_no_pattern(path: str | Path):
    """Checks that TensorFlow can read a SavedModel or a checkpoint at a path: it takes the path for a pattern of files.

    Raises:
        ModelPatchError: the path has a character that means something in patterns.
    """
    found = next((character for character in str(path) if character in "[*?\\"), None)
    if found:
        raise ModelPatchError(
            f"the path {path} has {found!r} in it, which TensorFlow takes for a pattern: choose another"
        )


def write_json(path: str | Path, value):
    """Writes a value as indented JSON, whole or not at all. Raises as `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | Path):
    """Reads a JSON file.

    Raises:
        ModelPatchError: the file is missing, is not JSON, or has an object with the same key twice.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict:
        members = dict(pairs)
        if len(members) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
        return members

    try:
        return json.loads(Path(path).read_bytes(), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelPatchError(f"{path} is not a readable JSON file ({error})") from None


def matching(names: Sequence[str], inside: Callable[[str], Iterable[str]] | None = None) -> list[str]:
    """Returns the files with the given names or patterns, each once.

    A name that exists is that file, whatever characters it has, and so is every folder on the way to it. Only a part of a
    path that does not exist is a pattern: `*`, `?`, `[...]`, and `**` for folders at any depth.

    Args:
        names: paths and patterns; `~` is the home folder.
        inside: returns the files that a folder stands for; without it, folders are refused.

    Raises:
        ModelPatchError: there are none, no file has one of the names, or it is a folder that stands for no file.
    """
    if not names:
        raise ModelPatchError("no file is given: expected at least one path, or a pattern such as photos/*.jpg")
    found: dict[str, None] = {}
    for name in names:
        path = os.path.expanduser(name)  # noqa: PTH111 - a Path would drop a leading `./`.
        if Path(path).is_dir():
            held = list(inside(path)) if inside else []
            if not held:
                what = "a folder without images" if inside else "a folder"
                raise ModelPatchError(f"{name} is {what}: expected files, such as {Path(name) / '*.jpg'}")
            found.update(dict.fromkeys(held))
            continue
        matches = [path] if Path(path).exists() else [each for each in _matches(path) if not Path(each).is_dir()]
        if not matches:
            raise ModelPatchError(f"the image {name} does not exist: expected the path of a file, or a pattern of some")
        found.update(dict.fromkeys(matches))
    return list(found)


def _matches(pattern: str) -> list[str]:
    anchor, *parts = Path(pattern).parts if Path(pattern).is_absolute() else ("", *Path(pattern).parts)
    bases = [anchor]
    for i, part in enumerate(parts):
        following: list[str] = []
        for base in bases:
            named = os.path.join(base, part)  # noqa: PTH118 - relative paths start from an empty base.
            if os.path.lexists(named):
                following.append(named)
                continue
            below = glob.glob(
                f"{part}/" if part == "**" and i < len(parts) - 1 else part, root_dir=base or None, recursive=True
            )
            following += [os.path.join(base, each) for each in sorted(below)]  # noqa: PTH118
            if part == "**":
                following.append(base)
        bases = list(dict.fromkeys(following))
    return sorted(bases)


def lock(path: str | Path) -> bool:
    """Locks a file, made if it is missing, until this process ends, however it ends.

    Returns:
        Whether this process holds the lock; False where another does. It may take a lock that it already holds.

    Raises:
        ModelPatchError: the file cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ModelPatchError(
            f"{path} cannot be written ({error.strerror}): choose another place or free the disk"
        ) from None
    status = os.fstat(file)
    identity = (status.st_dev, status.st_ino)
    if identity in _locks:
        os.close(file)
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    except OSError:
        pass  # A file system without locks, as some network ones are: the run continues unprotected.
    _locks[identity] = file
    return True


def remove_leftovers(folder: str | Path):
    """Removes what killed processes left half written below a folder that no other process writes to."""
    for file in Path(folder).rglob(f".*{TEMPORARY}"):
        file.unlink(missing_ok=True)
