"""The way of an image from a JPEG file to a batch: what each stage costs, beside a training step."""

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.data.augment import augmenter
from model_patch.data.decoding import decode
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.report.table import table
from model_patch.files import as_path
from model_patch.training.adam import adam

_logger = logging.getLogger(__name__)

BATCH = 32
"""Images in a training step."""

RATIOS = (2, 4, 8)
"""A JPEG decoder skips work where only each second, fourth or eighth pixel is wanted."""


def run(config: ConfigDict, workdir: str | Path):
    """Times the stages, and writes `data.json` and `data.md` into the workdir.

    CPU time is what counts where decoding and training share the cores: while the cores are busy, the input slows a step
    down by at most the ratio of their CPU times.

    Args:
        config: see `configs/benchmark.py`; `data_sides`, `data_size`, `data_images`, `data_seconds`, `trunk`, `kinds`, `classes`.
        workdir: folder for the files.
    """
    results = new_results(trunk=config.trunk, image_size=config.data_size)
    results["step_cpu_ms"] = _step_cpu(config)
    for side in config.data_sides:
        for stage, cpu_ms in _stages(config, side).items():
            row = {
                "side": side,
                "stage": stage,
                "cpu_ms": round(cpu_ms, 3),
                "images_per_cpu_second": round(1e3 / cpu_ms, 1),
            }
            results["rows"].append(row | {"of_step": round(cpu_ms / results["step_cpu_ms"], 4)})
            _logger.info("%d px, %s: %.2f ms", side, stage, cpu_ms)
    columns = {
        "photograph (px)": "{side}",
        "stage": "{stage}",
        "CPU time (ms)": "{cpu_ms:.2f}",
        "images per CPU second": "{images_per_cpu_second:,.0f}",
        "of a step's": "{of_step:.1%}",
    }
    title = f"From JPEG files to {config.data_size} px"
    note = (
        f"`of a step's`: of the CPU time per image of a training step of {config.kinds}+last on {config.trunk}, "
        f"{results['step_cpu_ms']:.1f} ms. Medians of CPU time per image."
    )
    write_suite(as_path(workdir), "data", title, results, [table(results["rows"], columns), note])


def _stages(config: ConfigDict, side: int) -> dict[str, float]:
    """Returns the CPU milliseconds per image of each stage."""
    import tensorflow as tf

    prepare = mp.Preprocessing(config.data_size, "tf")
    augment = augmenter("crop+flip")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), config.data_images, side)
        # As tensors: what a function computes of a constant TensorFlow computes once.
        contents = [tf.constant(Path(path).read_bytes()) for path in paths]
        files = [tf.constant(path) for path in paths]
        reader = traced(lambda each: decode(each, *prepare.decoding))
        decoded = [reader(each) for each in contents]
        seeds = [tf.constant(i, "int64") for i in range(len(paths))]

        calls: dict[str, tuple[Callable, list[tuple]]] = {
            "read": (traced(tf.io.read_file), [(file,) for file in files]),
            "decode": (reader, [(each,) for each in contents]),
            "decode whole": (traced(decode), [(each,) for each in contents]),
        }
        left, height = side // 8, side * 3 // 4
        window = traced(lambda each: tf.io.decode_and_crop_jpeg(each, (0, left, height, height), 3))
        calls["decode the central square"] = (window, [(each,) for each in contents])
        for ratio in RATIOS:
            if side // ratio >= config.data_size:
                reduced = traced(lambda each, ratio=ratio: tf.io.decode_jpeg(each, 3, ratio))
                calls[f"decode at 1/{ratio}"] = (reduced, [(each,) for each in contents])
        calls["resize"] = (traced(prepare.resize), [(each,) for each in decoded])
        calls["crop, flip and resize"] = (
            traced(lambda image, seed: prepare.resize(augment(image, seed))),
            list(zip(decoded, seeds, strict=True)),
        )
        calls["all, as in tests"] = (
            traced(lambda path: prepare(decode(tf.io.read_file(path), *prepare.decoding))),
            [(file,) for file in files],
        )
        return _cpu_times(calls, config.data_seconds)


def traced(function: Callable) -> Callable:
    """Returns a function of TensorFlow's that takes images of all sizes."""
    import tensorflow as tf

    return tf.function(function, reduce_retracing=True)


def _cpu_times(calls: Mapping[str, tuple[Callable, list[tuple]]], seconds: float) -> dict[str, float]:
    """Returns the median CPU milliseconds of a call over its arguments; the calls take turns, at least three."""
    for function, arguments in calls.values():
        function(*arguments[0])
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for i in itertools.count():
        if i >= 3 and time.perf_counter() - begin > seconds:
            return {name: float(np.median(each)) for name, each in times.items()}
        for name, (function, arguments) in calls.items():
            start = time.process_time()
            for each in arguments:
                function(*each)
            times[name].append(1e3 * (time.process_time() - start) / len(arguments))
    raise AssertionError


def write_photographs(folder: Path, number: int, side: int) -> list[str]:
    """Writes JPEG files of 3 : 4, `side` pixels wide, with coarse shapes and fine noise; returns their paths."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    paths = [os.fspath(folder / f"{i}.jpg") for i in range(number)]
    for path in paths:
        coarse = tf.image.resize(random.uniform(0, 255, (12, 16, 3)), (side * 3 // 4, side), "bicubic").numpy()
        image = np.clip(coarse + random.normal(0, 6, coarse.shape), 0, 255).astype("uint8")
        tf.io.write_file(path, tf.io.encode_jpeg(image, quality=90))
    return paths


def _step_cpu(config: ConfigDict) -> float:
    """Returns the CPU milliseconds per image of a training step."""
    trunk = mp.open_trunk(config.trunk, config.data_size)
    task = mp.Task("task", tuple(map(str, range(config.classes))), trunk.preprocessing)
    bound = mp.bind(trunk, task, mp.TrainSpec.parse(f"{config.kinds}+last", "frozen"))
    bound.model.compile(adam(1e-3), loss=task.loss(), metrics=task.metrics(), jit_compile=False)
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (BATCH, config.data_size, config.data_size, 3)).astype("float32")
    labels = random.integers(0, config.classes, BATCH)
    times = _cpu_times({"step": (bound.model.train_on_batch, [(images, labels)])}, config.data_seconds)
    return times["step"] / BATCH
