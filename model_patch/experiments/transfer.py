"""Transfer: learn one task on a frozen trunk in several ways, and compare them."""

import logging
from pathlib import Path

import keras
from ml_collections import ConfigDict

from model_patch.bind import bind
from model_patch.data import open_data
from model_patch.errors import require_each_once, require_seeds
from model_patch.experiments.report import write_report
from model_patch.experiments.report.machine import machine
from model_patch.experiments.workdir import Workdir, versions
from model_patch.kinds import TrainSpec
from model_patch.tasks import Task
from model_patch.training.fit import evaluate, fit
from model_patch.training.recipe import Recipe
from model_patch.trunks import open_trunk

_logger = logging.getLogger(__name__)

PATCHES = "patches"
"""Folder of the patch files in the workdir."""


def patch_path(workdir: Path, train: str, seed: int) -> Path:
    """Returns where `transfer` writes the patch of one row."""
    return Path(workdir) / PATCHES / f"{train}-seed{seed}.safetensors"


def transfer(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains every row of a comparison: each of `config.train` with each of `config.seeds`.

    Writes, after each row, `results.json` and the row's patch file; at the end a table and a plot. A row that is there
    already is not trained again, and one that was cut off goes on with its last whole epoch.

    Args:
        config: see `configs/transfer.py`.
        workdir: folder for all files.

    Returns:
        What `results.json` holds: `trunk`, `data`, `image_size`, `versions`, `machine` and a list of `rows` with `train`, `seed`,
        `trained_parameters`, `trained_fraction` (0..1), `reused_fraction` (of the trunk, 0..1), `patch_bytes`,
        `test_accuracy` (0..1), `train_seconds` and `input_wait` (0..1), the share of them in which no batch was
        there.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    # Everything that can be wrong is looked at before the first file is written.
    require_seeds(config.seeds)
    train_specs = [TrainSpec.parse(text, config.norm_statistics) for text in config.train]
    require_each_once("train", train_specs)
    trunk = open_trunk(config.trunk, config.image_size or None)
    data = open_data(config.data, skip_bad_images=config.skip_bad_images)
    recipe = make_recipe(config, data.augmentation)
    task = Task(config.task_name or data.name, data.labels, trunk.preprocessing)
    for each in train_specs:
        bind(trunk, task, each, remat=config.remat).patch().to_bytes(config.patch_dtype)
    folder = Workdir(workdir, config.to_dict())
    for note in data.notes:
        _logger.warning(note)

    results = folder.results() or {
        "trunk": config.trunk,
        "data": config.data,
        "image_size": trunk.preprocessing.image_size,
        "versions": versions(),
        "machine": machine(),
        "rows": [],
    }
    done = {(row["train"], row["seed"]) for row in results["rows"]}
    for seed in config.seeds:
        for each in train_specs:
            if (str(each), seed) in done:
                continue
            keras.utils.set_random_seed(seed)
            bound = bind(trunk, task, each, seed=seed, remat=config.remat)
            name = f"{each}-seed{seed}"
            log_dir = folder.path / "tensorboard" / name
            fitted = fit(bound, data, recipe, seed=seed, log_dir=log_dir, checkpoint=folder.checkpoint(name))
            metrics = evaluate(bound, data, recipe)
            path = patch_path(folder.path, str(each), seed)
            bound.patch(metrics).save(path, config.patch_dtype)
            counts = bound.counts()
            row = {
                "train": str(each),
                "seed": seed,
                "trained_parameters": counts.trained,
                "trained_fraction": counts.trained_fraction,
                "reused_fraction": bound.reused_fraction(),
                "patch_bytes": path.stat().st_size,
                "test_accuracy": metrics["accuracy"],
                "train_seconds": fitted.seconds,
                "input_wait": round(fitted.input_wait, 4),
            }
            _logger.info("%s, seed %d: test accuracy %.4f in %.1f s", each, seed, row["test_accuracy"], fitted.seconds)
            results["rows"].append(row)
            folder.write_results(results)
    write_report(results, folder.path)
    return results


def make_recipe(config: ConfigDict, recommended_augmentation: str) -> Recipe:
    """Returns the recipe of a configuration; the augmentation `auto` is the one that the data recommend."""
    fields = {name: config[name] for name in Recipe.__dataclass_fields__}
    if fields["augmentation"] == "auto":
        fields["augmentation"] = recommended_augmentation
    return Recipe(**fields)
