"""Locks on files, local and remote: a workdir or a prediction table belongs to one run at a time."""

import atexit
import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from model_patch.errors import ModelPatchError
from model_patch.files import as_path, is_remote, read_bytes, writing

RENEWAL_SECONDS = 10.0
"""How often the holder of a lock on a remote file renews it. One that is not renewed for three times as long is abandoned."""

_locks: dict[tuple[int, int], int] = {}
"""Descriptors of the locks that this process holds, by device and inode; the operating system lets them go at its end."""

_leases: dict[str, Callable[[], None]] = {}
"""Functions that give back the locks on remote files that this process holds, by path."""


def lock(path: str | Path) -> bool:
    """Locks a file, made if it is missing, until this process ends, however it ends.

    A remote file holds its owner's host and process, and is renewed and at the end deleted by it. One that a process left
    behind is taken over: at once if that ran on this host, and else after a wait in which it is not renewed.

    Returns:
        Whether this process holds the lock; False where another does. It may take a lock that it already holds.

    Raises:
        ModelPatchError: the file cannot be made.
    """
    path = as_path(path)
    if is_remote(path):
        with writing(path):
            return _lease(path)
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


def _lease(path: Path) -> bool:
    if str(path) in _leases:
        return True
    fs, place = path.fs, path.path  # type: ignore[attr-defined]

    def own() -> bytes:
        return json.dumps({"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}).encode()

    try:
        fs.pipe_file(place, own(), mode="create")
    except FileExistsError:
        if not _is_abandoned(path):
            return False
        mine = own()
        fs.pipe_file(place, mine)
        if read_bytes(path) != mine:
            return False  # Another process took it over, too, and later.
    ended = threading.Event()

    def renew():
        while not ended.wait(RENEWAL_SECONDS):
            with contextlib.suppress(Exception):  # A store that fails now and then: the next renewal may pass.
                fs.pipe_file(place, own())

    def release():
        if _leases.pop(str(path), None) is None:
            return
        ended.set()
        renewing.join(RENEWAL_SECONDS)
        with contextlib.suppress(Exception):
            fs.rm_file(place)

    renewing = threading.Thread(target=renew, daemon=True)
    _leases[str(path)] = release
    renewing.start()
    atexit.register(release)
    return True


def _is_abandoned(path: Path) -> bool:
    """Whether the lock of a remote file has been abandoned."""
    try:
        before = read_bytes(path)
        held = json.loads(before)
        if held["host"] == socket.gethostname() and (held["process"] == os.getpid() or not _lives(held["process"])):
            return True
        time.sleep(3 * RENEWAL_SECONDS)
        return read_bytes(path) == before
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, TypeError):
        return False  # Whatever this file is, no lock of this package was it.


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
