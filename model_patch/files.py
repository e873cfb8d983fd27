"""All files of this package, local and remote: paths, listings, patterns, and writing that is never seen half done.

Remote paths are URLs of fsspec, such as `s3://bucket/photos`, `gs://`, `hf://` and `memory://`; see docs/data.md.
"""

import contextlib
import datetime
import glob
import json
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from model_patch.errors import ModelPatchError, reason

TEMPORARY = ".tmp"
"""Ending of a file that is being written. One that is left over belongs to a process that ended while writing."""

UPLOADING = f".uploading{TEMPORARY}"
"""File in a remote folder whose upload has not ended."""


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL."""
    return "://" in str(path)


def as_path(path: str | Path) -> Path:
    """Returns a local path, or a remote one, which has the same methods (`upath.UPath`).

    Raises:
        ModelPatchError: no file system of that name is known, or its package is not installed.
    """
    if not isinstance(path, str) or not is_remote(path):
        return Path(path) if isinstance(path, str) else path
    import fsspec
    from upath import UPath

    protocol, _, _ = path.partition("://")
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise ModelPatchError(f"{path} cannot be opened ({error}): install that, or use a local path") from None
    # Others write there, too: a listing that is kept would hide it.
    return UPath(path, use_listings_cache=False)  # type: ignore[return-value]


def joined(folder: str | Path, path: str) -> str:
    """Returns a path as text: that of a file relative to a folder, unless it is absolute or a URL."""
    return path if is_remote(path) or path.startswith("/") else f"{folder}/{path}"


class Entry(NamedTuple):
    """An entry of a folder: its name, whether it is a folder or a link, and of a file the size and modification time.

    The size is in bytes, the time in nanoseconds since 1970; both are -1 for a link that leads nowhere.
    """

    name: str
    is_folder: bool
    is_link: bool
    num_bytes: int
    modified: int


def listing(folder: Path, stamps: bool = True) -> list[Entry]:
    """Returns the entries of a folder, by name; without `stamps` sizes and times may be missing, which is faster."""
    if is_remote(folder):
        fs, path = folder.fs, folder.path  # type: ignore[attr-defined]
        found = [each for each in fs.ls(path, detail=True) if each["name"].strip("/") != path.strip("/")]
        entries = [
            Entry(each["name"].rstrip("/").rpartition("/")[2], each["type"] == "directory", False, *_remote_stamp(each))
            for each in found
        ]
    else:
        with os.scandir(folder) as scanned:
            entries = [_entry(each, stamps) for each in scanned]
    return sorted(entries)


def _entry(entry: os.DirEntry, stamps: bool) -> Entry:
    try:
        is_folder = entry.is_dir()
    except OSError:  # A link that leads to itself.
        is_folder = False
    is_link = entry.is_symlink()
    return Entry(entry.name, is_folder, is_link, *(stamp(entry) if not is_folder and (stamps or is_link) else (-1, -1)))


def stamp(path: Path | os.DirEntry) -> tuple[int, int]:
    """Returns a file's size in bytes and its modification time in nanoseconds; -1 where there is none."""
    try:
        if isinstance(path, os.DirEntry) or not is_remote(path):
            status = path.stat()
            return status.st_size, status.st_mtime_ns
        return _remote_stamp(path.fs.info(path.path))  # type: ignore[attr-defined]
    except OSError:
        return -1, -1


def _remote_stamp(info: dict) -> tuple[int, int]:
    """Returns size and modification time; the present where the store tells no time, so that nothing is taken for unchanged."""
    times = (info.get(key) for key in ("LastModified", "mtime", "updated", "last_modified", "created"))
    modified = next((each for each in times if each), time.time())
    if isinstance(modified, str):
        modified = datetime.datetime.fromisoformat(modified)
    seconds = modified.timestamp() if isinstance(modified, datetime.datetime) else float(modified)
    return int(info.get("size") or 0), int(seconds * 1e9)


