"""Cost as work grows: tasks in joint training, patches in a bank, images in a data set; and the law behind each.

Part | Work | Costs
-----|------|------
`joint` | tasks that are trained together, the same number of images each | a step, after all that is compiled; until then
`bank` | tasks in a bank | a batch of images of different tasks; the bytes of all values; adding one more
`data` | images of a data set on disk, read, decoded, augmented, and trained on | an epoch; peak memory beside the first steps
"""

import collections
import concurrent.futures
import dataclasses
import logging
import math
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

from model_patch.bank.bank import Bank
from model_patch.bind import bind
from model_patch.data.decoding import decode
from model_patch.data.images import Split
from model_patch.data.pipeline import batches
from model_patch.errors import require_each_once, unknown
from model_patch.experiments.benchmark.growth import fit_cost
from model_patch.experiments.benchmark.output import write_report
from model_patch.experiments.benchmark.timing import forget_peak, interleaved, peak_bytes, resident_bytes
from model_patch.experiments.report.machine import machine
from model_patch.experiments.report.table import markdown, print_table
from model_patch.experiments.workdir import versions
from model_patch.join import join
from model_patch.kinds import TrainSpec
from model_patch.preprocessing import Preprocessing
from model_patch.tasks import Task
from model_patch.training.loop import run_epochs
from model_patch.training.packed_adam import adam
from model_patch.training.recipe import Recipe
from model_patch.trunk import Trunk
from model_patch.trunks import open_trunk

_logger = logging.getLogger(__name__)

ASKED = 64
"""Images of a batch that a bank is asked with."""

SHARD = 1000
"""Images in the file that stands for a data set: a larger one reads it several times."""

SIDE = 32
"""Of the data set's images, in pixels."""

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
    for part in config.scale_parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    results: dict = {"machine": machine(), "versions": versions(), "rows": [], "laws": []}
    for part in config.scale_parts:
        rows = PARTS[part](config)
        results["rows"] += [{"part": part, **row} for row in rows]
        for cost in [key for key in rows[0] if key != "work"]:
            law = fit_cost([row["work"] for row in rows], [row[cost] for row in rows])
            results["laws"].append({"part": part, "cost": cost, **dataclasses.asdict(law)})
        _report(results, Path(workdir))
        _logger.info("%s: done", part)


def _joint(config: ConfigDict) -> list[dict]:
    """A step of K tasks, each with the same number of images: all numbers of tasks in turns."""
    trunk = open_trunk(config.scale_joint_trunk)
    labels, count = tuple(map(str, range(config.classes))), config.scale_images_per_task
    image = np.random.default_rng(0).uniform(-1, 1, (count, *trunk.model.input.shape[1:])).astype("float32")
    steps, until = {}, {}
    for number in config.scale_tasks:
        start = time.perf_counter()
        tasks = [Task(f"task{k}", labels, trunk.preprocessing) for k in range(number)]
        joined = join(trunk, tasks, config.scale_joint_train)
        joined.model.compile(adam(1e-3), joined.losses(), metrics=joined.metrics(), jit_compile=False)
        images, answers = ({task.name: each for task in tasks} for each in (image, np.arange(count) % config.classes))

        def step(model=joined.model, images=images, answers=answers):
            return model.train_on_batch(images, answers)

        step()
        steps[str(number)], until[number] = step, time.perf_counter() - start
        _logger.info("%d tasks: first step after %.0f s", number, until[number])
    seconds = interleaved(steps, config.rounds, 1, config.scale_joint_seconds)
    return [
        {"work": k, "step_ms": 1e3 * float(np.median(seconds[str(k)])), "first_step_after_s": until[k]}
        for k in config.scale_tasks
    ]


