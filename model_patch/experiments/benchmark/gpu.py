"""One accelerator: training steps, joint steps and a bank, beside the same net in PyTorch, eager and compiled.

Form | What
-----|-----
`scale_bias+last`, `scale_bias+last, batch`, `full` | a training step, see `training`
`joint` | `scale_bias+last, batch` of several tasks at once, among which the images of the batch are split
`torch ...`, `..., compiled` | the same net of torchvision, see `torch_nets`; `torch.compile`
`bank`, `bank, one task` | predictions by a bank, every image with another task, and all with one
`folded` | predictions by the folded net of one task

Meant for Keras on JAX, where nothing here imports TensorFlow. Images are on the device, and all forms wait for their result.
"""

import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.bank.compiled import compiled
from model_patch.bank.folded import TIMES
from model_patch.errors import require_each_once, require_known
from model_patch.experiments.benchmark import torch_nets, training
from model_patch.experiments.benchmark.forms import patch_of
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import interleaved, spread
from model_patch.experiments.report.sample import grouped
from model_patch.experiments.report.table import table
from model_patch.files import as_path
from model_patch.training.adam import adam

_logger = logging.getLogger(__name__)

_TORCH_STEPS = tuple(
    f"torch {trained}{end}"
    for trained in ("scale_bias+last, frozen", "scale_bias+last, batch", "full")
    for end in ("", torch_nets.COMPILED)
)
STEPS = ("scale_bias+last", "scale_bias+last, batch", "full", "joint", *_TORCH_STEPS)
_TORCH_PREDICTIONS = ("torch", f"torch{torch_nets.COMPILED}")
PREDICTIONS = ("bank", "bank, one task", "folded", *_TORCH_PREDICTIONS)


def run(config: ConfigDict, workdir: str | Path):
    """Times all forms, and writes `gpu.json` and `gpu.md` into the workdir.

    Args:
        config: see `configs/benchmark.py`; the fields `gpu_...`, `trunk`, `classes`, `rounds`.
        workdir: folder for the files.

    Raises:
        ModelPatchError: a form is unknown, or the trunk cannot be opened.
    """
    for name in ("gpu_batches", "gpu_forms"):
        require_each_once(name, config[name])
    require_known("form", config.gpu_forms, (*STEPS, *PREDICTIONS))
    # JAX would take most of the memory, of which PyTorch needs a part.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    results = new_results(trunk=config.trunk, image_size=config.gpu_size, tasks=config.gpu_tasks, not_run=[])
    for batch, forms in itertools.product(config.gpu_batches, (STEPS, PREDICTIONS)):
        results["rows"] += _cell(
            config, batch, [form for form in config.gpu_forms if form in forms], results["not_run"]
        )
        _report(results, as_path(workdir))


def _cell(config: ConfigDict, batch: int, forms: list[str], not_run: list[dict]) -> list[dict]:
    """Times forms, all of them steps or predictions, on batches of one size."""
    calls: dict[str, Callable[[], object]] = {}
    first = {}
    for form in forms:
        reason = torch_nets.why_not(config.trunk) if form.startswith("torch") else ""
        if reason:
            not_run.append({"batch": batch, "form": form, "reason": reason})
            continue
        start = time.perf_counter()
        calls[form] = _make(form, config, batch)
        calls[form]()
        first[form] = time.perf_counter() - start
        _logger.info("batch %d, %s: first result after %.1f s", batch, form, first[form])
    seconds = interleaved(calls, config.rounds, 2, config.gpu_seconds) if calls else {}
    return [
        {
            "kind": "step" if forms[0] in STEPS else "prediction",
            "batch": batch,
            "form": form,
            "images_per_second": round(batch / float(np.median(times)), 1),
            "first_s": round(first[form], 1),
            **spread(times),
        }
        for form, times in seconds.items()
    ]


def _make(form: str, config: ConfigDict, batch: int) -> Callable[[], object]:
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch, config.gpu_size, config.gpu_size, 3)).astype("float32")
    if form in _TORCH_PREDICTIONS:
        predict = torch_nets.predict(config.trunk, config.classes, compiled=form != "torch")
        there = torch_nets.on_device(images)
        return lambda: predict(there)
    if form in STEPS and form != "joint":
        return training.make_step(form, config.trunk, config.gpu_size, batch, config.classes)
    trunk = mp.open_trunk(config.trunk, config.gpu_size)
    labels = tuple(map(str, range(config.classes)))
    tasks = [mp.Task(f"task{i}", labels, trunk.preprocessing) for i in range(config.gpu_tasks)]
    if form == "joint":
        joined = mp.join(trunk, tasks, mp.TrainSpec.parse("scale_bias+last", "batch"))
        inputs = {task.name: part for task, part in zip(tasks, np.array_split(images, len(tasks)), strict=True)}
        targets = {name: random.integers(0, config.classes, len(part)) for name, part in inputs.items()}
        return training.fitted(joined.model, inputs, targets, adam(training.RATE), joined.losses())
    bound = mp.bind(trunk, tasks[0])
    images = keras.ops.convert_to_tensor(images)
    if form == "folded":
        predict = compiled(mp.fold(bound).model, max_parts=1)
        return lambda: np.asarray(predict([images], []))
    bank = mp.Bank(trunk, capacity=batch, classes=config.classes)
    for i in range(batch):
        bank.add(patch_of(bound, i))
    bank.warm([batch])
    names = ["task0"] * batch if form == "bank, one task" else [f"task{i}" for i in range(batch)]
    for _ in range(TIMES):  # Then the one task is folded.
        bank(images, names)
    return lambda: np.asarray(bank(images, names))


def _report(results: dict, folder: Path):
    """Writes the results so far, and prints the newest table."""
    columns = {
        "form": "{form}",
        "ms": "{ms:.2f}",
        "quartiles": "{ms_p25:.2f} to {ms_p75:.2f}",
        "images/s": "{images_per_second:.0f}",
        "first result after (s)": "{first_s}",
        "rounds": "{rounds}",
    }
    parts: list = ["\n".join(sorted({f"`{each['form']}`: {each['reason']}." for each in results["not_run"]}))]
    for (kind, batch), rows in grouped(results["rows"], "kind", "batch").items():
        parts += [f"## {kind}, batch {batch}", table(rows, columns)]
    title = f"{results['trunk']} at {results['image_size']} px on one device"
    write_suite(folder, "gpu", title, results, parts, show=-1)
