"""The main job from end to end, offline: tasks learnt one after the other on one trunk, compared, exported and checked."""

import shutil
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import require_each_once
from model_patch.experiments.report.output import prediction_grid, save_figure
from model_patch.experiments.report.table import print_table
from model_patch.experiments.transfer import patch_path, transfer
from model_patch.export import clean_saved_model
from model_patch.export.saved_model import export_saved_model
from model_patch.export.verify import run_in_clean_process
from model_patch.files import write_bytes
from model_patch.progress import progress

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
    require_each_once("tasks", config.tasks)
    workdir = Path(workdir)
    compared = config.tasks[0]
    chosen = {}
    for name in config.tasks:
        transfer_config = config.transfer.copy_and_resolve_references()
        transfer_config.update(data=name, train=config.compare if name == compared else (config.train,))
        print(f"\n{name}: learning {', '.join(transfer_config.train)}", flush=True)
        folder = workdir if name == compared else workdir / "tasks" / name
        transfer(transfer_config, folder)
        chosen[name] = workdir / "patches" / f"{name}.safetensors"
        write_bytes(chosen[name], patch_path(folder, config.train, transfer_config.seeds[0]).read_bytes())

    print("\nLoading each SavedModel in a process of its own, with TensorFlow alone", flush=True)
    trunk = mp.open_trunk(config.transfer.trunk, config.transfer.image_size or None)
    shutil.rmtree(workdir / "saved_models", ignore_errors=True)
    table, grid = [], []
    for name, path in progress(chosen.items(), "exporting and checking", unit="task"):
        bound = mp.bind_patch(trunk, mp.Patch.load(path))
        images, true = _test_images(name, config.num_images)
        saved_model = workdir / "saved_models" / name
        export_saved_model(bound, saved_model)
        predicted, difference = _checked(bound, saved_model, np.stack(images))
        labels = [bound.task.labels[i] for i in true]
        right = sum(p == t for p, t in zip(predicted, labels, strict=True))
        size = sum(file.stat().st_size for file in saved_model.rglob("*") if file.is_file())
        files = (f"{path.stat().st_size / 1000:.0f} kB", f"{size / 1e6:.2f} MB")
        table.append((name, *files, f"{right} of {len(labels)}", f"{difference:.1e}"))
        grid.append((name, images[: config.num_columns], predicted, labels))
    header = ("task", "patch", "SavedModel", "right on test images", "largest difference to the model in memory")
    print_table("One trunk, a patch per task", header, table)
    save_figure(prediction_grid(grid), workdir / "predictions.png")
    written = "results.json, results.md, accuracy_vs_parameters.png, predictions.png, patches/, saved_models/"
    print(f"\nWritten to {workdir}: {written}")


def _test_images(data: str, number: int) -> tuple[list[np.ndarray], list[int]]:
    pairs = list(mp.open_data(data).test.dataset(number).as_numpy_iterator())
    return [image for image, _ in pairs], [int(label) for _, label in pairs]


def _checked(bound: mp.BoundTask, saved_model: Path, images: np.ndarray) -> tuple[list[str], float]:
    """Returns what a SavedModel answers, and how far its probabilities are from those of the model in memory."""
    answers = run_in_clean_process(clean_saved_model.__file__, saved_model, images.astype("float32"))
    logits = bound.model(bound.task.preprocessing(images), training=False)
    in_memory = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    difference = float(np.abs(answers["probabilities"] - in_memory).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the SavedModel {saved_model} differs from the model in memory by {difference}")
    return [label.decode() for label in answers["label"]], difference
