"""Dry runs: what a configuration would train, built at full size without its images or its weights.

Nets get random weights and data random pixels with the right number of classes, so that nothing is downloaded and nothing
is written. The values are counted, held against the numbers that are known for the net, and one step is trained.
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

from model_patch.bind import BoundTask, Counts, bind
from model_patch.data import open_data
from model_patch.errors import ModelPatchError, require_each_once
from model_patch.experiments.detector import make_task
from model_patch.experiments.multitask import open_run
from model_patch.experiments.report.table import print_table
from model_patch.experiments.transfer import make_recipe
from model_patch.join import JoinedTasks
from model_patch.kinds import TrainSpec
from model_patch.spec import parse
from model_patch.tasks import Task
from model_patch.training.recipe import Recipe
from model_patch.trunks import open_trunk

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
class Known:
    """How many values a net without its top has, counted from its architecture.

    Attributes:
        total: all values.
        scale_bias: learnt values of an S/B patch, a missing gamma included.
        depthwise: those of a DW patch.
        constant: values that nobody learns besides batch norm's statistics.
    """

    total: int
    scale_bias: int
    depthwise: int = 0
    constant: int = 0

    def learnt(self, train_spec: TrainSpec) -> int | None:
        """Returns how many values of the trunk's slots are learnt; None where that is not known."""
        # A net has as many statistics as scales and biases: two of each per channel.
        known = {
            "full": self.total - self.scale_bias - self.constant,
            "scale_bias": self.scale_bias,
            "depthwise": self.depthwise,
            "statistics": 0,
        }
        return sum(known[kind] for kind in train_spec.kinds) if set(train_spec.kinds) <= known.keys() else None


KNOWN = {
    ("MobileNetV2", 0.35): Known(410_208, 14_080, 23_472),
    ("MobileNetV2", 0.5): Known(706_224, 18_544, 32_544),
    ("MobileNetV2", 0.75): Known(1_382_064, 26_640, 49_032),
    ("MobileNetV2", 1.0): Known(2_257_984, 34_112, 64_224),
    ("MobileNetV2", 1.3): Known(3_766_048, 44_256, 83_304),
    ("MobileNetV2", 1.4): Known(4_363_712, 47_936, 90_288),
    ("InceptionV3", 1.0): Known(21_802_784, 34_432),
    ("MobileNet", 1.0): Known(3_228_864, 21_888, 44_640),
    ("EfficientNetB0", 1.0): Known(4_049_571, 42_016, 182_016, constant=7),
    ("ResNet50", 1.0): Known(23_587_712, 53_120),
    ("Xception", 1.0): Known(20_861_480, 54_528, 207_432),
}
"""By net of `keras.applications` and its `alpha`. The S/B and DW counts of MobileNetV2 and InceptionV3 are those that the
paper's tables follow from; it counts 36 K for InceptionV3 because it has the auxiliary head."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table of a dry run.

    Attributes:
        name: what is trained, or shared.
        task: name of the task.
        counts: its values.
    """

    name: str
    task: str
    counts: Counts

    @property
    def patch_bytes(self) -> int:
        """Size of patch, statistics and head as float32."""
        return 4 * (self.counts.patch + self.counts.statistics + self.counts.head)


