"""Serving: many tasks, mixed in a batch, by a bank and by the other ways of `forms`."""

import dataclasses
import functools
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.bank.folded import TIMES
from model_patch.errors import require_each_once, require_known
from model_patch.experiments.benchmark.forms import FORMS, Predict, make_form, patch_of, prepared, why_not
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import in_own_process, interleaved, milliseconds, resident_bytes
from model_patch.experiments.report.output import new_axes
from model_patch.experiments.report.sample import grouped
from model_patch.experiments.report.table import Table, table
from model_patch.export.saved_model import export_saved_model
from model_patch.files import as_path, write_json

_logger = logging.getLogger(__name__)

MIXES = ("identical", "uniform", "skewed", "distinct")
"""Which tasks a batch has: all one; drawn evenly; drawn with 1/n for the n-th most popular (Zipf); all different, or in
turns where there are fewer tasks than images. The four settings are those of Punica's benchmark (Chen et al. 2023)."""

RATIOS = (("bank", "folded"), ("litert set", "litert"), ("litert set, 1 thread", "litert, 1 thread"))
"""Forms whose rates are compared."""


def run(config: ConfigDict, workdir: str | Path):
    """Times all forms, and writes `serving.json`, `serving.md` and `serving.png` into the workdir.

    Args:
        config: see `configs/benchmark.py`; `trunk`, `image_size`, `kinds`, `classes`, `tasks`, `mixes`, `batch_sizes`,
            `forms`, `memory_of`, `max_separate`, `rounds`, `seconds`, `op_threads`.
        workdir: folder for the files.

    Raises:
        ModelPatchError: a name in the config is unknown, a number cannot be used, or TensorFlow is not there, or runs
            with another number of threads.
    """
    for name in ("tasks", "mixes", "batch_sizes", "forms"):
        require_each_once(name, config[name])
    require_known("mix", config.mixes, MIXES)
    require_known("form", config.forms, FORMS)
    for name, numbers in (("tasks", config.tasks), ("batch_sizes", config.batch_sizes)):
        if not numbers or min(numbers) < 1:
            raise mp.ModelPatchError(
                f"{name} is {', '.join(map(str, numbers)) or 'empty'}: expected numbers of at least 1"
            )
    _set_op_threads(config.op_threads)
    trunk = mp.open_trunk(config.trunk, config.image_size)
    results = new_results(
        image_size=trunk.preprocessing.image_size,
        **{field: config[field] for field in ("trunk", "kinds", "classes", "op_threads")},
        switching_ms=_switching(trunk, config),
        memory=[],
        not_run=[],
    )
    for num_tasks in config.tasks:
        forms = _forms(trunk, config, num_tasks, results)
        measured = [form for form in forms if form in config.memory_of]
        # Each in a process of its own, as freed memory is not always given back.
        results["memory"] += [in_own_process(_memory, config.to_dict(), form, num_tasks) for form in measured]
        for mix, batch in itertools.product(config.mixes if num_tasks > 1 else ("identical",), config.batch_sizes):
            results["rows"] += _cell(forms, mix, batch, num_tasks, trunk, config)
            _logger.info("%d tasks, %s, batch %d: done", num_tasks, mix, batch)
        write_json(as_path(workdir) / "serving.json", results)
    _report(results, as_path(workdir))


def _set_op_threads(count: int):
    import tensorflow as tf

    if count < 0:
        raise mp.ModelPatchError(f"op_threads is {count}: expected at least 1, or 0 for as many as cores")
    if count != tf.config.threading.get_intra_op_parallelism_threads():
        try:
            tf.config.threading.set_intra_op_parallelism_threads(count)
        except RuntimeError as error:
            raise mp.ModelPatchError(
                f"op_threads is {count}, but TensorFlow runs already, with another number: begin a new process"
            ) from error


