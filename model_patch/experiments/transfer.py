"""Transfer: train one task on a frozen trunk in several ways, and compare them."""

import dataclasses
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import model_patch as mp
from model_patch.bind import check_bind
from model_patch.data.balance import imbalance
from model_patch.errors import require_each_once, require_seeds
from model_patch.experiments.best_patch import choose
from model_patch.experiments.binder import Binder
from model_patch.experiments.evaluate import evaluate_task, splits_of
from model_patch.experiments.report.machine import machine
from model_patch.experiments.report.page import REPORT
from model_patch.experiments.report.transfer import write_transfer_report
from model_patch.experiments.workdir import Workdir, versions
from model_patch.files import as_path, write_bytes
from model_patch.patch import check_dtype

_logger = logging.getLogger(__name__)

PATCHES = "patches"
"""Folder of the patch files in the workdir."""

BEST = "best.safetensors"
"""Name of the copy of the chosen patch in the workdir."""


def patch_path(workdir: Path, train: str, seed: int) -> Path:
    """Returns where `transfer` writes the patch of one row."""
    return as_path(workdir) / PATCHES / f"{train}-seed{seed}.safetensors"


def transfer(config: ConfigDict, workdir: str | Path, binder: Binder | None = None) -> dict:
    """Trains every row of a comparison: each of `config.train` with each of `config.seeds`.

    Writes, after each row, `results.json` and the row's patch file; at the end tables and plots as `results.md` and
    `report.html`, the patch to ship as `best.safetensors`, see `choice.choose`, and what was found of it in
    `evaluation.json`. Rows that are finished
    are not trained again, and one that was interrupted resumes after its last complete epoch.

    Args:
        config: see `configs/transfer.py`.
        workdir: folder for all files.
        binder: binds to the trunk that the configuration names, if it is open already.

    Returns:
        The contents of `results.json`: `trunk`, `data`, `image_size`, `images` (their number by split), `versions`, `machine` and a list of `rows` with
        `train`, `seed`, `trained_parameters`, `trained_fraction` (0..1), `reused_fraction` (of the trunk, 0..1),
        `patch_bytes`, `figure`, the name of what rows are compared by, `accuracy` or another of `Task.figures`, all of which are
        in the row as `test_accuracy` and so on, `train_seconds` and `input_wait` (0..1), the share of them spent waiting for
        a batch; with validation images `validation_accuracy` and, where epochs are trained, `best_epoch`, the number
        of the one kept, from 0, and the `curves` by epoch; with `config.folds` `fold_accuracy`, a list, of a training each
        on the other folds.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    run = open_run(config, binder.trunk if binder else None)
    folder = Workdir(workdir, identity(config))
    for note in run.notes():
        _logger.warning(note)
    rows_of = binder or Binder(run.trunk, remat=config.remat)

    def name_of(train: str, seed: int) -> str:
        return f"{train}-seed{seed}"

    def train_row(train: str, seed: int) -> list[dict]:
        return [run.train_row(rows_of, folder, name_of(train, seed), train, seed, config.patch_dtype)]

    used = run.used()
    keys = [{"train": train, "seed": seed} for seed in config.seeds for train in run.train_specs]
    facts = {
        "trunk": config.trunk,
        "data": config.data,
        "images": {part: split.num_images for part, split in splits_of(used).items()},
        **facts_of(run.trunk),
    }
    results = folder.run_rows(facts, keys, train_row, runner(config, folder, lambda key: config.data, name_of))
    choice = choose(results["rows"], facts["images"], run.task)
    best = folder.path / BEST
    write_bytes(best, patch_path(folder.path, choice.train, choice.seed).read_bytes())
    evaluation = evaluate_task(mp.bind_patch(run.trunk, mp.Patch.load(best)), used)
    write_transfer_report(results, choice, evaluation, used, folder.path, config.report_images)
    _print_commands(config, best)
    return results


def _print_commands(config: ConfigDict, best: Path):
    """Prints the commands that use the chosen patch."""
    trunk, best_ = shlex.quote(f"--trunk={config.trunk}"), shlex.quote(f"--patches={best}")
    output = shlex.quote(f"--output={best.with_name('saved_model')}")
    print(f"Report: {best.with_name(REPORT)}")
    print(f"Predict: python scripts/predict.py {trunk} {best_} --images=IMAGES")
    print(f"Export:  python scripts/export.py {trunk} {best_} {output}")


def identity(config: ConfigDict) -> dict:
    """Returns what of a configuration changes its results: not where the rows are trained."""
    return {name: value for name, value in config.to_dict().items() if name not in ("runner", "cores_per_row")}


def runner(config: ConfigDict, folder: Workdir, data_of: Callable[[dict], str], name_of: Callable[..., str]):
    """Returns `in_any_order` of `Workdir.run_rows` for `config.runner`; None where rows are trained here, one after the other.

    Arguments as for `cluster.rows_in_cluster`.
    """
    if config.get("runner", "local") == "local":
        return None
    from model_patch.experiments.cluster import rows_in_cluster

    return rows_in_cluster(config, str(folder.path.absolute()), data_of, name_of)


def facts_of(trunk: mp.Trunk) -> dict:
    """Returns what all results say of a run besides its configuration."""
    return {"image_size": trunk.preprocessing.image_size, "versions": versions(), "machine": machine()}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a configuration names, opened.

    Attributes:
        trunk, task, recipe: those of all rows.
        train_specs: each way to train, by its text.
        data: the images.
        folds: those of each fold; may be empty.
    """

    trunk: mp.Trunk
    task: mp.Task
    train_specs: dict[str, mp.TrainSpec]
    data: mp.ImageData
    folds: list[mp.ImageData]
    recipe: mp.Recipe

    def notes(self) -> list[str]:
        """Returns sentences on the data that the user should read."""
        known = self.data.train.known_labels
        uneven = imbalance(known, self.data.labels) if known is not None and known.ndim == 1 else ""
        notes = [*self.data.notes, uneven]
        return [note for note in notes if note]

    def used(self) -> mp.ImageData:
        """Returns the images that are used: at most as many as the recipe says."""
        return dataclasses.replace(
            self.data,
            train=self.data.train.first(self.recipe.max_train_images or None),
            test=self.data.test.first(self.recipe.max_test_images or None),
        )

    def train_row(self, binder: Binder, folder: Workdir, name: str, train: str, seed: int, patch_dtype: str) -> dict:
        """Trains and tests one row, and writes its patch file.

        Args:
            binder: binds to the trunk.
            folder: the workdir.
            name: name of the row's files.
            train: one of `train_specs`.
            seed: seed of the row.
            patch_dtype: type of the values in the file.

        Returns:
            The fields of the row in the results, see `transfer`.
        """

        def trained(data: mp.ImageData, name: str, log_dir: Path | None = None):
            bound = binder.bind(self.task, self.train_specs[train], seed)
            checkpoint = folder.checkpoint(name)
            return bound, mp.fit(bound, data, self.recipe, seed=seed, log_dir=log_dir, checkpoint=checkpoint)

        figure, optional = self.task.figures[0], dict[str, Any]()
        of_folds = []
        for i, fold in enumerate(self.folds):
            bound, _ = trained(fold, f"{name}-fold{i}")
            of_folds.append(mp.evaluate(bound, fold, self.recipe)[figure])
        if of_folds:
            optional[f"fold_{figure}"] = of_folds
        bound, fitted = trained(self.data, name, folder.path / "tensorboard" / name)
        if self.data.validation:
            bound = mp.calibrate(bound, self.data, self.recipe)
            tested = mp.evaluate(bound, self.data, self.recipe, split="validation")
            optional[f"validation_{figure}"] = tested[figure]
        if fitted.best_epoch is not None:
            optional["best_epoch"] = fitted.best_epoch
        if fitted.history:
            shown = ("loss", figure, "val_loss", f"val_{figure}")
            optional["curves"] = {
                name: [round(value, 5) for value in values] for name, values in fitted.history.items() if name in shown
            }
        metrics = mp.evaluate(bound, self.data, self.recipe)
        path = folder.path / PATCHES / f"{name}.safetensors"
        bound.patch(metrics).save(path, patch_dtype)
        counts = bound.counts()
        _logger.info("%s: test %s %.4f in %.1f s", name, figure, metrics[figure], fitted.seconds)
        return {
            "trained_parameters": counts.trained,
            "trained_fraction": counts.trained_fraction,
            "reused_fraction": bound.reused_fraction(),
            "patch_bytes": path.stat().st_size,
            "figure": figure,
            **{f"test_{name}": metrics[name] for name in self.task.figures},
            "train_seconds": fitted.seconds,
            "input_wait": round(fitted.input_wait, 4),
            **optional,
        }