def _bank(config: ConfigDict) -> list[dict]:
    """A bank of one capacity for each number of patches, and batches in which as many different tasks are as can be."""
    trunk = open_trunk(config.scale_bank_trunk, config.scale_bank_size or None)
    patch = bind(
        trunk, Task("task", tuple(map(str, range(config.classes))), trunk.preprocessing), "scale_bias+last"
    ).patch()
    images = np.random.default_rng(0).uniform(-1, 1, (ASKED, *trunk.model.input.shape[1:])).astype("float32")
    asks, rows = {}, []
    for number in config.scale_patches:
        bank = Bank(trunk, "scale_bias", capacity=number, classes=config.classes)
        bank.add(patch)  # The first one binds the task, to see what such a patch holds.
        bank.remove(patch.task.name)
        start = time.perf_counter()
        for k in range(number):
            bank.add(dataclasses.replace(patch, task=dataclasses.replace(patch.task, name=f"task{k}")))
        added = time.perf_counter() - start
        names = [f"task{k * number // ASKED}" for k in range(ASKED)]
        asks[str(number)] = lambda bank=bank, names=names: np.asarray(bank(images, names))
        rows.append({"work": number, "add_ms": 1e3 * added / number, "bytes": _bytes(bank.model)})
        _logger.info("%d patches added in %.1f s", number, added)
    seconds = interleaved(asks, config.rounds, 2, config.scale_bank_seconds)
    return [{"work": r["work"], "batch_ms": 1e3 * float(np.median(seconds[str(r["work"])])), **r} for r in rows]


def _bytes(model: keras.Model) -> int:
    """Returns what the values of a model take, tables, kernels and all."""
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.variables)


def _data(config: ConfigDict) -> list[dict]:
    """An epoch of each size, in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shard = write_shard(Path(folder) / "images.tfrecord")
        for number in config.scale_images:
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows.append({"work": number, **process.submit(_epoch, shard, number).result()})
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
    """Trains a small net for one epoch; returns its seconds, tracing left out, its peak memory, and its input wait."""
    image = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 4, strides=4)(image)))
    trunk = Trunk(keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)), "small", Preprocessing(SIDE, "tf"))
    bound = bind(trunk, Task("t", ("a", "b"), trunk.preprocessing), TrainSpec.parse("scale_bias+last", "frozen"))
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
    kept = run_epochs(bound, bound.model, train, number, Recipe(epochs=1, batch_size=DATA_BATCH), callbacks=[clock])
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
    "batch_ms": (f"a batch of {ASKED} images", "ms", 1.0),
    "bytes": ("values of the bank", "MiB", 2**-20),
    "add_ms": ("adding one patch", "ms", 1.0),
    "epoch_s": ("an epoch", "s", 1.0),
    "peak_bytes": ("peak memory beyond the first step's", "MiB", 2**-20),
    "input_wait": ("share of input wait", "", 1.0),
}
_WORK = {"joint": "tasks", "bank": "patches", "data": "images"}


def _report(results: dict, folder: Path):
    """Writes what there is by now, and prints the newest part."""
    tables = []
    for part in dict.fromkeys(row["part"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["part"] == part]
        costs = [key for key in rows[0] if key not in ("part", "work")]
        header = [_WORK[part], *(_label(cost) for cost in costs)]
        body = [[f"{row['work']:,}", *(f"{row[c] * _UNITS[c][2]:.4g}" for c in costs)] for row in rows]
        laws = [law for law in results["laws"] if law["part"] == part]
        tables += [f"## {_WORK[part].capitalize()}", markdown(header, body), "\n".join(_sentence(law) for law in laws)]
    print_table(_WORK[part], header, body)
    write_report(folder, "scale", "Cost as work grows", results, tables, _plot(results))


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
    from matplotlib.figure import Figure

    laws = results["laws"]
    figure = Figure(figsize=(10, 0.5 + 2.6 * -(-len(laws) // 3)), dpi=110, layout="constrained")
    panels = figure.subplots(-(-len(laws) // 3), 3, squeeze=False).ravel()
    by_part = collections.defaultdict(list)
    for row in results["rows"]:
        by_part[row["part"]].append(row)
    for axes, law in zip(panels, laws, strict=False):
        rows, factor = by_part[law["part"]], _UNITS[law["cost"]][2]
        work = np.array([row["work"] for row in rows], "float64")
        axes.loglog(work, [row[law["cost"]] * factor for row in rows], "o", color="C0")
        line = (law["base"] + law["each"] * work) * factor
        axes.loglog(work[line > 0], line[line > 0], color="C1")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high / 10), max(high, low * 10))  # At least a decade, so that what is flat looks flat.
        axes.set(xlabel=_WORK[law["part"]], ylabel=_label(law["cost"]), title=f"exponent {law['exponent']:.2f}")
    for axes in panels[len(laws) :]:
        axes.set_axis_off()
    return figure
