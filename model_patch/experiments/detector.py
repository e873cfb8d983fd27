"""Training detectors: the run that `scripts/detect.py train` starts."""

import logging
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.bind import check_bind
from model_patch.detection.data.pipeline import augmenter
from model_patch.detection.evaluation import METRICS, detect
from model_patch.detection.pictures import draw, save_png, sheet
from model_patch.detection.task import feature_layers
from model_patch.errors import require_seeds
from model_patch.experiments.report.machine import machine
from model_patch.experiments.report.output import named, write_report
from model_patch.experiments.report.sample import Sample
from model_patch.experiments.report.table import Table, table
from model_patch.experiments.run import make_recipe
from model_patch.experiments.workdir import Workdir, versions
from model_patch.files import as_path, read_json
from model_patch.patch import check_dtype
from model_patch.trunks.saving import saved_spec

_logger = logging.getLogger(__name__)

PICTURES = 12
"""Test images in the picture that a run writes."""

PICTURE_SCORE = 0.4
"""Detections from this score on are drawn."""


def detector_path(workdir: str | Path, seed: int) -> Path:
    """Returns where `train_detector` writes the patch of one seed."""
    return as_path(workdir) / "detectors" / f"seed{seed}.safetensors"


def trunk_stem(workdir: str | Path, seed: int) -> Path:
    """Returns where `train_detector` writes the trunk of one seed, without its extension."""
    return as_path(workdir) / "trunks" / f"seed{seed}"


