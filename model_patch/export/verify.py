"""Calls exported files in a process of its own, which has nothing of this package: proof that they stand alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_patch.errors import ModelPatchError

if TYPE_CHECKING:
    from model_patch.bind import BoundTask

TOLERANCE = 1e-4
"""Largest difference from the outputs of the model in memory, relative to their largest number where that is above 1."""

NUM_IMAGES = 2

RUNTIMES = {
    "ai_edge_litert": "LiteRT files are verified with ai-edge-litert",
    "onnxruntime": "ONNX files are verified with onnxruntime",
}
"""What runs exported files and need not be installed, by module."""


Run = Callable[[Sequence[tuple[str | Path, np.ndarray, Sequence[str | Path]]]], list[dict[str, np.ndarray]]]
"""Calls exported files: each call is a file or folder, images, float32 `(batch, height, width, 3)` in 0..255, and further
arguments. Returns the outputs of each by name."""


@contextlib.contextmanager
def clean_process(script: str) -> Iterator[Run]:
    """Starts one of the scripts of this folder, `python SCRIPT`, which imports its libraries while other work goes on here.

    It reads calls from its standard input, a JSON list a line: `[MODEL, IMAGES.npy, OUTPUTS.npz, [ARGUMENT, ...]]`, and writes
    a line with the name of OUTPUTS when they are there.

    Args:
        script: path of the script.

    Yields:
        What calls files in it. It raises `ModelPatchError` where a library is not installed that they need, and
        `RuntimeError` where they fail otherwise.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        errors = stack.enter_context((scratch / "errors").open("w+"))
        # -P: the folder of the script is not searched for modules.
        command, pipe = [sys.executable, "-P", script], subprocess.PIPE
        # Unbuffered: of a process that has failed nothing is left to be written when its pipe is closed.
        process: Any = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=errors)
        stack.enter_context(process)
        stack.callback(process.kill)
        inputs, outputs = scratch / "inputs.npy", scratch / "outputs.npz"

        def call(model, images, arguments) -> dict[str, np.ndarray]:
            np.save(inputs, images)
            line = json.dumps([str(model), str(inputs), str(outputs), [str(each) for each in arguments]])
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{line}\n".encode())
            if f"{outputs}\n".encode() not in process.stdout:
                errors.seek(0)
                raise _failed(model, errors.read())
            with np.load(outputs) as arrays:
                return dict(arrays)

        yield lambda calls: [call(*each) for each in calls]


def _failed(model: str | Path, errors: str) -> Exception:
    for module, needed in RUNTIMES.items():
        if f"No module named '{module}'" in errors:
            return ModelPatchError(f"{needed}, which is not installed: pip install it, or give --nocheck")
    return RuntimeError(f"the export {Path(model).name} does not run on its own:\n{errors}")


def differences(
    predictions: Callable, run: Run, folder: Path, tasks: Sequence[BoundTask], exact: bool = True
) -> dict[str, float]:
    """Compares the predictions of an export with those of the models in memory, on random images.

    Args:
        predictions, run: the function of the format's module, and what it runs files by, see `model_patch.export.Format`.
        folder: that was written.
        tasks: that were exported.
        exact: whether both should be equal up to rounding; with kernels stored as int8 they are not.

    Returns:
        Largest absolute difference of any number in the predictions, by task name.

    Raises:
        RuntimeError: `exact`, and they differ by more than `TOLERANCE`.
    """
    images = [_images(bound.task.preprocessing.image_size) for bound in tasks]
    found = {}
    for bound, batch, given in zip(tasks, images, predictions(run, folder, tasks, images), strict=True):
        name, task = bound.task.name, bound.task
        expected = task.predictions(bound.model(task.preprocessing.scale(batch), training=False))
        numbers = {key: np.asarray(each) for key, each in expected.items() if key in given}
        numbers = {key: each for key, each in numbers.items() if each.dtype.kind == "f"}
        found[name] = max(float(np.abs(given[key] - each).max()) for key, each in numbers.items())
        largest = max(1.0, *(float(np.abs(each).max()) for each in numbers.values()))
        if exact and not found[name] <= TOLERANCE * largest:
            raise RuntimeError(f"the exported task {name!r} differs from the model in memory by {found[name]:.3g}")
    return found


def agreement(
    predictions: Callable, run: Run, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> dict[str, float]:
    """Returns on which part of real images an export says the same as the model in memory, see `Task.agrees`, by task, in 0..1.

    Args:
        predictions, run, folder, tasks: as for `differences`.
        images: a batch per task, float32 `(batch, image_size, image_size, 3)` in 0..255.
    """
    found = {}
    for bound, batch, given in zip(tasks, images, predictions(run, folder, tasks, images), strict=True):
        outputs = bound.model.predict(np.asarray(bound.task.preprocessing.scale(batch)), verbose=0)
        found[bound.task.name] = float(np.mean(bound.task.agrees(given, bound.task.read(outputs))))
    return found


def _images(size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (NUM_IMAGES, size, size, 3)).astype("float32")