def dry_run_transfer(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `training.transfer` would train with a configuration.

    Args:
        config: see `configs/transfer.py`.
        step: whether one step is trained, too.

    Returns:
        A row per way to train; they are printed as a table as well.

    Raises:
        ModelPatchError: something in the configuration cannot be used, a count is not the one that is known, or the loss
            of the step is no number.
    """
    train_specs = [TrainSpec.parse(text, config.norm_statistics) for text in config.train]
    require_each_once("train", train_specs)
    trunk = open_trunk(random_trunk(config.trunk), config.image_size or None)
    data = open_data(random_data(config.data))
    task = Task(config.task_name or _name_of(config.data), data.labels, trunk.preprocessing)
    recipe = make_recipe(config, data.augmentation)

    def rows() -> Iterator[Row]:
        for text, train_spec in zip(config.train, train_specs, strict=True):
            bound = bind(trunk, task, train_spec, remat=config.remat)
            yield _row(text, bound)
            if step:
                _step(text, bound.model, bound.task.loss(), recipe, bound.train_spec, *_batch(bound))

    return _report(f"{config.data} on {config.trunk}, {task.preprocessing.image_size} px", rows())


def dry_run_pretrain(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `training.pretrain` would train. Arguments, result and errors as `dry_run_transfer`."""
    fixed = {"train": ("full",), "norm_statistics": "auto", "task_name": "", "remat": False}
    config = ConfigDict(config.to_dict() | fixed)
    return dry_run_transfer(config, step=step)


def dry_run_multitask(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `training.multitask` would train: a row per way of sharing and task.

    Arguments, result and errors as `dry_run_transfer`, with `configs/multitask.py`.
    """
    config = ConfigDict(config.to_dict())
    names = list(config.task_names) or [_name_of(text) for text in config.data]
    config.trunk, config.data = random_trunk(config.trunk), tuple(map(random_data, config.data))
    if not config.resolutions:
        config.task_names = tuple(names)
    run = open_run(config)

    def rows() -> Iterator[Row]:
        for share in config.share:
            joined = run.join(share, config.seeds[0], run.tasks)
            yield from (_row(share, bound) for bound in joined.tasks.values())
            if step:
                _step(share, joined.model, joined.losses(), run.recipe, _rate_of(joined), *_joint_batch(joined))

    return _report(f"{', '.join(names)} on {config.trunk}", rows())


def dry_run_detector(config: ConfigDict, *, step: bool = True) -> list[Row]:
    """Counts what `detection.training.train_detector` would train.

    Arguments, result and errors as `dry_run_transfer`, with `configs/detect_scenes.py`.
    """
    trunk = open_trunk(random_trunk(config.trunk), config.image_size)
    # Images, not scenes: the task takes name and labels of them alone.
    data: Any = dataclasses.replace(open_data(random_data(config.data)), name=_name_of(config.data))
    task = make_task(config, trunk, data)
    recipe = make_recipe(config, "none")

    def rows() -> Iterator[Row]:
        bound = bind(trunk, task, TrainSpec.parse(config.train, config.norm_statistics), momentum=config.momentum)
        yield _row(config.train, bound)
        if step:
            images, _ = _batch(bound)
            boxes = np.tile(np.array([[[0.1, 0.1, 0.6, 0.6, 0]]], "float32"), (len(images), 1, 1))
            _step(config.train, bound.model, task.loss(), recipe, bound.train_spec, images, boxes)

    return _report(f"{config.data} on {config.trunk}, {config.image_size} px", rows())


def random_trunk(text: str) -> str:
    """Returns the spec of a trunk with random weights in place of those that it names.

    Only `keras:` and `kerashub:` know a net without its weights; other specs stay as they are.
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
    if classes is None or (spec.scheme in ("folder", "idx") and Path(spec.rest).expanduser().is_dir()):
        try:
            classes = len(open_data(text).labels)
        except ModelPatchError as error:
            known = ", ".join(sorted(NUM_CLASSES))
            raise ModelPatchError(
                f"how many classes {text!r} has is not known ({error}): a dry run without the data knows {known}"
            ) from None
    return f"random:{classes}"


def check_counts(bound: BoundTask):
    """Holds the counts of a bound task against those known for its net; nets that are not in `KNOWN` pass.

    Raises:
        ModelPatchError: a count is another.
    """
    known = _known(bound.trunk.name)
    if known is None:
        return
    learnt = known.learnt(bound.train_spec)
    checks = [("values of the trunk", known.total, bound.trunk.num_parameters())]
    if learnt is not None:
        checks.append((f"learnt values of {bound.train_spec} in the trunk", learnt, bound.counts().patch))
    for what, expected, counted in checks:
        if counted != expected:
            raise ModelPatchError(
                f"{bound.trunk.name} has {counted:,} {what} where {expected:,} are known: this version of Keras, or of "
                "this package, builds another net"
            )


def _known(trunk: str) -> Known | None:
    spec = parse(trunk)
    if spec.scheme != "keras" or spec.options.keys() - {"alpha", "weights", "seed"}:
        return None
    return KNOWN.get((spec.rest, float(spec.options.get("alpha", 1.0))))


def _name_of(text: str) -> str:
    """Returns what data are called: the TFDS data set without its version, or the last folder of a path."""
    spec = parse(text)
    if spec.scheme == "scenes":
        return _name_of(spec.rest)
    if spec.scheme == "tfds":
        return spec.rest.partition(":")[0].partition("/")[0]
    return Path(spec.rest).name or spec.scheme


def _row(name: str, bound: BoundTask) -> Row:
    check_counts(bound)
    return Row(name, bound.task.name, bound.counts())


def _batch(bound: BoundTask):
    """Returns random images as the trunk takes them, and random labels."""
    size, random = bound.task.preprocessing.image_size, np.random.RandomState(0)
    pixels = random.uniform(0, 255, (STEP_IMAGES, size, size, 3)).astype("float32")
    return bound.task.preprocessing.scale(pixels), random.randint(0, len(bound.task.labels), STEP_IMAGES)


def _joint_batch(joined: JoinedTasks):
    pairs = {name: _batch(bound) for name, bound in joined.tasks.items()}
    return {name: images for name, (images, _) in pairs.items()}, {name: labels for name, (_, labels) in pairs.items()}


def _rate_of(joined: JoinedTasks) -> TrainSpec:
    train_spec = next(iter(joined.tasks.values())).train_spec
    return TrainSpec.parse("full", train_spec.norm_statistics) if joined.train_trunk else train_spec


def _step(name: str, model: keras.Model, loss, recipe: Recipe, train_spec: TrainSpec, images, targets):
    """Trains one step, or where nothing is learnt by gradient runs one forward."""
    if not model.trainable_variables:
        model(images, training=True)
        _logger.info("%s: one step forward", name)
        return
    # Run operation by operation: tracing a graph for one step would take longer than the step.
    model.compile(recipe.make_optimizer(train_spec, 1), loss=loss, run_eagerly=True)
    value = float(np.sum(model.train_on_batch(images, targets)))
    if not math.isfinite(value):
        raise ModelPatchError(f"the loss of {name} is {value} after one step on random images")
    _logger.info("%s: one step, loss %.3f", name, value)


HEADER = ("trained", "task", "shared", "patch", "head", "statistics", "all trained", "of all", "MB per task")


def _report(title: str, rows: Iterator[Row]) -> list[Row]:
    kept = list(rows)
    print_table(f"dry run: {title}", HEADER, [_cells(row) for row in kept])
    return kept


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        row.task,
        *(f"{getattr(row.counts, field):,}" for field in ("shared", "patch", "head", "statistics", "trained")),
        f"{100 * row.counts.trained_fraction:.1f} %",
        f"{row.patch_bytes / 1e6:.3f}",
    ]
