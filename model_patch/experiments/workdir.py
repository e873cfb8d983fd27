"""The folder of one run: its configuration, its results, and the refusal to mix two runs."""

import atexit
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from model_patch import __version__
from model_patch.errors import ModelPatchError
from model_patch.experiments.locks import lock
from model_patch.files import as_path, is_remote, read_json, remove_folder, remove_leftovers, write_json

LOCK = ".lock"
"""File in a workdir that the process which runs in it holds."""


def claim(workdir: str | Path):
    """Takes a workdir for this process until its end; a new one is removed at the end if nothing was written to it.

    Raises:
        ModelPatchError: another process is running in it.
    """
    workdir = as_path(workdir)
    is_new = not workdir.exists()
    if not lock(workdir / LOCK):
        raise ModelPatchError(
            f"another process is running in the workdir {workdir}: wait for its end, or choose another --workdir"
        )
    if is_new and not is_remote(workdir):  # A store has no empty folders.
        atexit.register(_remove_if_empty, workdir.absolute())


def _remove_if_empty(folder: Path):
    if folder.exists() and [each.name for each in folder.iterdir()] == [LOCK]:
        remove_folder(folder)


class Workdir:
    """The folder that one run writes to.

    A run with the same configuration resumes where it stopped. A run with another is refused, and so is the same one in a
    second process while the first is running.

    Attributes:
        path: the folder, made if it is missing.
    """

    CONFIG = "config.json"
    RESULTS = "results.json"
    CHECKPOINTS = "checkpoints"

    def __init__(self, path: str | Path, config: dict):
        """Opens the folder for a configuration.

        Args:
            path: the folder.
            config: JSON values by name; whatever changes the result belongs in it.

        Raises:
            ModelPatchError: the folder holds a run with another configuration, or files that are no run, or a process
                that lives is running in it.
        """
        self.path = as_path(path)
        config = json.loads(json.dumps(config))  # As it will be read again: tuples are lists there.
        if self.path.exists() and not self.path.is_dir():
            raise ModelPatchError(f"the workdir {path} is a file: expected a folder, or a name for a new one")
        marker = self.path / self.CONFIG
        if not marker.exists() and self.path.exists() and any(each.name != LOCK for each in self.path.iterdir()):
            raise ModelPatchError(
                f"the workdir {path} is not empty and holds no run of this program: choose another --workdir"
            )
        claim(self.path)
        if marker.exists():
            held = read_json(marker)
            differing = sorted(k for k in held.keys() | config.keys() if held.get(k) != config.get(k))
            if differing:
                named = ", ".join(f"{k} {held.get(k)!r} there and {config.get(k)!r} here" for k in differing)
                raise ModelPatchError(
                    f"the workdir {path} holds another run ({named}): choose another --workdir, or delete it"
                )
        else:
            write_json(marker, config)
        remove_leftovers(self.path)

    def results(self) -> dict:
        """Returns the results written so far; empty where there are none."""
        path = self.path / self.RESULTS
        return read_json(path) if path.exists() else {}

    @classmethod
    def of_worker(cls, path: str | Path) -> "Workdir":
        """Returns the folder for a worker of the process that has opened it."""
        folder = cls.__new__(cls)
        folder.path = as_path(path)
        return folder

    def write_results(self, results: dict, *, clears: bool = True):
        """Replaces the results file, whole or not at all; the checkpoints are deleted, unless other rows are in training."""
        write_json(self.path / self.RESULTS, results)
        if clears:
            remove_folder(self.path / self.CHECKPOINTS)

    def run_rows(
        self,
        facts: dict,
        keys: Sequence[dict],
        train_row: Callable[..., list[dict]],
        in_any_order: Callable[[Sequence[dict]], Iterable[tuple[dict, list[dict]]]] | None = None,
    ) -> dict:
        """Trains the rows that are missing, and writes the results after each.

        Args:
            facts: the fields of `results.json` besides `rows`; a run that resumes keeps those that are there.
            keys: for each row the fields that identify it, such as `{"train": "last", "seed": 0}`, in the order of training.
            train_row: seeds all random generators and trains one row, given its key as keyword arguments; returns the other
                fields of its row, or of several rows with one key.
            in_any_order: trains several rows at once instead: given the missing keys, yields each with what `train_row` would
                return, as it is finished.

        Returns:
            The results, with all rows, in the order of the keys.
        """
        results = self.results() or {**facts, "rows": []}
        missing = [key for key in keys if not any(key.items() <= row.items() for row in results["rows"])]

        def in_order() -> Iterator[tuple[dict, list[dict]]]:
            for key in missing:
                yield key, train_row(**key)

        for key, rows in in_any_order(missing) if in_any_order else in_order():
            results["rows"] += [key | row for row in rows]
            if in_any_order:
                results["rows"].sort(
                    key=lambda row: next(i for i, key in enumerate(keys) if key.items() <= row.items())
                )
            self.write_results(results, clears=not in_any_order)
        if in_any_order:
            self.write_results(results)
        return results

    def checkpoint(self, name: str) -> Path:
        """Returns the file from which the training of that name resumes; it exists until the next results are written."""
        return self.path / self.CHECKPOINTS / f"{name}.safetensors"


def versions() -> dict[str, str]:
    """Returns the versions of what computes: Python, this package, Keras and its backends, numpy."""
    import keras  # Here, since a folder is claimed before anything that takes seconds.

    found = {"python": platform.python_version(), "model_patch": __version__}
    for name in ("keras", "numpy", "tensorflow", "jax", "torch"):
        for distribution in (name, f"{name}_cpu"):
            try:
                found.setdefault(name, importlib.metadata.version(distribution))
            except importlib.metadata.PackageNotFoundError:
                continue
    return found | {"backend": keras.backend.backend()}
