"""The main job from end to end, offline: tasks learnt one after the other on one trunk, compared, exported and checked."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

from model_patch.bind import BoundTask, bind_patch
from model_patch.data import open_data
from model_patch.export import plain_call
from model_patch.export.saved_model import export_saved_model
from model_patch.patch import Patch
from model_patch.report.comparison import save_figure
from model_patch.report.grid import prediction_grid
from model_patch.report.table import print_table
from model_patch.training.transfer import patch_path, transfer
from model_patch.trunks import open_trunk

TOLERANCE = 1e-5
"""Largest difference of probabilities allowed between a SavedModel and the model in memory."""


def demo(config: ConfigDict, workdir: str | Path):
    """Learns each task of `config.tasks` on one trunk, compares what can be trained on the first, exports and checks all.

    Writes to the workdir what `transfer` writes for the first task; for the others the same under `tasks/NAME/`; a patch
    file `patches/NAME.safetensors` and a SavedModel `saved_models/NAME` per task; and `predictions.png`.

    Raises:
        ModelPatchError: something cannot be used or written.
        RuntimeError: a SavedModel answers otherwise than the model in memory: a fault of this package.
    """
    workdir = Path(workdir)
    first, *others = config.tasks
    chosen = {}
    for name in config.tasks:
        transfer_config = config.transfer.copy_and_resolve_references()
        transfer_config.update(data=name, train=config.compare if name == first else (config.train,))
        print(f"\n{name}: learning {', '.join(transfer_config.train)}", flush=True)
        folder = workdir if name == first else workdir / "tasks" / name
        transfer(transfer_config, folder)
        chosen[name] = workdir / "patches" / f"{name}.safetensors"
        shutil.copy(patch_path(folder, config.train, transfer_config.seeds[0]), chosen[name])

    trunk = open_trunk(config.transfer.trunk, config.transfer.image_size or None)
    shutil.rmtree(workdir / "saved_models", ignore_errors=True)
    print("\nLoading each SavedModel in a process of its own, with TensorFlow alone", flush=True)
    table, grid = [], []
    for name, path in chosen.items():
        bound = bind_patch(trunk, Patch.load(path))
        saved_model = workdir / "saved_models" / name
        export_saved_model(bound, saved_model)
        images, true = _test_images(name, config.num_images)
        probabilities, predicted = _call_alone(saved_model, np.stack(images).astype("float32"))
        difference = float(np.abs(probabilities - _in_memory(bound, images)).max())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"the SavedModel of {name} differs from the model in memory by {difference}")
        labels = [bound.task.labels[i] for i in true]
        right = sum(p == t for p, t in zip(predicted, labels, strict=True))
        size = sum(file.stat().st_size for file in saved_model.rglob("*") if file.is_file())
        files = (f"{path.stat().st_size / 1000:.0f} kB", f"{size / 1e6:.2f} MB")
        table.append((name, *files, f"{right} of {len(labels)}", f"{difference:.1e}"))
        grid.append((name, images[: config.num_columns], predicted, labels))
    header = ("task", "patch", "SavedModel", "right on test images", "largest difference to the model in memory")
    print_table("One trunk, a patch per task", header, table)
    save_figure(prediction_grid(grid), workdir / "predictions.png")
    print(
        f"\nWritten to {workdir}: results.json, results.md, accuracy_vs_parameters.png, predictions.png, patches/, saved_models/"
    )


def _test_images(data: str, number: int) -> tuple[list[np.ndarray], list[int]]:
    pairs = list(open_data(data).test.dataset(number).as_numpy_iterator())
    return [image for image, _ in pairs], [int(label) for _, label in pairs]


def _in_memory(bound: BoundTask, images: list[np.ndarray]) -> np.ndarray:
    logits = bound.model(bound.task.preprocessing(np.stack(images)), training=False)
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def _call_alone(saved_model: Path, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch) / "images.npy", Path(scratch) / "answers.npz"
        np.save(inputs, images)
        command = [sys.executable, plain_call.__file__, str(saved_model), str(inputs), str(outputs)]
        called = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if called.returncode:
            raise RuntimeError(f"{saved_model} does not run on its own:\n{called.stderr}")
        with np.load(outputs) as answers:
            return answers["probabilities"], [label.decode() for label in answers["label"]]
