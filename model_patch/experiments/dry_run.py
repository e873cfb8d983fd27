"""Dry runs: what a configuration would train, built at full size without its images or its weights.

Nets get random weights and data random pixels with the right number of classes, so that nothing is downloaded and nothing
is written. Parameters are counted, and one step is trained.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from configs import transfer as defaults
from model_patch.bind import Counts
from model_patch.data.noise import random_labels
from model_patch.experiments import multitask
from model_patch.experiments.detector import make_task
from model_patch.experiments.report.table import print_table, table
from model_patch.experiments.run import make_recipe, open_run
from model_patch.files import as_path
from model_patch.spec import parse
from model_patch.tasks import CLASSIFICATION

_logger = logging.getLogger(__name__)

STEP_IMAGES = 2
"""Images per task in the one step: enough for batch statistics, and few enough for any computer's memory."""

NUM_CLASSES = {
    "caltech101": 102,
    "cars196": 196,
    "cifar10": 10,
    "cifar100": 100,
    "coco": 80,
    "fashion_mnist": 10,
    "fgvc_aircraft": 100,
    "imagenet2012": 1000,
    "mnist": 10,
    "oxford_flowers102": 102,
    "places365_small": 365,
    "stanford_dogs": 120,
    "voc": 20,
}
"""Classes of data that need a download, by the name of the TFDS data set or of the folder."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table of a dry run.

    Attributes:
        name: what is trained, or shared.
        task: name of the task.
        counts: its parameters.
    """

    name: str
    task: str
    counts: Counts


