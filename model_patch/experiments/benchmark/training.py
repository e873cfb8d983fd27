"""Training: a step of each way to train a task, by this package, by plain Keras, and by PyTorch if it is installed.

Form | What is trained
-----|---------------
`last` | the last layer, on images
`..., remat` | the same with most feature maps recomputed for their gradients, see `model_patch.graph.remat`
`last, cached` | the last layer, on features that were computed before
`features` | nothing: the forward pass that computes the features, once per image
`features, litert`, `onnx`, `torch` | the same, with a last layer, by the forms of `forms` of these names
`bias+last`, `scale_bias+last`, `depthwise+last` | patches, with the trunk's statistics
`scale_bias+last, batch` | scales and biases, with the statistics of the batch
`full` | a net of its own
`keras ...` | Keras' own layers with their `trainable` flags: all; batch norms and last layer, as `scale_bias+last, batch`; the last layer
`torch ...` | the same net of torchvision, `requires_grad` likewise, `frozen` with norms in inference mode; channels last, which is faster on CPUs, or `channels first`, PyTorch's default

The optimizer is Adam everywhere, in this package's forms as the package trains with it. TensorFlow and PyTorch compile nothing by
XLA or TorchInductor.
"""

import functools
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import require_each_once, require_known
from model_patch.experiments.benchmark import forms, torch_nets
from model_patch.experiments.benchmark.epochs import EPOCHS, epochs_of, epochs_table
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import (
    forget_peak,
    in_own_process,
    interleaved,
    peak_bytes,
    resident_bytes,
    spread,
)
from model_patch.experiments.report.output import new_axes
from model_patch.experiments.report.sample import grouped
from model_patch.experiments.report.table import Table, table
from model_patch.files import as_path
from model_patch.training.adam import adam
from model_patch.training.replicated import predictor

_logger = logging.getLogger(__name__)

Step = Callable[[], object]
"""One step on one batch, always the same, which waits for its result."""

RATE = 1e-4
"""Learning rate of all forms."""

BASE = "keras full"
"""The form that the others are compared with."""

_TRAINED = {
    "last": ("last", "frozen", False),
    "bias+last": ("bias+last", "frozen", False),
    "scale_bias+last": ("scale_bias+last", "frozen", False),
    "scale_bias+last, remat": ("scale_bias+last", "frozen", True),
    "scale_bias+last, batch": ("scale_bias+last", "batch", False),
    "depthwise+last": ("depthwise+last", "frozen", False),
    "full": ("full", "batch", False),
    "full, remat": ("full", "batch", True),
}
_TORCH = (
    *("torch full", "torch scale_bias+last, batch", "torch scale_bias+last, frozen", "torch last"),
    *(f"torch {each}{torch_nets.CHANNELS_FIRST}" for each in ("full", "scale_bias+last, batch")),
)

_FEATURES = "features, "

FORMS = (
    *_TRAINED,
    "last, cached",
    "features",
    *(f"{_FEATURES}{form}" for form in ("litert", "onnx", "torch")),
    BASE,
    "keras scale_bias+last, batch",
    "keras last",
    *_TORCH,
)


def run(config: ConfigDict, workdir: str | Path):
    """Times all forms, measures memory, and writes `training.json`, `training.md` and `training.png` into the workdir.

    Args:
        config: see `configs/benchmark.py`; the fields `training_...`, `classes`, `rounds`.
        workdir: folder for the files.

    Raises:
        ModelPatchError: a form is unknown, or a trunk cannot be opened.
    """
    for name in ("training_trunks", "training_sizes", "training_batches", "training_forms"):
        require_each_once(name, config[name])
    require_known("form", (*config.training_forms, *config.training_memory_of), FORMS)
    require_known("form", config.training_epochs_of, EPOCHS)
    results = new_results(classes=config.classes, not_run=[])
    cells = itertools.product(config.training_trunks, config.training_sizes, config.training_batches)
    for trunk, size, batch in cells:
        rows = _cell(config, trunk, size, batch, results["not_run"])
        for row in rows:
            if row["form"] in config.training_memory_of:
                row["peak_bytes"] = in_own_process(_peak_memory, config.classes, trunk, size, batch, row["form"])
        results["rows"] += rows
        _report(results, as_path(workdir))
        _logger.info("%s, %d px, batch %d: done", trunk, size, batch)
    if config.training_epochs_of:
        results["epochs"] = epochs_of(config)
        _report(results, as_path(workdir))


def _cell(config: ConfigDict, trunk: str, size: int, batch: int, not_run: list[dict]) -> list[dict]:
    """Times all forms on one net, image size and batch size."""
    steps: dict[str, Step] = {}
    for form in config.training_forms:
        timed = form.removeprefix(_FEATURES)
        reason = torch_nets.why_not(trunk) if form in _TORCH else forms.why_not(timed, trunk)
        if reason:
            not_run.append({"trunk": trunk, "form": form, "reason": reason})
        else:
            steps[form] = make_step(form, trunk, size, batch, config.classes)
    seconds = interleaved(steps, config.rounds, 2, config.training_seconds)
    base = seconds.get(BASE)
    rows = []
    for form, times in seconds.items():
        row = {"trunk": trunk, "image_size": size, "batch": batch, "form": form, **spread(times)}
        row["images_per_second"] = round(batch / float(np.median(times)), 2)
        if base is not None:
            row["ratio"] = round(float(np.median(times / base)), 4)
        rows.append(row)
    return rows