def _cell(forms: dict[str, Predict], mix: str, batch: int, num_tasks: int, trunk: mp.Trunk, config) -> list[dict]:
    """Times all forms on batches of one kind."""
    size = trunk.preprocessing.image_size
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch, size, size, 3)).astype("float32")
    # A bank folds tasks that batches are often for: here the one that all are for, and none of other mixes.
    count, warmup = (1, TIMES + 1) if mix == "identical" else (max(8, 64 // batch), 2)
    batches = [mixed(mix, batch, num_tasks, random) for _ in range(count)]

    def in_turn(predict: Predict) -> Callable[[], object]:
        chosen = itertools.cycle(batches)  # Each form its own: all get the same tasks in the same round.
        return lambda: predict(images, next(chosen))

    calls = {name: in_turn(predict) for name, predict in forms.items()}
    seconds = interleaved(calls, config.rounds, warmup, config.seconds)
    return [
        {
            "tasks": num_tasks,
            "mix": mix,
            "batch": batch,
            "form": form,
            "images_per_second": round(batch / float(np.median(times)), 2),
            "p50_ms": milliseconds(times),
            "p99_ms": milliseconds(times, 99),
            "rounds": len(times),
        }
        for form, times in seconds.items()
    ]


def mixed(mix: str, batch: int, num_tasks: int, random: np.random.Generator) -> np.ndarray:
    """Draws the task of each image of a batch, int `(batch,)` in 0..num_tasks-1."""
    if mix == "identical":
        return np.full(batch, random.integers(num_tasks))
    if mix == "distinct":
        return np.resize(random.permutation(num_tasks), batch)
    popularity = np.ones(num_tasks) if mix == "uniform" else 1 / np.arange(1, num_tasks + 1)
    return random.choice(num_tasks, batch, p=popularity / popularity.sum())


def _forms(trunk: mp.Trunk, config, num_tasks: int, results: dict) -> dict[str, Predict]:
    """Makes the forms for some number of tasks, and notes those that are not."""
    bound = _bound(trunk, config)
    made: dict[str, Predict] = {}
    for form in config.forms:
        if form == "separate" and num_tasks > config.max_separate:
            reason = f"a model is compiled for each task: not run beyond {config.max_separate} tasks (max_separate)"
            results["not_run"].append({"tasks": num_tasks, "form": form, "reason": reason})
            continue
        reason = why_not(form, config.trunk)
        if reason:
            results["not_run"].append({"tasks": num_tasks, "form": form, "reason": reason})
            continue
        made[form] = make_form(form, bound, num_tasks, config.op_threads)
        _logger.info("%d tasks, %s: made", num_tasks, form)
    return made


def _bound(trunk: mp.Trunk, config) -> mp.BoundTask:
    task = mp.Task("task0", tuple(map(str, range(config.classes))), trunk.preprocessing)
    return mp.bind(trunk, task, f"{config.kinds}+last")


def _memory(fields: dict, form: str, num_tasks: int) -> dict:
    """Returns the memory that one form takes, and the time to make it."""
    config = ConfigDict(fields)
    _set_op_threads(config.op_threads)
    trunk = mp.open_trunk(config.trunk, config.image_size)
    bound = _bound(trunk, config)
    before, start = resident_bytes(), time.perf_counter()
    predict = make_form(form, bound, num_tasks, config.op_threads)
    seconds = time.perf_counter() - start
    size, batch = trunk.preprocessing.image_size, max(config.batch_sizes)
    predict(np.zeros((batch, size, size, 3), "float32"), np.arange(batch) % num_tasks)
    taken = resident_bytes() - before
    return {"tasks": num_tasks, "form": form, "bytes": taken, "seconds_to_make": round(seconds, 2)}


def _switching(trunk: mp.Trunk, config) -> dict[str, float]:
    """Returns the time to switch from one task to another, in milliseconds, without running any images."""
    import tensorflow as tf

    bound = _bound(trunk, config)
    replaced, other = (patch_of(bound, i) for i in range(2))
    values = prepared(bound, other)
    bank = mp.Bank(trunk, config.kinds, capacity=2, classes=config.classes)
    bank.add(replaced)

    def assign():
        for variable, value in values:
            variable.assign(value)

    with tempfile.TemporaryDirectory() as scratch:
        export_saved_model(bound, Path(scratch) / "model")
        file = Path(scratch) / "patch.safetensors"
        other.save(file)
        calls = {
            "bank: another task's row": lambda: bank.row("task0"),
            "bank: a new patch written to a row": lambda: bank.add(replaced, replace=True),
            "bank: a patch file read and written to a row": lambda: bank.add(
                dataclasses.replace(mp.Patch.load(file), task=replaced.task), replace=True
            ),
            "one Keras model: values assigned": assign,
            "a SavedModel loaded": lambda: tf.saved_model.load(str(Path(scratch) / "model")),
        }
        seconds = interleaved(calls, 15)
    return {name: milliseconds(times, digits=4) for name, times in seconds.items()}


def _report(results: dict, folder: Path):
    """Prints the figures and writes them as a table and a plot."""
    rows = results["rows"]
    forms = list(dict.fromkeys(row["form"] for row in rows))
    cells = [
        {**dict(zip(("tasks", "mix", "batch"), key, strict=True)), **{row["form"]: row for row in group}}
        for key, group in grouped(rows, "tasks", "mix", "batch").items()
    ]

    def by_form(text: str) -> Table:
        named_forms = {
            form: lambda cell, form=form: text.format(**cell[form]) if form in cell else "not run" for form in forms
        }
        ratios = {f"{a} / {b}": functools.partial(_ratio, a, b) for a, b in RATIOS if {a, b} <= {*forms}}
        columns = {"tasks": "{tasks}", "mix": "{mix}", "batch": "{batch}", **named_forms, **ratios}
        return table(cells, columns)

    memory = {
        "tasks": "{tasks}",
        "form": "{form}",
        "MiB": lambda row: f"{row['bytes'] / 2**20:.0f}",
        "seconds": "{seconds_to_make:.1f}",
    }
    title = f"Serving {results['trunk']} at {results['image_size']} px, {results['kinds']}: images/s"
    parts: list[str | Table] = [
        "\n".join(f"`{row['form']}`, {row['tasks']} tasks: {row['reason']}." for row in results["not_run"]),
        by_form("{images_per_second:.0f}"),
        "## Milliseconds per batch: median, 99th percentile",
        by_form("{p50_ms:.1f}, {p99_ms:.1f}"),
        "## Switching to another task",
        (["how", "ms"], [[name, f"{ms:.3f}"] for name, ms in results["switching_ms"].items()]),
        "## Memory with one batch of the largest size, and time to make",
        table(results["memory"], memory),
    ]
    write_suite(folder, "serving", title, results, parts, _plot(rows, forms, title))


def _ratio(form: str, other: str, cell: dict) -> str:
    return f"{cell[form]['images_per_second'] / cell[other]['images_per_second']:.2f}"


def _plot(rows: Sequence[dict], forms: Sequence[str], title: str):
    """Returns a figure: images per second against the number of tasks, a panel per mix, for the largest batch."""
    batch = max(row["batch"] for row in rows)
    by_mix = grouped([row for row in rows if row["batch"] == batch], "mix")
    figure, _ = new_axes(3.2 * len(by_mix), 3.6, 1, len(by_mix), sharey=True)
    for axes, (mix, group) in zip(figure.axes, by_mix.items(), strict=True):
        for form in forms:
            points = [row for row in group if row["form"] == form]
            axes.plot([p["tasks"] for p in points], [p["images_per_second"] for p in points], "o-", label=form)
        axes.set(xscale="log", yscale="log", xlabel="tasks", title=mix)
    figure.axes[0].set(ylabel=f"images/s, batch {batch}")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure
