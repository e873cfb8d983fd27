"""Which tasks a server has: the patch files of a folder, local or remote, which may change while it serves."""

import contextlib
import dataclasses
import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model_patch.errors import ModelPatchError, PatchError
from model_patch.files import TEMPORARY, as_path, listing, write_bytes
from model_patch.kinds import KINDS, TrainSpec
from model_patch.patch import MAX_HEADER, METADATA_KEY, Patch
from model_patch.patch_files import SUFFIX
from model_patch.serving.engine import Engine

_logger = logging.getLogger(__name__)

READERS = 8
"""Files that are read at once, before the server is ready."""


class PatchFolder:
    """The patch files of a folder, each the task of its name: `FOLDER/digits.safetensors` is `digits`.

    Args:
        location: a path, or a URL such as `s3://bucket/patches`.

    Raises:
        ModelPatchError: the folder does not exist, or its file system is not known.
    """

    def __init__(self, location: str):
        self._path = as_path(location)
        if not self._path.is_dir():
            raise ModelPatchError(f"the folder {location} does not exist: give the folder of the patch files")

    def list(self) -> dict[str, str]:
        """Returns for each task a text that changes when its file does.

        Raises:
            OSError: the folder cannot be read.
        """
        return {
            entry.name.removesuffix(SUFFIX): f"{entry.modified} {entry.num_bytes}"
            for entry in listing(self._path)
            if entry.name.endswith(SUFFIX) and not entry.is_folder and not entry.name.startswith(".")
        }

    def needs(self, name: str) -> tuple[TrainSpec, int, str]:
        """Returns what was trained for a task, its number of classes and its pooling, as the file's header says; the rest is
        not read.

        Raises:
            PatchError: the header cannot be read.
        """
        try:
            with self._file(name).open("rb") as file:
                length = min(int.from_bytes(file.read(8), "little"), MAX_HEADER)
                manifest = json.loads(json.loads(file.read(length))["__metadata__"][METADATA_KEY])
            task = manifest["task"]
            trained = TrainSpec.parse(manifest["train"], manifest["norm_statistics"])
            return trained, len(task["labels"]), task.get("pooling", "auto")
        except Exception as error:  # Any file may be there.
            raise PatchError(f"the patch {name!r} cannot be read ({error!r})") from None

    def load(self, name: str) -> Patch:
        """Reads a patch. Raises as `Patch.load`."""
        with _named(self._file(name), name):
            return Patch.load(self._file(name))

    def save(self, name: str, contents: bytes):
        """Writes a patch file, whole or not at all."""
        write_bytes(self._file(name), contents)

    def delete(self, name: str):
        """Deletes a patch file.

        Raises:
            OSError: it is not there, or cannot be deleted.
        """
        self._file(name).unlink()

    def _file(self, name: str) -> Path:
        return self._path / f"{name}{SUFFIX}"


def parse(contents: bytes, name: str) -> Patch:
    """Reads a patch out of a file's contents.

    Raises:
        PatchError: they are damaged, or no patch.
    """
    with tempfile.NamedTemporaryFile(suffix=TEMPORARY) as file:
        file.write(contents)
        file.flush()
        with _named(file.name, name):
            return Patch.load(file.name)


@contextlib.contextmanager
def _named(path: str | Path, name: str) -> Iterator[None]:
    """Within it errors name a task instead of the path of its file, which clients need not know."""
    try:
        yield
    except PatchError as error:
        raise PatchError(str(error).replace(str(path), repr(name))) from None


@dataclasses.dataclass
class _Known:
    """A task of the folder.

    Attributes:
        stamp: that of the file when it was last read.
        error: why that was refused; empty if it was not, or has not been read.
    """

    stamp: str
    error: str = ""