def train_detector(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains a detector with each of `config.seeds` and measures it.

    With `train=full` the trunk is trained, too, and written as a trunk of its own, which any other task can be bound to; the
    detector is a patch of its head on it. Otherwise the detector is a patch on `config.trunk`. Writes, after each seed,
    `results.json`, the patch, the trunk, and a picture of detections in test images; at the end a table. Seeds that are
    finished are not trained again.

    Args:
        config: see `configs/detect_scenes.py`.
        workdir: folder for all files.

    Returns:
        The contents of `results.json`: `data`, `train`, `image_size`, `num_default_boxes`, `versions`, `machine` and a list of `rows` with
        `seed`, `trunk` (the spec that opens the trunk of the patch), `trained_parameters`, `head_parameters`,
        `trained_fraction` (0..1), the metrics of `evaluation.METRICS` (0..1), `final_loss` and `train_seconds`.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    # Every mistake is found before the first file is written.
    require_seeds(config.seeds)
    check_dtype(config.patch_dtype)
    train_spec = mp.TrainSpec.parse(config.train, config.norm_statistics)
    data = mp.open_detection_data(config.data)
    recipe = make_recipe(config, data.augmentation)
    augmenter(recipe.augmentation)
    trunk = mp.open_trunk(config.trunk, config.image_size)
    task = make_task(config, trunk, data)
    check_bind(trunk, task, train_spec)
    saved_spec(config.trunk, trunk_stem(workdir, config.seeds[0]))
    folder = Workdir(workdir, config.to_dict())
    for note in data.notes:
        _logger.warning(note)

    def train_row(seed: int) -> list[dict]:
        keras.utils.set_random_seed(seed)
        name, stem = f"seed{seed}", trunk_stem(workdir, seed)
        bound = mp.bind(
            mp.open_trunk(config.trunk, config.image_size), task, train_spec, seed=seed, momentum=config.momentum
        )
        counts, log_dir = bound.counts(), folder.path / "tensorboard" / name
        fitted = mp.fit(bound, data, recipe, seed=seed, log_dir=log_dir, checkpoint=folder.checkpoint(name))
        detector = _on_own_trunk(bound, stem) if "full" in train_spec.kinds else bound
        metrics = mp.evaluate(detector, data, recipe)
        detector.patch(metrics).save(detector_path(workdir, seed), config.patch_dtype)
        save_png(example_picture(detector, data), folder.path / f"detections-{name}.png")
        _logger.info(
            "seed %d: mAP@50 %.4f, mAP %.4f in %.0f s", seed, metrics["mAP@50"], metrics["mAP"], fitted.seconds
        )
        return [
            {
                "trunk": detector.trunk.name,
                "trained_parameters": counts.trained,
                "head_parameters": counts.head,
                "trained_fraction": counts.trained_fraction,
                **metrics,
                "final_loss": fitted.history["loss"][-1],
                "train_seconds": fitted.seconds,
            }
        ]

    facts = {
        "data": config.data,
        "train": str(train_spec),
        "image_size": task.preprocessing.image_size,
        "num_default_boxes": len(task.default_boxes.corners()),
        "versions": versions(),
        "machine": machine(),
    }
    results = folder.run_rows(facts, [{"seed": seed} for seed in config.seeds], train_row)
    write_detector_report(results, folder.path)
    return results


def trunk_of(detector: str, seed: int | None = None) -> str:
    """Returns the spec of a detector's trunk, for other tasks.

    Args:
        detector: a folder that `train_detector` wrote; or a trunk's spec, which is returned unchanged.
        seed: which detector of the folder; None for the first.

    Raises:
        ModelPatchError: the folder holds no detector, or none of that seed.
    """
    folder = as_path(detector)
    if not folder.is_dir():
        if ":" not in detector and detector != "bundled":
            raise mp.ModelPatchError(
                f"the folder {detector} does not exist: expected what scripts/detect.py train wrote"
            )
        return detector
    results = folder / Workdir.RESULTS
    rows = read_json(results).get("rows", []) if results.is_file() else []
    seeds = [row.get("seed") for row in rows]
    if not seeds or (seed is not None and seed not in seeds):
        wanted = f"of seed {seed}, only {', '.join(map(str, seeds))}" if seeds else "yet"
        raise mp.ModelPatchError(f"{folder} holds no detector {wanted}: train it with scripts/detect.py")
    patch = mp.Patch.load(detector_path(folder, seeds[0] if seed is None else seed))
    return patch.trunk


def make_task(config: ConfigDict, trunk: mp.Trunk, data: mp.DetectionData) -> mp.DetectionTask:
    """Returns the detection task of a configuration on a trunk."""
    return mp.DetectionTask.on(
        trunk,
        config.task_name or data.name,
        data.labels,
        layers=config.layers or feature_layers(trunk, config.num_trunk_maps),
        num_maps=config.num_maps,
        width=config.width,
        confidence=config.confidence,
        min_scale=config.min_scale,
        max_scale=config.max_scale,
        aspect_ratios=tuple(config.aspect_ratios),
        reduce_lowest=config.reduce_lowest,
    )


def _on_own_trunk(bound: mp.BoundTask, stem: Path) -> mp.BoundTask:
    """Writes the trunk as the task has trained it; returns the task as a head on that trunk."""
    for key, variable in bound.trunk.variables().items():
        if key in bound.patch_variables:
            variable.assign(keras.ops.copy(bound.patch_variables[key]))
    spec = mp.save_trunk(bound.trunk, stem)
    trunk = mp.Trunk(bound.trunk.model, spec, bound.trunk.preprocessing)
    return mp.bind(trunk, bound.task, "last", head_of=bound)


def example_picture(bound: mp.BoundTask, data: mp.DetectionData, number: int = PICTURES):
    """Returns a picture of the first test images with their true boxes and the detections."""
    examples = [[np.asarray(part) for part in example] for example in data.test.dataset(number)]
    resized = [bound.task.preprocessing.resize(image)[None] for image, *_ in examples]
    side = bound.task.preprocessing.image_size
    pictures = []
    for (image, boxes, *_), found in zip(examples, detect(bound, resized, len(resized)), strict=True):
        drawn = draw(image, found.above(PICTURE_SCORE), bound.task.labels, boxes)
        pictures.append(drawn.resize((max(side, 384), max(side, 384))))
    return sheet(pictures)


COLUMNS = {
    "seed": "{seed}",
    "trained parameters": "{trained_parameters:,}",
    "share": "{trained_fraction:.1%}",
    **{metric: f"{{{metric}:.4f}}" for metric in METRICS},
    "last loss": "{final_loss:.3f}",
    "seconds": "{train_seconds:.0f}",
}


def detector_table(rows: list[dict]) -> Table:
    """Returns a line per seed, and their mean."""
    means = {metric: Sample.of(rows, metric).mean for metric in METRICS}
    return table([*rows, {"seed": "mean", **means}], COLUMNS)


def write_detector_report(results: dict, folder: Path):
    """Prints the table of a run and writes it to `results.md`."""
    title = f"{results['data']} at {results['image_size']} px, {results['train']}"
    write_report(folder, title, [detector_table(results["rows"]), f"{named(results['versions'])}."])