def open_run(config: ConfigDict, trunk: mp.Trunk | None = None) -> Run:
    """Opens what a configuration names, so that every mistake is found before the first file is written.

    Args:
        config: as for `transfer`.
        trunk: that is open already.

    Raises:
        ModelPatchError: as `transfer`.
    """
    require_seeds(config.seeds)
    check_dtype(config.patch_dtype)
    train_specs = [mp.TrainSpec.parse(text, config.norm_statistics) for text in config.train]
    require_each_once("train", train_specs)
    trunk = trunk or mp.open_trunk(config.trunk, config.image_size or None)
    data = mp.open_data(config.data, skip_bad_images=config.skip_bad_images, verify_images=config.verify_images)
    recipe = make_recipe(config, recommended_augmentation(config, data))
    folds = data.folds(config.folds, config.max_train_images or None) if config.folds else []
    data, *folds = (
        each.with_validation(config.validation_fraction, config.max_train_images or None) for each in (data, *folds)
    )
    preprocessing = image_preprocessing(config, trunk)
    task = mp.Task.of(data, preprocessing, config.task_name, pooling=config.pooling)
    for each in train_specs:
        check_bind(trunk, task, each, remat=config.remat)
    return Run(trunk, task, {str(each): each for each in train_specs}, data, folds, recipe)


def image_preprocessing(config: ConfigDict, trunk: mp.Trunk) -> mp.Preprocessing:
    """Returns the trunk's preprocessing, with what a configuration says of resizing and transparency."""
    return dataclasses.replace(trunk.preprocessing, resizing=config.resize, alpha=config.alpha)


LONG = 30
"""Epochs from which augmentation pays for what it costs in accuracy before, see docs/choices.md."""


def recommended_augmentation(config: ConfigDict, data: mp.ImageData) -> str:
    """Returns the augmentation of a classifier's training images: the data's, if training is long."""
    return data.augmentation if config.epochs >= LONG else "none"


def make_recipe(config: ConfigDict, recommended: str) -> mp.Recipe:
    """Returns the recipe of a configuration; the augmentation `auto` is the one that is recommended.

    What a configuration does not have, such as patience for detectors, is left at its default.
    """
    fields = {name: config[name] for name in mp.Recipe.__dataclass_fields__ if name in config}
    if fields["augmentation"] == "auto":
        fields["augmentation"] = recommended
    return mp.Recipe(**fields)