class Catalog:
    """Keeps an engine at what a folder holds. All methods may be called by several threads at once.

    A file that is new or has changed is loaded if there is room in memory, or if its task is there already; others are
    loaded when they are first needed. A file that is refused changes nothing in memory.
    """

    def __init__(self, folder: PatchFolder, engine: Engine):
        self._folder, self._engine = folder, engine
        self._known: dict[str, _Known] = {}
        self._changing = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)

    def names(self) -> list[str]:
        """Returns the names of all tasks."""
        return sorted(self._known)

    def error(self, name: str) -> str:
        """Returns why the task's present file was refused; empty if it was not, or there is none."""
        known = self._known.get(name)
        return known.error if known else ""

    def scan(self, *, load: bool = True):
        """Looks once at the folder and follows what has changed.

        Args:
            load: load new tasks while there is room; without, only what is in memory already is loaded again.

        Raises:
            OSError: the folder cannot be listed; nothing is changed.
        """
        before = set(self._known)  # What is added while the folder is listed has not left it.
        found = self._folder.list()
        for name in before - found.keys():
            with self._changing:
                self._forget(name)
        for name, stamp in found.items():
            if self._stop.is_set():
                return
            known = self._known.get(name)
            if known and known.stamp == stamp:
                continue
            with self._changing:
                self._known[name] = _Known(stamp)
            if self._engine.task(name) or (load and not self._engine.is_full):
                self._load(name)

    def load_waiting(self):
        """Loads tasks that are not in memory while there is room."""
        for name in list(self._known):
            if self._stop.is_set() or self._engine.is_full:
                return
            if not self._engine.task(name):
                self._load(name)

    def watch(self, seconds: float):
        """Starts a thread that loads tasks while there is room, and then looks at the folder, over and over.

        Args:
            seconds: from one look to the next.
        """

        def run():
            self.load_waiting()
            while not self._stop.wait(seconds):
                try:
                    self.scan()
                except Exception:  # A folder that cannot be read now may be readable later.
                    _logger.exception("the folder of the patches cannot be read")

        self._watcher = threading.Thread(target=run, name="watch-folder", daemon=True)
        self._watcher.start()

    def close(self):
        """Ends the thread."""
        self._stop.set()
        if self._watcher:
            self._watcher.join()

    def ensure(self, name: str) -> bool:
        """Loads a task that is not in memory; returns whether it is there then.

        Raises:
            OverloadedError: as `Engine.put`.
        """
        return self._engine.task(name) is not None or (name in self._known and self._load(name))

    def put(self, name: str, contents: bytes):
        """Takes over a patch: into memory, then into the folder.

        Raises:
            ModelPatchError: the patch is refused, and the old one stays; or it cannot be written.
        """
        self._engine.put(name, parse(contents, name))
        with self._changing:
            self._known[name] = _Known("")  # Should writing fail, the next look loads what the folder has.
            self._folder.save(name, contents)
            self._known[name] = _Known(self._folder.list().get(name, ""))

    def delete(self, name: str):
        """Removes a task from the folder and from memory.

        Raises:
            OSError: its file cannot be deleted.
        """
        with self._changing:
            self._folder.delete(name)
            self._forget(name)

    def _forget(self, name: str):
        self._known.pop(name, None)
        self._loading.pop(name, None)
        self._engine.drop(name)
        _logger.info("task removed", extra={"task": name})

    def _load(self, name: str) -> bool:
        with self._loading.setdefault(name, threading.Lock()):
            known = self._known.get(name)
            if not known:
                return False
            try:
                self._engine.put(name, self._folder.load(name))
            except (ModelPatchError, OSError) as error:
                known.error = str(error)
                _logger.warning("patch refused", extra={"task": name, "reason": str(error)})
                return False
            known.error = ""
        if name not in self._known:  # Removed meanwhile.
            self._engine.drop(name)
        return name in self._known


def needs_of(folder: PatchFolder, most: int) -> tuple[str, int, str]:
    """Returns the patch kinds and the number of classes that the first patches of a folder need together, and the first's pooling.

    Args:
        folder: files that cannot be read are passed over.
        most: how many are looked at.
    """

    def look(name: str) -> tuple[TrainSpec, int, str] | None:
        try:
            return folder.needs(name)
        except PatchError:
            return None

    with ThreadPoolExecutor(READERS) as pool:
        needs = [each for each in pool.map(look, sorted(folder.list())[:most]) if each]
    kinds = [kind for kind in KINDS if kind != "full" and any(kind in spec.kinds for spec, *_ in needs)]
    classes, pooling = max((each for _, each, _ in needs), default=10), next((each for *_, each in needs), "auto")
    return "+".join(kinds) or "scale_bias", classes, pooling