def dry_run_transfer(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `transfer` would train with a configuration.

    Args:
        config: see `configs/transfer.py`.
        step: whether to train one step, too.

    Returns:
        A row per way to train, which are also printed as a table.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the loss of the step is NaN or infinite.
    """
    random = {"trunk": random_trunk(config.trunk), "data": random_data(config.data)}
    random |= {"task_name": config.task_name or _name_of(config.data)}
    run = open_run(ConfigDict(config.to_dict() | random))

    def rows() -> Iterator[Row]:
        for text, train_spec in run.train_specs.items():
            bound = mp.bind(run.trunk, run.task, train_spec, remat=config.remat)
            yield Row(text, bound.task.name, bound.counts())
            if step:
                _step(text, bound.model, bound.task.loss(), run.recipe, *_batch(bound))

    return _report(f"{config.data} on {config.trunk}, {run.task.preprocessing.image_size} px", rows())


def dry_run_pretrain(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `pretrain` would train. Arguments, result and errors as `dry_run_transfer`."""
    as_transfer = defaults.get_config().to_dict() | config.to_dict() | {"train": ("full",), "seeds": (config.seed,)}
    return dry_run_transfer(ConfigDict(as_transfer), step=step)


def dry_run_multitask(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `multitask` would train: a row per way of sharing and task.

    Arguments, result and errors as `dry_run_transfer`, with `configs/multitask.py`.
    """
    config = ConfigDict(config.to_dict())
    names = list(config.task_names) or [_name_of(text) for text in config.data]
    config.trunk, config.data = random_trunk(config.trunk), tuple(map(random_data, config.data))
    if not config.resolutions:
        config.task_names = tuple(names)
    run = multitask.open_run(config)

    def rows() -> Iterator[Row]:
        for share in config.share:
            joined = run.join(share, config.seeds[0], run.tasks)
            yield from (Row(share, name, bound.counts()) for name, bound in joined.tasks.items())
            if step:
                _step(share, joined.model, joined.losses(), run.recipe, *_joint_batch(joined))

    return _report(f"{', '.join(names)} on {config.trunk}", rows())


def dry_run_detector(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `train_detector` would train.

    Arguments, result and errors as `dry_run_transfer`, with `configs/detect_scenes.py`.
    """
    trunk = mp.open_trunk(random_trunk(config.trunk), config.image_size)
    # Images, not scenes: the task takes name and labels of them alone.
    data: Any = dataclasses.replace(mp.open_data(random_data(config.data)), name=_name_of(config.data))
    task = make_task(config, trunk, data)
    recipe = make_recipe(config, "none")

    def rows() -> Iterator[Row]:
        bound = mp.bind(trunk, task, mp.TrainSpec.parse(config.train, config.norm_statistics), momentum=config.momentum)
        yield Row(config.train, task.name, bound.counts())
        if step:
            images, _ = _batch(bound)
            boxes = np.tile(np.array([[[0.1, 0.1, 0.6, 0.6, 0]]], "float32"), (len(images), 1, 1))
            _step(config.train, bound.model, task.loss(), recipe, images, boxes)

    return _report(f"{config.data} on {config.trunk}, {config.image_size} px", rows())


def random_trunk(text: str) -> str:
    """Returns the spec of a trunk with random weights in place of those that it names.

    Only `keras:` and `kerashub:` can build a net without its weights; other specs are returned unchanged.
    """
    spec = parse(text)
    if spec.scheme not in ("keras", "kerashub"):
        return text
    options = "&".join(f"{key}={value}" for key, value in (spec.options | {"weights": "none"}).items())
    return f"{spec.scheme}:{spec.rest}?{options}"


def random_data(text: str) -> str:
    """Returns the spec of random images with as many classes as the data of a spec.

    Raises:
        ModelPatchError: the data are not on this machine, and their number of classes is not in `NUM_CLASSES`.
    """
    spec = parse(text)
    if spec.scheme == "random":
        return text
    if spec.scheme == "scenes":
        return random_data(spec.rest)
    classes = NUM_CLASSES.get(_name_of(text))
    if classes is None or (spec.scheme in ("folder", "idx") and as_path(spec.rest).is_dir()):
        try:
            data = mp.open_data(text)
            return f"random:{len(data.labels)}?type={data.type}"
        except mp.ModelPatchError as error:
            known = ", ".join(sorted(NUM_CLASSES))
            raise mp.ModelPatchError(
                f"the number of classes of {text!r} is not known ({error}): a dry run without the data knows {known}"
            ) from None
    return f"random:{classes}"


def _name_of(text: str) -> str:
    """Returns the name of data: the TFDS data set without its version, or the last folder of a path."""
    spec = parse(text)
    if spec.scheme == "scenes":
        return _name_of(spec.rest)
    if spec.scheme == "tfds":
        return spec.rest.partition(":")[0].partition("/")[0]
    return Path(spec.rest).name or spec.scheme


def _batch(bound: mp.BoundTask):
    """Returns random images as the trunk takes them, and random labels."""
    task, random = bound.task, np.random.RandomState(0)
    size = task.preprocessing.image_size
    pixels = random.uniform(0, 255, (STEP_IMAGES, size, size, 3)).astype("float32")
    # A detector's labels are boxes, which its own dry run makes.
    labels = random_labels(CLASSIFICATION if task.link is None else task.type, STEP_IMAGES, len(task.labels), random)
    return task.preprocessing.scale(pixels), labels


def _joint_batch(joined: mp.JoinedTasks):
    pairs = {name: _batch(bound) for name, bound in joined.tasks.items()}
    return {name: images for name, (images, _) in pairs.items()}, {name: labels for name, (_, labels) in pairs.items()}


def _step(name: str, model: keras.Model, loss, recipe: mp.Recipe, images, targets):
    """Trains one step, or runs one forward pass if nothing is trained by gradient."""
    if not model.trainable_variables:
        model(images, training=True)
        _logger.info("%s: one step forward", name)
        return
    # Eagerly: tracing a graph for one step would take longer than the step. Its loss does not depend on the learning rate.
    model.compile(recipe.make_optimizer(mp.TrainSpec.parse("full"), 1), loss=loss, run_eagerly=True)
    value = float(np.sum(model.train_on_batch(images, targets)))
    if not math.isfinite(value):
        raise mp.ModelPatchError(f"the loss of {name} is {value} after one step on random images")
    _logger.info("%s: one step, loss %.3f", name, value)


COLUMNS = {
    "trained": "{name}",
    "task": "{task}",
    **{field: f"{{counts.{field}:,}}" for field in ("shared", "patch", "head", "statistics")},
    "all trained": "{counts.trained:,}",
    "share": "{counts.trained_fraction:.1%}",
    "MB per task": lambda row: f"{4 * (row['counts'].patch + row['counts'].statistics + row['counts'].head) / 1e6:.3f}",
}
"""`MB per task`: patch, statistics and head as float32."""


def _report(title: str, rows: Iterator[Row]) -> list[Row]:
    kept = list(rows)
    print_table(f"dry run: {title}", *table(map(vars, kept), COLUMNS))
    return kept
