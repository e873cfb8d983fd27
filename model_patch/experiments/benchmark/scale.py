"""Cost as work grows: tasks in joint training, patches in a bank, images in a data set; and how each cost grows.

Part | Work | Costs
-----|------|------
`joint` | tasks that are trained together, the same number of images each | a step, after all that is compiled; until then
`bank` | tasks in a bank | a batch of images of different tasks; the bytes of all values; adding one more
`data` | images of a data set on disk, read, decoded, augmented, and trained on | an epoch; peak memory beside the first steps
"""

import dataclasses
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.data.decoding import decode
from model_patch.data.images import Split
from model_patch.data.pipeline import batches
from model_patch.errors import require_each_once, require_known
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import (
    forget_peak,
    in_own_process,
    interleaved,
    milliseconds,
    peak_bytes,
    resident_bytes,
)
from model_patch.experiments.benchmark.training import fitted
from model_patch.experiments.report.output import new_axes
from model_patch.experiments.report.sample import grouped
from model_patch.experiments.report.table import Table, table
from model_patch.files import as_path
from model_patch.training.adam import adam
from model_patch.training.loop import run_epochs

_logger = logging.getLogger(__name__)

BATCH = 64
"""Images in a batch that a bank runs."""

SHARD = 1000
"""Images in the file that represents a data set: a larger data set reads it several times."""

SIDE = 32
"""Height and width of the data set's images, in pixels."""

DATA_BATCH = 100
SHUFFLE_BYTES = 2**19
"""Images that are shuffled at a time, in their stored form: less than all but the smallest data set, as in a large one."""


def run(config: ConfigDict, workdir: str | Path):
    """Measures the parts, fits laws, and writes `scale.json`, `scale.md` and `scale.png` into the workdir.

    Args:
        config: see `configs/benchmark.py`; the fields `scale_...`, `classes`, `rounds`.
        workdir: folder for the files.

    Raises:
        ModelPatchError: a part is unknown, or a trunk cannot be opened.
    """
    for name in ("scale_parts", "scale_tasks", "scale_patches", "scale_images"):
        require_each_once(name, config[name])
    require_known("part", config.scale_parts, PARTS)
    results = new_results(laws=[])
    for part in config.scale_parts:
        rows = PARTS[part](config)
        results["rows"] += [{"part": part, **row} for row in rows]
        for cost in [key for key in rows[0] if key != "work"]:
            law = fit_cost([row["work"] for row in rows], [row[cost] for row in rows])
            results["laws"].append({"part": part, "cost": cost, **law})
        _report(results, as_path(workdir))
        _logger.info("%s: done", part)


def fit_cost(work: Sequence[float], cost: Sequence[float]) -> dict[str, float]:
    """Fits a straight line `base + each * work` and a power law, by least squares of relative errors.

    Args:
        work: at least two different amounts, more than 0.
        cost: measured for each, more than 0.

    Returns:
        `base` and `each`; `exponent` of the power law: 0 if work costs nothing, 1 if cost is proportional; and
        `largest_error`, the largest relative difference of the line from a measured cost.
    """
    x, y = (np.asarray(each, "float64") for each in (work, cost))
    terms = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    line = np.linalg.lstsq(terms, np.ones_like(y), rcond=None)[0]
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    error = np.abs(terms @ line - 1).max()
    return dict(zip(("base", "each", "exponent", "largest_error"), map(float, (*line, exponent, error)), strict=True))


def _joint(config: ConfigDict) -> list[dict]:
    """A step of K tasks, each with the same number of images: all numbers of tasks in turns."""
    trunk = mp.open_trunk(config.scale_joint_trunk)
    labels, count = tuple(map(str, range(config.classes))), config.scale_images_per_task
    image = np.random.default_rng(0).uniform(-1, 1, (count, *trunk.model.input.shape[1:])).astype("float32")
    steps, until = {}, {}
    for number in config.scale_tasks:
        start = time.perf_counter()
        tasks = [mp.Task(f"task{k}", labels, trunk.preprocessing) for k in range(number)]
        joined = mp.join(trunk, tasks, config.scale_joint_train)
        images, targets = ({task.name: each for task in tasks} for each in (image, np.arange(count) % config.classes))
        step = fitted(joined.model, images, targets, adam(1e-3), joined.losses(), joined.metrics())
        step()
        steps[str(number)], until[number] = step, time.perf_counter() - start
        _logger.info("%d tasks: first step after %.0f s", number, until[number])
    seconds = interleaved(steps, config.rounds, 1, config.scale_joint_seconds)
    return [
        {"work": k, "step_ms": milliseconds(seconds[str(k)]), "first_step_after_s": until[k]}
        for k in config.scale_tasks
    ]


