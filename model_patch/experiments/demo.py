"""The main job from end to end, offline: tasks trained one after the other on one trunk, compared, exported and verified."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import require_each_once
from model_patch.experiments.report.output import prediction_grid, save_figure
from model_patch.experiments.report.page import REPORT
from model_patch.experiments.report.table import print_table
from model_patch.experiments.transfer import patch_path, transfer
from model_patch.files import as_path, remove_folder, write_bytes


def demo(config: ConfigDict, workdir: str | Path):
    """Trains each task of `config.tasks` on one trunk, compares ways to train on the first, exports and verifies all.

    Writes to the workdir what `transfer` writes for the first task; for the others the same under `tasks/NAME/`; a patch
    file `patches/NAME.safetensors` and a SavedModel `saved_models/NAME` per task; and `predictions.png`.

    Raises:
        ModelPatchError: something cannot be used or written.
        RuntimeError: a SavedModel differs from the model in memory, which is a bug of this package.
    """
    require_each_once("tasks", config.tasks)
    workdir, compared, patches = as_path(workdir), config.tasks[0], {}
    for name in config.tasks:
        task_config = config.transfer.copy_and_resolve_references()
        task_config.update(data=name, train=config.compare if name == compared else (config.train,))
        print(f"\n{name}: training {', '.join(task_config.train)}", flush=True)
        folder = workdir if name == compared else workdir / "tasks" / name
        transfer(task_config, folder)
        patches[name] = workdir / "patches" / f"{name}.safetensors"
        write_bytes(patches[name], patch_path(folder, config.train, task_config.seeds[0]).read_bytes())

    print("\nVerifying each SavedModel in another process, with TensorFlow alone", flush=True)
    trunk = mp.open_trunk(config.transfer.trunk, config.transfer.image_size or None)
    saved_models = workdir / "saved_models"
    remove_folder(saved_models)
    tasks = [mp.bind_patch(trunk, mp.Patch.load(path)) for path in patches.values()]
    only = config.tasks[0] if len(tasks) == 1 else ""  # The SavedModel of one task is its folder itself.
    differences = mp.export("saved_model", tasks, saved_models / only, verify=True).differences
    rows, grid = [], []
    for (name, path), bound in zip(patches.items(), tasks, strict=True):
        folder = saved_models / name
        images, true = zip(*mp.open_data(name).test.dataset(config.num_images).as_numpy_iterator(), strict=True)
        logits = bound.model.predict_on_batch(np.asarray(bound.task.preprocessing(np.stack(images))))
        predicted, labels = ([bound.task.labels[i] for i in each] for each in (np.argmax(logits, axis=-1), true))
        right = sum(p == t for p, t in zip(predicted, labels, strict=True))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        files = (f"{path.stat().st_size / 1000:.0f} kB", f"{size / 1e6:.2f} MB")
        rows.append((name, *files, f"{right} of {len(labels)}", f"{differences[name]:.1e}"))
        grid.append((name, images[: config.num_columns], predicted, labels))
    header = ("task", "patch", "SavedModel", "correct on test images", "maximum difference to the model in memory")
    print_table("One trunk, a patch per task", header, rows)
    save_figure(prediction_grid(grid), workdir / "predictions.png")
    written = "results.json, results.md, predictions.png, best.safetensors, patches/, saved_models/"
    print(f"\nWritten to {workdir}: {written}")
    print("An ImageNet net on real pictures: docs/results.md; `make real` reproduces it")
    print(f"Report: {workdir / REPORT}")
