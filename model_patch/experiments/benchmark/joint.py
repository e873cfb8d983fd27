"""Joint training: one step of K tasks together against K steps of one task each, on the same images."""

import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import interleaved, milliseconds
from model_patch.experiments.benchmark.training import fitted
from model_patch.experiments.report.table import table
from model_patch.files import as_path
from model_patch.training.adam import adam

_logger = logging.getLogger(__name__)

SETTINGS = {
    "trunk frozen, its statistics": ("frozen", False),
    "trunk frozen, the tasks' statistics": ("batch", False),
    "trunk trained, the tasks' statistics": ("batch", True),
}
"""Batch-norm statistics, and whether the trunk is trained, too; if so, a single task trains a net of its own."""


def run(config: ConfigDict, workdir: str | Path):
    """Times the steps in all settings, and writes `joint.json` and `joint.md` into the workdir.

    Args:
        config: see `configs/benchmark.py`; `trunk`, `image_size`, `kinds`, `classes`, `joint_tasks`,
            `joint_images_per_task`, `rounds`, `seconds`.
        workdir: folder for the files.
    """
    results = new_results(
        trunk=config.trunk,
        image_size=config.image_size,
        tasks=config.joint_tasks,
        images_per_task=config.joint_images_per_task,
    )
    results["rows"] = [_setting(config, name, *setting) for name, setting in SETTINGS.items()]
    columns = {
        "training": "{training}",
        "joint step (ms)": "{joint_ms:.1f}",
        f"{config.joint_tasks} single steps (ms)": "{single_ms:.1f}",
        "ratio": "{ratio:.2f}",
        "spread": "{ratio_p25:.2f} to {ratio_p75:.2f}",
        "rounds": "{rounds}",
    }
    title = f"{config.trunk} at {config.image_size} px, {config.joint_tasks} x {config.joint_images_per_task} images"
    note = "`ratio`: median over rounds; `spread`: its quartiles."
    write_suite(as_path(workdir), "joint", title, results, [table(results["rows"], columns), note])


def _setting(config: ConfigDict, name: str, statistics: str, train_trunk: bool) -> dict:
    trunk = mp.open_trunk(config.trunk, config.image_size)
    labels = tuple(map(str, range(config.classes)))
    tasks = [mp.Task(f"task{k}", labels, trunk.preprocessing) for k in range(config.joint_tasks)]
    train_spec = mp.TrainSpec.parse(f"{config.kinds}+last", statistics)
    random, count = np.random.default_rng(0), config.joint_images_per_task
    shape = (count, *trunk.model.input.shape[1:])
    images = {task.name: random.uniform(-1, 1, shape).astype("float32") for task in tasks}
    targets = {task.name: random.integers(0, config.classes, count) for task in tasks}

    # Before the trunk is trained jointly: then nothing can be bound to it.
    single_spec = mp.TrainSpec.parse("full") if train_trunk else train_spec
    singles = []
    for task in tasks:
        bound = mp.bind(trunk, task, single_spec)
        given = images[task.name], targets[task.name]
        singles.append(fitted(bound.model, *given, adam(1e-3), task.loss(), task.metrics()))
    joined = mp.join(trunk, tasks, train_spec, train_trunk=train_trunk)
    joint = fitted(joined.model, images, targets, adam(1e-3), joined.losses(), joined.metrics())

    calls = {"joint": joint, "single": lambda: [step() for step in singles]}
    seconds = interleaved(calls, config.rounds, 2, config.joint_seconds)
    ratios = seconds["joint"] / seconds["single"]
    _logger.info("%s: %.2f", name, np.median(ratios))
    return {
        "training": name,
        "joint_ms": milliseconds(seconds["joint"], digits=2),
        "single_ms": milliseconds(seconds["single"], digits=2),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_p25": round(float(np.percentile(ratios, 25)), 3),
        "ratio_p75": round(float(np.percentile(ratios, 75)), 3),
        "rounds": len(ratios),
    }