def _bank(config: ConfigDict) -> list[dict]:
    """A bank of one capacity for each number of patches, and batches in which as many different tasks are as can be."""
    trunk = mp.open_trunk(config.scale_bank_trunk, config.scale_bank_size or None)
    patch = mp.bind(
        trunk, mp.Task("task", tuple(map(str, range(config.classes))), trunk.preprocessing), "scale_bias+last"
    ).patch()
    images = np.random.default_rng(0).uniform(-1, 1, (BATCH, *trunk.model.input.shape[1:])).astype("float32")
    calls, rows = {}, []
    for number in config.scale_patches:
        bank = mp.Bank(trunk, "scale_bias", capacity=number, classes=config.classes, folded_bytes=0)
        bank.add(patch)  # The first one binds the task, to see what such a patch holds.
        bank.remove(patch.task.name)
        start = time.perf_counter()
        for k in range(number):
            bank.add(dataclasses.replace(patch, task=dataclasses.replace(patch.task, name=f"task{k}")))
        added = time.perf_counter() - start
        names = [f"task{k * number // BATCH}" for k in range(BATCH)]
        calls[str(number)] = lambda bank=bank, names=names: np.asarray(bank(images, names))
        rows.append({"work": number, "add_ms": 1e3 * added / number, "bytes": _bytes(bank.model)})
        _logger.info("%d patches added in %.1f s", number, added)
    seconds = interleaved(calls, config.rounds, 2, config.scale_bank_seconds)
    return [{"work": r["work"], "batch_ms": milliseconds(seconds[str(r["work"])]), **r} for r in rows]


def _bytes(model: keras.Model) -> int:
    """Returns what the values of a model take, tables, kernels and all."""
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.variables)


def _data(config: ConfigDict) -> list[dict]:
    """An epoch of each size, in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shard = write_shard(Path(folder) / "images.tfrecord")
        for number in config.scale_images:
            rows.append({"work": number, **in_own_process(_epoch, shard, number)})
            _logger.info("%d images: %.1f s", number, rows[-1]["epoch_s"])
    return rows


def write_shard(path: Path) -> str:
    """Writes `SHARD` JPEG images as records of one file; returns its path."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for _ in range(SHARD):
            coarse = random.integers(0, 256, (1, 6, 6, 3)).astype("float32")
            image = tf.cast(tf.clip_by_value(tf.image.resize(coarse, (SIDE, SIDE), "bicubic"), 0, 255), "uint8")[0]
            writer.write(tf.io.encode_jpeg(image).numpy())
    return os.fspath(path)


def streamed(shard: str, number: int) -> Split:
    """Returns a split of `number` images, a multiple of `SHARD`, which are read from disk whenever they are used."""
    import tensorflow as tf

    def stored(n: int):
        files = tf.data.Dataset.from_tensors(shard).repeat(number // SHARD)
        return tf.data.Dataset.zip(
            files.flat_map(tf.data.TFRecordDataset), tf.data.Dataset.range(number).map(lambda i: i % 2)
        ).take(n)

    return Split(number, stored, decode, number // SHARD * Path(shard).stat().st_size, None)


def _epoch(shard: str, number: int) -> dict[str, float]:
    """Trains a small net for one epoch; returns its seconds without tracing, its peak memory, and its input wait."""
    image = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 4, strides=4)(image)))
    trunk = mp.Trunk(
        keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)), "small", mp.Preprocessing(SIDE, "tf")
    )
    bound = mp.bind(
        trunk, mp.Task("t", ("a", "b"), trunk.preprocessing), mp.TrainSpec.parse("scale_bias+last", "frozen")
    )
    split = streamed(shard, number)

    def train(epochs: range):
        return batches(
            split,
            trunk.preprocessing,
            DATA_BATCH,
            augmentation="flip",
            shuffle_seed=0,
            epochs=epochs,
            shuffle_bytes=SHUFFLE_BYTES,
        )

    clock = _Clock()
    kept = run_epochs(bound, bound.model, train, number, mp.Recipe(epochs=1, batch_size=DATA_BATCH), callbacks=[clock])
    peak, steps = peak_bytes(), clock.steps
    return {
        "epoch_s": clock.seconds * steps / (steps - 1),
        "peak_bytes": max(1, peak - clock.resident),
        "input_wait": max(1e-4, kept.history["input_wait"][0]),
    }


