"""What a configuration of `transfer` names, opened: trunk, task, images and recipe; and one row of results of them."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import model_patch as mp
from model_patch.bind import check_bind
from model_patch.data.balance import imbalance
from model_patch.errors import require_each_once, require_seeds
from model_patch.experiments.binder import Binder
from model_patch.experiments.report.machine import machine
from model_patch.experiments.workdir import Workdir, versions
from model_patch.patch import check_dtype

_logger = logging.getLogger(__name__)

PATCHES = "patches"
"""Folder of the patch files in the workdir."""


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


def identity(config: ConfigDict) -> dict:
    """Returns what of a configuration changes its results: not where the rows are trained."""
    return {name: value for name, value in config.to_dict().items() if name not in ("runner", "cores_per_row")}


def facts_of(trunk: mp.Trunk) -> dict:
    """Returns what all results say of a run besides its configuration."""
    return {"image_size": trunk.preprocessing.image_size, "versions": versions(), "machine": machine()}
