"""Serving: many tasks, mixed in a batch, by a bank and by other ways.

Form | Model
-----|------
`separate` | a Keras model per task, each with all its weights
`switch` | one Keras model; for each task of a batch its parameters are assigned, then its images run
`sub-batches` | one net that takes a task's parameters as an input; for each task of a batch its images run
`bank` | the bank: all images at once
`litert set` | the same as `sub-batches`, as a LiteRT file (`litert_set`) on XNNPACK
`folded` | a folded net of one task, all images at once, as if they were all of that task: the upper bound
`litert` | the same as a LiteRT file on XNNPACK
`onnx` | the same as an ONNX file on ONNX Runtime
"""

import dataclasses
import functools
import importlib.util
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import require_each_once, require_known
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import in_own_process, interleaved, milliseconds, resident_bytes
from model_patch.experiments.report.machine import num_cores
from model_patch.experiments.report.output import new_axes
from model_patch.experiments.report.sample import grouped
from model_patch.experiments.report.table import Table, table
from model_patch.export import litert_file, litert_set, onnx_file
from model_patch.export.saved_model import export_saved_model
from model_patch.export.vector_net import vector_net
from model_patch.files import as_path, write_json

_logger = logging.getLogger(__name__)

MIXES = ("identical", "uniform", "skewed", "distinct")
"""Which tasks a batch has: all one; drawn evenly; drawn with 1/n for the n-th most popular (Zipf); all different, or in
turns where there are fewer tasks than images. The four settings are those of Punica's benchmark (Chen et al. 2023)."""

FORMS = ("separate", "switch", "sub-batches", "litert set", "bank", "folded", "litert", "onnx")

NEEDS = {"litert": ("ai_edge_litert",), "litert set": ("ai_edge_litert",), "onnx": onnx_file.PACKAGES}
"""By form, the packages without which it is not run."""

Predict = Callable[[np.ndarray, np.ndarray], object]
"""Given images and the number of each one's task, computes all logits and waits for them."""


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
    batches = [mixed(mix, batch, num_tasks, random) for _ in range(8)]

    def in_turn(predict: Predict) -> Callable[[], object]:
        chosen = itertools.cycle(batches)  # Each form its own: all get the same tasks in the same round.
        return lambda: predict(images, next(chosen))

    calls = {name: in_turn(predict) for name, predict in forms.items()}
    seconds = interleaved(calls, config.rounds, 2, config.seconds)
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
    bound = mp.bind(trunk, _task(trunk, config, 0), f"{config.kinds}+last")
    made: dict[str, Predict] = {}
    for form in config.forms:
        if form == "separate" and num_tasks > config.max_separate:
            reason = f"a model is compiled for each task: not run beyond {config.max_separate} tasks (max_separate)"
            results["not_run"].append({"tasks": num_tasks, "form": form, "reason": reason})
            continue
        missing = [name for name in NEEDS.get(form, ()) if importlib.util.find_spec(name) is None]
        if missing:
            reason = f"{' and '.join(missing)} not installed"
            results["not_run"].append({"tasks": num_tasks, "form": form, "reason": reason})
            continue
        made[form] = MAKE[form](bound, num_tasks, config)
        _logger.info("%d tasks, %s: made", num_tasks, form)
    return made


def _memory(fields: dict, form: str, num_tasks: int) -> dict:
    """Returns the memory that one form takes, and the time to make it."""
    config = ConfigDict(fields)
    _set_op_threads(config.op_threads)
    trunk = mp.open_trunk(config.trunk, config.image_size)
    bound = mp.bind(trunk, _task(trunk, config, 0), f"{config.kinds}+last")
    before, start = resident_bytes(), time.perf_counter()
    predict = MAKE[form](bound, num_tasks, config)
    seconds = time.perf_counter() - start
    size, batch = trunk.preprocessing.image_size, max(config.batch_sizes)
    predict(np.zeros((batch, size, size, 3), "float32"), np.arange(batch) % num_tasks)
    taken = resident_bytes() - before
    return {"tasks": num_tasks, "form": form, "bytes": taken, "seconds_to_make": round(seconds, 2)}


def _patch(bound: mp.BoundTask, i: int) -> mp.Patch:
    """Makes the patch of the i-th task, with values of its own."""
    random, first = np.random.default_rng(i), bound.patch()
    values = {k: v * random.uniform(0.9, 1.1, v.shape).astype("float32") for k, v in first.values.items()}
    return dataclasses.replace(first, values=values, task=dataclasses.replace(first.task, name=f"task{i}"))


def _task(trunk: mp.Trunk, config, i: int) -> mp.Task:
    return mp.Task(f"task{i}", tuple(map(str, range(config.classes))), trunk.preprocessing)


