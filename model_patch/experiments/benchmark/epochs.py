"""Whole epochs of training on image files, as `fit` runs them: what caching saves, and how long a step waits for its images."""

import logging
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.data.folder import open_folder
from model_patch.data.pipeline import batches
from model_patch.experiments.report.table import Table, table
from model_patch.spec import parse
from model_patch.training.fit import features_and_head
from model_patch.training.loop import run_epochs

_logger = logging.getLogger(__name__)

FILE_SIDE = 256
"""Height and width of the image files, in pixels."""

BATCH = 32

EPOCHS = {
    "last, on images": ("last", True, False),
    "last, features kept": ("last", True, True),
    "scale_bias+last, images kept": ("scale_bias+last", True, False),
    "scale_bias+last, from files": ("scale_bias+last", False, False),
}
"""Forms: what is trained, whether decoded images are cached, whether the trunk's features are."""


def epochs_of(config: ConfigDict) -> list[dict]:
    """Trains each of `config.training_epochs_of` for some epochs.

    Args:
        config: see `configs/benchmark.py`; `training_epoch_images`, `training_epochs`, and the first of `training_trunks` and
            `training_sizes`.

    Returns:
        A row for each: `form`, `first_s` (seconds of the first epoch, with what is computed or decoded once, and with tracing),
        `epoch_s` (median of the others), `images_per_second`, `input_wait` (median share), and `ratio` to the first form.
    """
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), config.training_epoch_images)
        data = open_folder(parse(f"folder:{folder}"))
        for form in config.training_epochs_of:
            rows.append({"form": form, **_epochs(config, data.train, len(data.labels), *EPOCHS[form])})
            rows[-1]["ratio"] = round(rows[-1]["epoch_s"] / rows[0]["epoch_s"], 5)
            _logger.info("%s: %.3f s per epoch", form, rows[-1]["epoch_s"])
    return rows


def write_images(folder: Path, number: int):
    """Writes JPEG files of two classes: `number` to train on and a few to test on."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    for i in range(number + 4):
        coarse = random.integers(0, 256, (1, 24, 24, 3)).astype("float32")
        image = tf.clip_by_value(tf.image.resize(coarse, (FILE_SIDE, FILE_SIDE), "bicubic"), 0, 255)[0]
        place = folder / ("train" if i < number else "test") / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        tf.io.write_file(os.fspath(place / f"{i}.jpg"), tf.io.encode_jpeg(tf.cast(image, "uint8")))


def _epochs(config: ConfigDict, split, classes: int, train: str, keep_images: bool, keep_features: bool) -> dict:
    trunk = mp.open_trunk(config.training_trunks[0], config.training_sizes[0])
    task = mp.Task("task", tuple(map(str, range(classes))), trunk.preprocessing)
    bound = mp.bind(trunk, task, mp.TrainSpec.parse(train, "frozen"))
    recipe = mp.Recipe(epochs=config.training_epochs, batch_size=BATCH)

    def images(epochs: range = range(1)):
        return batches(split, trunk.preprocessing, BATCH, shuffle_seed=0, epochs=epochs, cache=keep_images)

    start, model, stream = time.perf_counter(), bound.model, images
    if keep_features:
        stream, model = features_and_head(bound, images(), BATCH, split.num_images, seed=0)
    before = time.perf_counter() - start
    history = run_epochs(bound, model, stream, split.num_images, recipe, one_call_per_epoch=keep_features).history
    seconds = float(np.median(history["seconds"][1:]))
    return {
        "first_s": round(before + history["seconds"][0], 3),
        "epoch_s": round(seconds, 5),
        "images_per_second": round(split.num_images / seconds, 1),
        "input_wait": round(float(np.median(history["input_wait"][1:])), 4),
    }


def epochs_table(rows: list[dict]) -> Table:
    """Returns the table of the rows."""
    columns = {
        "form": "{form}",
        "first epoch (s)": "{first_s:.1f}",
        "each further (s)": "{epoch_s:.4g}",
        f"of {rows[0]['form']}": "{ratio:.4f}",
        "images/s": "{images_per_second:.0f}",
        "waits for input": "{input_wait:.1%}",
    }
    return table(rows, columns)