class _Clock(keras.callbacks.Callback):
    """Takes the time from the end of the first step, when all is compiled, to that of the last, and the memory at the first.

    Attributes:
        seconds: between the two.
        steps: how many there were.
        resident: bytes at the first.
    """

    steps, start, seconds, resident = 0, 0.0, 0.0, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == 1:
            self.start, self.resident = time.perf_counter(), resident_bytes()
            forget_peak()
        self.seconds = time.perf_counter() - self.start


PARTS = {"joint": _joint, "bank": _bank, "data": _data}

_UNITS = {
    "step_ms": ("a step", "ms", 1.0),
    "first_step_after_s": ("until the first step is done", "s", 1.0),
    "batch_ms": (f"a batch of {BATCH} images", "ms", 1.0),
    "bytes": ("values of the bank", "MiB", 2**-20),
    "add_ms": ("adding one patch", "ms", 1.0),
    "epoch_s": ("an epoch", "s", 1.0),
    "peak_bytes": ("peak memory beyond the first step's", "MiB", 2**-20),
    "input_wait": ("share of input wait", "", 1.0),
}
_WORK = {"joint": "tasks", "bank": "patches", "data": "images"}


def _report(results: dict, folder: Path):
    """Writes the results so far, and prints the newest part."""
    parts: list[str | Table] = []
    for part, rows in grouped(results["rows"], "part").items():
        laws = [law for law in results["laws"] if law["part"] == part]
        columns: dict = {_WORK[part]: "{work:,}"}
        for cost in [law["cost"] for law in laws]:
            columns[_label(cost)] = lambda row, cost=cost: f"{row[cost] * _UNITS[cost][2]:.4g}"
        parts += [f"## {_WORK[part].capitalize()}", table(rows, columns), "\n".join(map(_sentence, laws))]
    write_suite(folder, "scale", "Cost as work grows", results, parts, _plot(results), show=-1)


def _label(cost: str) -> str:
    name, unit, _ = _UNITS[cost]
    return f"{name} ({unit})" if unit else name


def _sentence(law: dict) -> str:
    name, unit, factor = _UNITS[law["cost"]]
    return (
        f"- {name}: {law['base'] * factor:.4g} + {law['each'] * factor:.4g} x {_WORK[law['part']]} {unit} (off by "
        f"{law['largest_error']:.0%} at most); as a power law, exponent {law['exponent']:.2f}"
    )


def _plot(results: dict):
    """Returns a figure: a panel per cost, what was measured and the straight line."""
    laws, by_part = results["laws"], grouped(results["rows"], "part")
    lines = -(-len(laws) // 3)
    figure, _ = new_axes(10, 0.5 + 2.6 * lines, lines, 3)
    for axes, law in zip(figure.axes, laws, strict=False):
        rows, factor = by_part[law["part"]], _UNITS[law["cost"]][2]
        work = np.array([row["work"] for row in rows], "float64")
        axes.loglog(work, [row[law["cost"]] * factor for row in rows], "o", color="C0")
        line = (law["base"] + law["each"] * work) * factor
        axes.loglog(work[line > 0], line[line > 0], color="C1")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high / 10), max(high, low * 10))  # At least a decade, so that what is flat looks flat.
        axes.set(xlabel=_WORK[law["part"]], ylabel=_label(law["cost"]), title=f"exponent {law['exponent']:.2f}")
    for axes in figure.axes[len(laws) :]:
        axes.set_axis_off()
    return figure