def compiled(model):
    """Returns a model, of images and perhaps more, as a TensorFlow function for batches of any size."""
    import tensorflow as tf

    specs = [tf.TensorSpec(x.shape, x.dtype) for x in model.inputs]
    many = len(specs) > 1
    return tf.function(
        lambda *inputs: model(list(inputs) if many else inputs[0], training=False), input_signature=specs
    )


def _by_task(predict: Callable[[int, np.ndarray], object]) -> Predict:
    """Returns the form that runs a mixed batch task by task."""

    def answer_all(images, tasks):
        return [np.asarray(predict(task, images[tasks == task])) for task in np.unique(tasks)]

    return answer_all


def _separate(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    import keras

    runs = []
    for _ in range(num_tasks):
        model = keras.models.clone_model(bound.model)
        model.set_weights(bound.model.get_weights())
        model.trainable = False
        runs.append(compiled(model))
        runs[-1](np.zeros((1, *bound.model.input.shape[1:]), "float32"))
    return _by_task(lambda task, images: runs[task](images))


def _switch(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    prepared = [_prepared(bound, _patch(bound, i)) for i in range(num_tasks)]
    run = compiled(bound.model)

    def predict(task, images):
        for variable, value in prepared[task]:
            variable.assign(value)
        return run(images)

    return _by_task(predict)


def _prepared(bound: mp.BoundTask, patch: mp.Patch) -> list:
    """Returns the variables of a bound task with the values of a patch, as tensors."""
    import tensorflow as tf

    owned = bound.patch_variables | bound.head_variables
    return [(variable.value, tf.constant(patch.values[key])) for key, variable in owned.items()]


def _sub_batches(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    import tensorflow as tf

    net = vector_net([bound])
    run = compiled(net.model)
    (first,) = net.vectors.values()
    random = np.random.default_rng(0)
    vectors = [tf.constant(first * random.uniform(0.9, 1.1, first.shape), "float32") for _ in range(num_tasks)]
    return _by_task(lambda task, images: run(images, vectors[task]))


def _bank(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    bank = mp.Bank(bound.trunk, config.kinds, capacity=num_tasks, classes=config.classes)
    for i in range(num_tasks):
        bank.add(_patch(bound, i))
    names = np.array([f"task{i}" for i in range(num_tasks)])
    return lambda images, tasks: np.asarray(bank(images, list(names[tasks])))


def _folded(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    run = compiled(mp.fold(bound).model)
    return lambda images, tasks: np.asarray(run(images))


def _litert(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    run = _interpreter(_exported(litert_file.export, bound)["task0.tflite"], config)
    return lambda images, tasks: run(images=images)


def _litert_set(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    from safetensors.numpy import load

    files = _exported(litert_set.export, bound)
    run, first = _interpreter(files[litert_set.NET], config), load(files["task0.safetensors"])[litert_set.VECTOR]
    random = np.random.default_rng(0)
    vectors = [(first * random.uniform(0.9, 1.1, first.shape)).astype("float32") for _ in range(num_tasks)]
    return _by_task(lambda task, images: run(images=images, vector=vectors[task])["logits"])


def _onnx(bound: mp.BoundTask, num_tasks: int, config: ConfigDict) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads(config)
    file = _exported(onnx_file.export, bound)["task0.onnx"]
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images, tasks: session.run(["logits"], {"images": images})


def _threads(config: ConfigDict) -> int:
    return config.op_threads or num_cores()


def _exported(export: Callable, bound: mp.BoundTask) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        export([bound], Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _interpreter(file: bytes, config: ConfigDict) -> Callable[..., dict[str, np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file, num_threads=_threads(config))
    return functools.partial(_run, interpreter, interpreter.get_signature_runner("serving_default"))


def _run(interpreter, runner: Callable, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    return runner(**inputs)  # The interpreter has to live as long as its runner.


MAKE = {
    "separate": _separate,
    "switch": _switch,
    "sub-batches": _sub_batches,
    "litert set": _litert_set,
    "bank": _bank,
    "folded": _folded,
    "litert": _litert,
    "onnx": _onnx,
}
"""By form, what makes it: given a bound task, a number of tasks and a config with `kinds` and `classes`."""


def _switching(trunk: mp.Trunk, config) -> dict[str, float]:
    """Returns the time to switch from one task to another, in milliseconds, without running any images."""
    import tensorflow as tf

    bound = mp.bind(trunk, _task(trunk, config, 0), f"{config.kinds}+last")
    replaced, other = (_patch(bound, i) for i in range(2))
    prepared = _prepared(bound, other)
    bank = mp.Bank(trunk, config.kinds, capacity=2, classes=config.classes)
    bank.add(replaced)

    def assign():
        for variable, value in prepared:
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
        columns = {"tasks": "{tasks}", "mix": "{mix}", "batch": "{batch}", **named_forms, "bank / folded": _ratio}
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


def _ratio(cell: dict) -> str:
    return f"{cell['bank']['images_per_second'] / cell['folded']['images_per_second']:.2f}"


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