def read_bytes(path: str | Path, start: int = 0, end: int | None = None) -> bytes:
    """Returns the contents of a file, or a part of them; of a remote one in one request, while others may be replacing it.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    path = as_path(path)
    if is_remote(path):
        return path.fs.cat_file(path.path, start or None, end)  # type: ignore[attr-defined]
    if not start and end is None:
        return path.read_bytes()
    with path.open("rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else end - start)


def write_bytes(path: str | Path, contents: bytes):
    """Writes a file whole or not at all.

    A local file is written beside its place, flushed to the disk and renamed. A remote one is uploaded in one piece, or in
    parts that the store joins when all are there.

    Raises:
        ModelPatchError: the folder cannot be made or written, or the disk is full.
    """
    path = as_path(path)
    if is_remote(path):
        with writing(path):
            path.fs.pipe_file(path.path, contents)  # type: ignore[attr-defined]
        return
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


def store_error(error: Exception) -> ModelPatchError | None:
    """Returns what a script says of an error of a store, such as missing credentials; None for an error from elsewhere.

    The package of each store has errors of its own, of any class: one of a store is raised below fsspec.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    if "fsspec" not in packages:
        return None
    from upath import UPath

    above = reversed(frames[: packages.index("fsspec")])
    texts = [str(each) for frame in above for each in frame.f_locals.values() if isinstance(each, str | UPath)]
    path = next(filter(is_remote, texts), "a remote path")
    return ModelPatchError(
        f"{path} cannot be reached ({type(error).__name__}: {reason(error)}): check the path, and the credentials and the "
        "address of its store"
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, what a store says against writing is one sentence."""
    try:
        yield
    except ModelPatchError:
        raise
    except Exception as error:  # Each store's package has errors of its own.
        raise ModelPatchError(f"{path} cannot be written ({error}): check the address and the credentials") from error


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder whole or not at all: what is put into the yielded local one is under `path` when all is done.

    Files of a remote folder are uploaded one after the other, those at its top last, in the order of their names: a reader
    sees no `saved_model.pb` without its variables. Until the last is there the folder holds a file `UPLOADING`, by which
    `local_copy` refuses it and the next call replaces it.

    Raises:
        ModelPatchError: something of this name exists, or the folder cannot be written.
    """
    path = as_path(path)
    if path.exists() and not (is_remote(path) and (path / UPLOADING).exists()):
        raise ModelPatchError(f"{path} exists: choose another --output, or delete it")
    if is_remote(path):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / path.name
            folder.mkdir()
            yield folder
            with writing(path):
                remove_folder(path)
                (path / UPLOADING).write_bytes(b"")
                upload(folder, path)
                (path / UPLOADING).unlink()
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            folder = Path(scratch) / path.name
            folder.mkdir()
            yield folder
            folder.replace(path)
    except OSError as error:
        raise ModelPatchError(f"{path} cannot be written ({error}): choose another --output or free the disk") from None


def upload(folder: Path, path: Path):
    """Writes the files of a local folder into a remote one, deeper ones first, then by name."""
    files = [each.relative_to(folder) for each in folder.rglob("*") if each.is_file()]
    with writing(path):
        for each in sorted(files, key=lambda each: (-len(each.parts), each)):
            path.fs.put_file(str(folder / each), f"{path.path}/{each.as_posix()}")  # type: ignore[attr-defined]


@contextlib.contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """Yields a local file or folder for libraries that read no other: the path, or a copy that is deleted afterwards.

    A remote path that does not exist is copied as the files whose names start with it, such as those of a checkpoint.

    Raises:
        OSError: the remote file or folder is missing or cannot be read.
        ModelPatchError: the upload of the remote folder was interrupted.
    """
    path = as_path(path)
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / path.name
        try:
            if (path / UPLOADING).exists():
                raise ModelPatchError(f"the upload of {path} was interrupted: write it again")
            fs, place = path.fs, path.path  # type: ignore[attr-defined]
            if path.exists():
                fs.get(place, str(copy), recursive=path.is_dir())
            else:
                fs.get(f"{place}*", f"{scratch}/")
        except FileNotFoundError:
            raise FileNotFoundError("it does not exist") from None
        except (OSError, ModelPatchError):
            raise
        except Exception as error:  # Each store's package has errors of its own.
            raise ConnectionError(str(error)) from error
        yield copy


def remove_folder(path: Path):
    """Removes a folder with all that is in it, if it exists."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.fs.rm(path.path, recursive=True)  # type: ignore[attr-defined]


def require_no_pattern(path: str | Path):
    """Checks that TensorFlow can read a SavedModel or a checkpoint at a path: it takes the path for a pattern of files.

    Raises:
        ModelPatchError: the path has a character that means something in patterns.
    """
    found = next((character for character in str(path) if character in "[*?\\"), None)
    if found and not is_remote(path):
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
        return json.loads(read_bytes(path), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelPatchError(f"{path} is not a readable JSON file ({error})") from None


def read_secret(path: str | Path) -> str:
    """Returns the text of a file without the space around it.

    Raises:
        ModelPatchError: the file cannot be read, or is empty.
    """
    try:
        secret = Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise ModelPatchError(f"{path} cannot be read ({error}): give a file with a token") from None
    if not secret:
        raise ModelPatchError(f"{path} is empty: expected a token")
    return secret


def matching(names: Sequence[str], inside: Callable[[str], Iterable[str]] | None = None) -> list[str]:
    """Returns the files with the given names or patterns, each once.

    A name that exists is that file, whatever characters it has, and so is every folder on the way to it. Only a part of a
    path that does not exist is a pattern: `*`, `?`, `[...]`, and `**` for folders at any depth.

    Args:
        names: paths and patterns; `~` is the home folder.
        inside: returns the files that a folder represents; without it, folders are refused.

    Raises:
        ModelPatchError: there are none, no file has one of the names, or it is a folder that represents no file.
    """
    if not names:
        raise ModelPatchError("no file is given: expected at least one path, or a pattern such as photos/*.jpg")
    found: dict[str, None] = {}
    for name in names:
        path = os.path.expanduser(name)  # noqa: PTH111 - a Path would drop a leading `./`.
        place = as_path(path)
        if place.is_dir():
            held = list(inside(path)) if inside else []
            if not held:
                what = "a folder without images" if inside else "a folder"
                raise ModelPatchError(f"{name} is {what}: expected files, such as {place / '*.jpg'}")
            found.update(dict.fromkeys(held))
            continue
        if place.exists():
            matches = [path]
        elif is_remote(path):
            fs, protocol = place.fs, path.partition("://")[0]  # type: ignore[attr-defined]
            matches = [f"{protocol}://{each.lstrip('/')}" for each in sorted(fs.glob(place.path)) if not fs.isdir(each)]  # type: ignore[attr-defined]
        else:
            matches = [each for each in _matches(path) if not Path(each).is_dir()]
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


def remove_leftovers(folder: str | Path):
    """Removes what killed processes left half written below a folder that no other process writes to."""
    if is_remote(folder):
        return  # Stores show no half-written file.
    for file in Path(folder).rglob(f".*{TEMPORARY}"):
        file.unlink(missing_ok=True)
