"""Training detectors: the run that `scripts/detect.py train` starts."""

import logging
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

from model_patch.bind import BoundTask, bind
from model_patch.detection.data import DetectionData, open_detection_data
from model_patch.detection.data.pipeline import augmenter
from model_patch.detection.evaluation import METRICS, detect, evaluate_detector
from model_patch.detection.pictures import draw, save_png, sheet
from model_patch.detection.task import DetectionTask, feature_layers
from model_patch.errors import ModelPatchError, require_seeds
from model_patch.experiments.report.machine import machine
from model_patch.experiments.report.table import markdown, print_table
from model_patch.experiments.transfer import make_recipe
from model_patch.experiments.workdir import Workdir, versions
from model_patch.files import read_json, write_bytes
from model_patch.kinds import TrainSpec
from model_patch.patch import Patch
from model_patch.training.fit import fit
from model_patch.training.recipe import Recipe
from model_patch.trunk import Trunk
from model_patch.trunks import open_trunk
from model_patch.trunks.saving import save_trunk, saved_spec

_logger = logging.getLogger(__name__)

PICTURES = 12
"""Test images in the picture that a run writes."""

PICTURE_SCORE = 0.4
"""Detections from this score on are drawn."""


def detector_path(workdir: str | Path, seed: int) -> Path:
    """Returns where `train_detector` writes the patch of one seed."""
    return Path(workdir) / "detectors" / f"seed{seed}.safetensors"


def trunk_stem(workdir: str | Path, seed: int) -> Path:
    """Returns where `train_detector` writes the trunk of one seed, without the ending."""
    return Path(workdir) / "trunks" / f"seed{seed}"


def train_detector(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains a detector with each of `config.seeds` and measures it.

    With `train=full` the trunk learns, too: it is written as a trunk of its own, which any other task can be bound to, and
    the detector is a patch of its head on it. Otherwise the detector is a patch on `config.trunk`. Writes, after each seed,
    `results.json`, the patch, the trunk, and a picture of test images with what is found in them; at the end a table. A seed
    that is there already is not trained again.

    Args:
        config: see `configs/detect_scenes.py`.
        workdir: folder for all files.

    Returns:
        What `results.json` holds: `data`, `train`, `image_size`, `num_default_boxes`, `versions`, `machine` and a list of `rows` with
        `seed`, `trunk` (the spec that opens the trunk of the patch), `trained_parameters`, `head_parameters`,
        `trained_fraction` (0..1), the metrics of `evaluation.METRICS` (0..1), `final_loss` and `train_seconds`.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    # Everything that can be wrong is looked at before the first file is written.
    require_seeds(config.seeds)
    train_spec = TrainSpec.parse(config.train, config.norm_statistics)
    data = open_detection_data(config.data)
    recipe = make_recipe(config, data.augmentation)
    augmenter(recipe.augmentation)
    task = make_task(config, open_trunk(config.trunk, config.image_size), data)
    saved_spec(config.trunk, trunk_stem(workdir, config.seeds[0]))
    folder = Workdir(workdir, config.to_dict())
    for note in data.notes:
        _logger.warning(note)

    results = folder.results() or {
        "data": config.data,
        "train": str(train_spec),
        "image_size": task.preprocessing.image_size,
        "num_default_boxes": len(task.default_boxes.corners()),
        "versions": versions(),
        "machine": machine(),
        "rows": [],
    }
    done = {row["seed"] for row in results["rows"]}
    for seed in config.seeds:
        if seed in done:
            continue
        row = _train_row(config, task, train_spec, data, recipe, seed, folder)
        _logger.info("seed %d: mAP@50 %.4f, mAP %.4f in %.0f s", seed, row["mAP@50"], row["mAP"], row["train_seconds"])
        results["rows"].append(row)
        folder.write_results(results)
    _write_report(results, folder.path)
    return results


def trunk_of(detector: str, seed: int | None = None) -> str:
    """Returns the spec of a detector's trunk, for other tasks.

    Args:
        detector: a folder that `train_detector` wrote; or a trunk's spec, which is returned unchanged.
        seed: which detector of the folder; None for the first.

    Raises:
        ModelPatchError: the folder holds no detector, or none of that seed.
    """
    folder = Path(detector).expanduser()
    if not folder.is_dir():
        if ":" not in detector and detector != "bundled":
            raise ModelPatchError(f"the folder {detector} does not exist: expected what scripts/detect.py train wrote")
        return detector
    results = folder / Workdir.RESULTS
    rows = read_json(results).get("rows", []) if results.is_file() else []
    seeds = [row.get("seed") for row in rows]
    if not seeds or (seed is not None and seed not in seeds):
        wanted = f"of seed {seed}, only {', '.join(map(str, seeds))}" if seeds else "yet"
        raise ModelPatchError(f"{folder} holds no detector {wanted}: train it with scripts/detect.py")
    patch = Patch.load(detector_path(folder, seeds[0] if seed is None else seed))
    return patch.trunk


def make_task(config: ConfigDict, trunk: Trunk, data: DetectionData) -> DetectionTask:
    """Returns the detection task of a configuration on a trunk."""
    return DetectionTask.on(
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


def _train_row(
    config: ConfigDict,
    task: DetectionTask,
    train_spec: TrainSpec,
    data: DetectionData,
    recipe: Recipe,
    seed: int,
    folder: Workdir,
) -> dict:
    """Trains one seed; returns its object for `results.json`."""
    keras.utils.set_random_seed(seed)
    trunk = open_trunk(config.trunk, config.image_size)
    bound = bind(trunk, task, train_spec, seed=seed, momentum=config.momentum)
    counts, workdir = bound.counts(), folder.path
    name = f"seed{seed}"
    log_dir, checkpoint = workdir / "tensorboard" / name, folder.checkpoint(name)
    fitted = fit(bound, data, recipe, seed=seed, log_dir=log_dir, checkpoint=checkpoint)
    detector = _on_own_trunk(bound, trunk_stem(workdir, seed)) if "full" in train_spec.kinds else bound
    metrics = evaluate_detector(
        detector, data.test, batch_size=recipe.batch_size, max_images=recipe.max_test_images or None
    )
    detector.patch(metrics).save(detector_path(workdir, seed), config.patch_dtype)
    save_png(example_picture(detector, data), workdir / f"detections-seed{seed}.png")
    return {
        "seed": seed,
        "trunk": detector.trunk.name,
        "trained_parameters": counts.trained,
        "head_parameters": counts.head,
        "trained_fraction": counts.trained_fraction,
        **metrics,
        "final_loss": fitted.history["loss"][-1],
        "train_seconds": fitted.seconds,
    }


def _on_own_trunk(bound: BoundTask, stem: Path) -> BoundTask:
    """Writes a trunk of all that the task learnt in it; returns the task as a head on that trunk."""
    for key, variable in bound.trunk.variables().items():
        if key in bound.patch_variables:
            variable.assign(keras.ops.copy(bound.patch_variables[key]))
    spec = save_trunk(bound.trunk, stem)
    trunk = Trunk(bound.trunk.model, spec, bound.trunk.preprocessing)
    return bind(trunk, bound.task, "last", head_of=bound)


def example_picture(bound: BoundTask, data: DetectionData, number: int = PICTURES):
    """Returns a picture of the first test images with their true boxes and what is found in them."""
    examples = [[np.asarray(part) for part in example] for example in data.test.dataset(number)]
    resized = [bound.task.preprocessing.resize(image)[None] for image, *_ in examples]
    side = bound.task.preprocessing.image_size
    pictures = []
    for (image, boxes, *_), found in zip(examples, detect(bound, resized, len(resized)), strict=True):
        drawn = draw(image, found.above(PICTURE_SCORE), bound.task.labels, boxes)
        pictures.append(drawn.resize((max(side, 384), max(side, 384))))
    return sheet(pictures)


HEADER = ("seed", "trained values", "of all", *METRICS, "last loss", "seconds")


def _write_report(results: dict, folder: Path):
    """Prints the table of a run and writes it to `results.md`."""
    rows = [
        [
            str(row["seed"]),
            f"{row['trained_parameters']:,}",
            f"{100 * row['trained_fraction']:.1f} %",
            *(f"{row[metric]:.4f}" for metric in METRICS),
            f"{row['final_loss']:.3f}",
            f"{row['train_seconds']:.0f}",
        ]
        for row in results["rows"]
    ]
    means = [f"{np.mean([row[metric] for row in results['rows']]):.4f}" for metric in METRICS]
    rows.append(["mean", "", "", *means, "", ""])
    title = f"{results['data']} at {results['image_size']} px, {results['train']}"
    print_table(title, HEADER, rows)
    named = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    write_bytes(folder / "results.md", f"# {title}\n\n{markdown(HEADER, rows)}\n{named}.\n".encode())
