"""Calls exported files in a process of their own, which has nothing of this package: proof that they stand alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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


def run_in_clean_process(
    script: str, calls: Sequence[tuple[str | Path, np.ndarray, Sequence[str | Path]]]
) -> list[dict[str, np.ndarray]]:
    """Runs one of the scripts of this folder, `python SCRIPT CALLS.json`, once for all calls.

    Args:
        script: path of the script.
        calls: what it calls; the images, float32 `(batch, height, width, 3)` in 0..255; further arguments of the script.

    Returns:
        The outputs of each call, by name.

    Raises:
        ModelPatchError: a library that it needs is not installed.
        RuntimeError: it fails otherwise.
    """
    with tempfile.TemporaryDirectory() as scratch:
        written = []
        for i, (model, images, arguments) in enumerate(calls):
            inputs, outputs = Path(scratch) / f"{i}.npy", Path(scratch) / f"{i}.npz"
            np.save(inputs, images)
            written.append((str(model), str(inputs), str(outputs), [str(each) for each in arguments]))
        listed = Path(scratch) / "calls.json"
        listed.write_text(json.dumps(written))
        # -P: the folder of the script is not searched for modules.
        called = subprocess.run([sys.executable, "-P", script, str(listed)], capture_output=True, text=True)
        for module, needed in RUNTIMES.items():
            if f"No module named '{module}'" in called.stderr:
                raise ModelPatchError(f"{needed}, which is not installed: pip install it, or give --nocheck")
        if called.returncode:
            failed = next((model for model, _, outputs, _ in written if not Path(outputs).exists()), script)
            raise RuntimeError(f"the export {Path(failed).name} does not run on its own:\n{called.stderr}")
        found = []
        for _, _, file, _ in written:
            with np.load(file) as arrays:
                found.append(dict(arrays))
        return found


def differences(
    predictions: Callable, folder: Path, tasks: Sequence[BoundTask], exact: bool = True
) -> dict[str, float]:
    """Compares the predictions of an export with those of the models in memory, on random images.

    Args:
        predictions: of the format's module, see `model_patch.export.Format`.
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
    for bound, batch, given in zip(tasks, images, predictions(folder, tasks, images), strict=True):
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
    predictions: Callable, folder: Path, tasks: Sequence[BoundTask], images: Sequence[np.ndarray]
) -> dict[str, float]:
    """Returns on which part of real images an export says the same as the model in memory, see `Task.agrees`, by task, in 0..1.

    Args:
        predictions, folder, tasks: as for `differences`.
        images: a batch per task, float32 `(batch, image_size, image_size, 3)` in 0..255.
    """
    found = {}
    for bound, batch, given in zip(tasks, images, predictions(folder, tasks, images), strict=True):
        outputs = bound.model.predict(np.asarray(bound.task.preprocessing.scale(batch)), verbose=0)
        found[bound.task.name] = float(np.mean(bound.task.agrees(given, bound.task.read(outputs))))
    return found


def _images(size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (NUM_IMAGES, size, size, 3)).astype("float32")