def make_step(form: str, trunk: str, size: int, batch: int, classes: int) -> Step:
    """Returns a step of one form, its net with random weights.

    Args:
        form: one of `FORMS`.
        trunk: spec of the trunk.
        size: size of the images, in pixels.
        batch: number of images in a step.
        classes: number of classes.
    """
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch, size, size, 3)).astype("float32")
    labels = random.integers(0, classes, batch)
    if form in _TORCH:
        return torch_nets.train(form.removeprefix("torch "), trunk, images, labels, classes, RATE)
    opened = mp.open_trunk(trunk, size)
    if form.startswith("keras "):
        plain = _plain_keras(form.removeprefix("keras "), opened, classes)
        return fitted(plain, images, labels, keras.optimizers.Adam(RATE))
    task = mp.Task("task", tuple(map(str, range(classes))), opened.preprocessing)
    train, statistics, remat = _TRAINED.get(form, ("last", "frozen", False))
    bound = mp.bind(opened, task, mp.TrainSpec.parse(train, statistics), remat=remat)
    if form.startswith(_FEATURES):
        return functools.partial(forms.make_form(form.removeprefix(_FEATURES), bound), images, np.zeros(batch, int))
    if form == "features":
        return lambda: np.asarray(predictor(bound.features)(images))
    if form == "last, cached":
        features = bound.features.predict_on_batch(images)
        inputs = keras.Input(features.shape[1:])
        return fitted(keras.Model(inputs, bound.head(inputs)), features, labels, adam(RATE))
    return fitted(bound.model, images, labels, adam(RATE))


def fitted(model: keras.Model, images, labels, optimizer: keras.optimizers.Optimizer, loss=None, metrics=None) -> Step:
    """Returns a step of `fit` on one batch, which waits for its loss; without `loss` labels are classes."""
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    on_jax = keras.backend.backend() == "jax"
    if on_jax:
        images, labels = keras.tree.map_structure(keras.ops.convert_to_tensor, (images, labels))
    model.compile(optimizer, loss, metrics=metrics, jit_compile=on_jax)
    return lambda: model.train_on_batch(images, labels)


def _plain_keras(trained: str, trunk: mp.Trunk, classes: int) -> keras.Model:
    """Returns the trunk's net with a last layer, of Keras' own layers, in which `trained` is trainable."""
    net = trunk.model
    net.trainable = True
    for layer in net.layers:
        layer.trainable = trained == "full" or (
            trained != "last" and isinstance(layer, keras.layers.BatchNormalization)
        )
    return keras.Model(net.input, keras.layers.Dense(classes)(net.output))


def _peak_memory(classes: int, trunk: str, size: int, batch: int, form: str) -> int:
    """Returns the maximum number of bytes that steps of one form take, beside the net itself."""
    step = make_step(form, trunk, size, batch, classes)
    before = resident_bytes()
    forget_peak()
    for _ in range(4):
        step()
    return peak_bytes() - before


def _report(results: dict, folder: Path):
    """Writes the results so far, and prints the newest cell."""
    columns = {
        "form": "{form}",
        "step (ms)": "{ms:.1f}",
        "quartiles": "{ms_p25:.1f} to {ms_p75:.1f}",
        f"of {BASE}": "{ratio:.3f}",
        "images/s": "{images_per_second:.0f}",
        "peak memory (MiB)": lambda row: f"{row['peak_bytes'] / 2**20:.0f}",
    }
    parts: list[str | Table] = [
        "\n".join(sorted({f"`{each['form']}`, {each['trunk']}: {each['reason']}." for each in results["not_run"]})),
        "Peak memory: of four steps in a process of its own, beside the process with the net in it.",
    ]
    cells = grouped(results["rows"], "trunk", "image_size", "batch")
    figure, _ = new_axes(9, 0.5 + 3.2 * len(cells), len(cells))
    for axes, ((trunk, size, batch), rows) in zip(figure.axes, cells.items(), strict=True):
        title = f"{trunk} at {size} px, batch {batch}"
        parts += [f"## {title}", table(rows, columns)]
        colours = {"keras": "C1", "torch": "C2"}
        axes.barh(
            [row["form"] for row in rows],
            [row["ms"] for row in rows],
            color=[colours.get(row["form"].partition(" ")[0], "C0") for row in rows],
        )
        axes.invert_yaxis()
        axes.set(xlabel="ms per step", title=title)
    if "epochs" in results:
        parts += ["## Epochs on image files", epochs_table(results["epochs"])]
    write_suite(folder, "training", "A training step", results, parts, figure, show=-1)
