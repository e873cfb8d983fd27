"""LoRA: patches against low-rank adapters of about the same number of parameters, trained by the same recipe but for the rate.

Form | What is trained | Serving a batch of many tasks
-----|-----------------|------------------------------
`last` | the last layer | each image's own last layer
`scale_bias+last` | a patch and the last layer | a bank
`lora` | adapters of the rank that comes nearest to the patch's number of parameters (Hu et al. 2021), by Keras' `enable_lora`, and the last layer | each image's own adapters beside the trunk's layers, and its own last layer
`peft` | the same by PEFT on the same net in PyTorch, see `lora_torch`: a vision transformer, where PEFT is installed | each image's own adapters by PEFT's `adapter_names`, and its own last layer

Adapters are on the query and value projections of attention or on the latter, or else on every convolution of one pixel and
every dense layer. Their learning rate is the one of `lora_rates` with the highest test accuracy for the first seed: a choice
in their favour.
"""

import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import ModelPatchError, require_seeds
from model_patch.experiments.benchmark import lora_torch
from model_patch.experiments.benchmark.forms import compiled, make_form
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import interleaved, milliseconds
from model_patch.experiments.benchmark.training import RATE, fitted
from model_patch.experiments.report.table import table
from model_patch.experiments.workdir import Workdir
from model_patch.files import as_path
from model_patch.graph.rewrite import rewrite, walk
from model_patch.trunks.weights import load_weights, save_weights

_logger = logging.getLogger(__name__)

CONVNEXT = "convnext"
"""Among the trunks: a small ConvNeXt, which the suite trains on `lora_pretrain_data` first."""

CONVNEXT_SIZE = 32

FORMS = ("last", "scale_bias+last", "lora", "peft")
ADAPTERS = FORMS[2:]

BATCH = 32
"""Images of a step."""

TASKS = 64
"""Tasks of a batch that is timed, each with one image."""


class Absolute(mp.Recipe):
    """A recipe whose rate is absolute: the half of an adapter that begins at zero has no size for a rate to be relative to."""

    def is_relative(self, train_spec: mp.TrainSpec) -> bool:
        return False


def run(config: ConfigDict, workdir: str | Path):
    """Trains all forms with all seeds, times them, and writes `lora.json` and `lora.md` into the workdir.

    The same command resumes: each training is written to `results.json` of a folder per trunk as soon as it is finished.

    Args:
        config: see `configs/benchmark.py`; the fields `lora_...`, `rounds`.
        workdir: folder for the files.

    Raises:
        ModelPatchError: a trunk or the data cannot be opened, or a trunk has no layer for adapters.
    """
    require_seeds(config.lora_seeds)
    workdir = as_path(workdir)
    results = new_results(data=config.lora_data, epochs=config.lora_epochs, pretrained={}, not_run=[])
    for i, name in enumerate(config.lora_trunks):
        facts = {field: config[f"lora_{field}"] for field in ("data", "train_images", "epochs")}
        if name == CONVNEXT:
            trunk = mp.Trunk(convnext(), CONVNEXT, mp.Preprocessing(CONVNEXT_SIZE, "none"))
            pretraining = {field: config[f"lora_pretrain_{field}"] for field in ("data", "images", "epochs")}
            accuracy = _pretrain(trunk, config, Workdir(workdir / "pretrained", pretraining))
            results["pretrained"][name] = pretraining | accuracy
        else:
            trunk = mp.open_trunk(name, config.lora_size)
        reason = lora_torch.why_not(trunk)
        if reason:
            results["not_run"].append({"trunk": trunk.model.name, "form": "peft", "reason": reason})
        facts |= {"trunk": name, "image_size": config.lora_size}
        results["rows"] += _rows(config, trunk, Workdir(workdir / f"trunk_{i}", facts), FORMS[: -1 if reason else None])
        _logger.info("%s: done", name)
    columns = {
        "trunk": "{trunk}",
        "size": "{image_size}",
        "form": "{form}",
        "parameters without head": "{parameters:,}",
        "float32 bytes": "{bytes:,}",
        "test accuracy": "{accuracy:.4f} ± {deviation:.4f}",
        "learning rate": "{learning_rate:g}",
        "step / patch's step": "{step_ratio:.2f}",
        f"batch of {TASKS} tasks / net of one task": "{serving_ratio:.2f}",
    }
    note = (
        f"Mean and standard deviation over the seeds {', '.join(map(str, config.lora_seeds))}; the last layer alone is solved "
        f"without a seed. Times: medians of the ratios of each round; a step has {BATCH} images, a batch {TASKS}, each of a "
        "task of its own. The net of one task is a folded patch, or the trunk with its adapters merged. What PEFT does is "
        "relative to PyTorch's step and net."
    )
    not_run = "\n".join(f"`{each['form']}`, {each['trunk']}: {each['reason']}." for each in results["not_run"])
    title = f"Patches and low-rank adapters: {config.lora_data}, {config.lora_epochs} epochs"
    write_suite(workdir, "lora", title, results, [table(results["rows"], columns), note, not_run])


def _rows(config: ConfigDict, trunk: mp.Trunk, workdir: Workdir, forms: Sequence[str]) -> list[dict]:
    data = mp.open_data(config.lora_data)
    task = mp.Task(data.name, data.labels, trunk.preprocessing)
    counts = mp.bind(trunk, task, "scale_bias+last").counts()
    size = counts.patch
    makers = {
        "last": functools.partial(mp.bind, trunk, task, "last"),
        "scale_bias+last": functools.partial(mp.bind, trunk, task, "scale_bias+last"),
        "lora": functools.partial(lora, trunk, task, size),
    }

    def train(form: str, seed: int, rate: float) -> list[dict]:
        recipe = (Absolute if form in ADAPTERS else mp.Recipe)(
            epochs=config.lora_epochs,
            batch_size=BATCH,
            learning_rate=rate,
            max_train_images=config.lora_train_images,
        )
        if form == "peft":
            found = lora_torch.train(trunk, data, recipe, size, seed)
        else:
            bound = makers[form](seed=seed)
            mp.fit(bound, data, recipe, seed=seed)
            found = mp.evaluate(bound, data, recipe)["accuracy"]
        _logger.info("%s, %s, seed %d, rate %g: %.4f", trunk.model.name, form, seed, rate, found)
        return [{"accuracy": found}]

    first, *others = config.lora_seeds
    rates = {"last": 0.0, "scale_bias+last": 0.0}
    for form in forms[2:]:
        tried = [{"form": form, "rate": rate, "seed": first} for rate in config.lora_rates]
        rows = workdir.run_rows({}, tried, train)["rows"]
        searched = [row for row in rows if any(key.items() <= row.items() for key in tried)]
        rates[form] = max(searched, key=lambda row: row["accuracy"])["rate"]
    keys = [{"form": form, "rate": rates[form], "seed": seed} for seed in (first, *others) for form in forms[1:]]
    trained = workdir.run_rows({}, [{"form": "last", "rate": 0.0, "seed": first}, *keys], train)["rows"]

    def time_forms(**_) -> list[dict]:
        return [{"times": _times(config, makers, trunk, len(data.labels), size if "peft" in forms else 0)}]

    key = {"form": "times of " + ", ".join(forms)}
    (timed,) = (row for row in workdir.run_rows({}, [key], time_forms)["rows"] if key.items() <= row.items())
    parameters = {
        "last": 0,
        "scale_bias+last": size,
        "lora": sum(int(np.prod(v.shape)) for v in makers["lora"]().features.trainable_variables),
    }
    if "peft" in forms:
        parameters["peft"] = lora_torch.num_parameters(lora_torch.adapted(trunk, size))
    rows = []
    for form in forms:
        found = [row["accuracy"] for row in trained if (row["form"], row.get("rate")) == (form, rates[form])]
        rows.append(
            {
                "trunk": trunk.model.name,
                "image_size": trunk.preprocessing.image_size,
                "form": form,
                "parameters": parameters[form],
                "bytes": 4 * (parameters[form] + counts.head),
                "learning_rate": rates[form],
                "accuracies": found,
                "accuracy": float(np.mean(found)),
                "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0,
                **timed["times"][form],
            }
        )
    return rows


def _times(
    config: ConfigDict, makers: Mapping[str, Callable], trunk: mp.Trunk, classes: int, peft: int
) -> dict[str, dict]:
    """Returns the time of a training step and of a batch of `TASKS` tasks by form; PEFT's with up to this many parameters, unless 0."""
    size, random = trunk.preprocessing.image_size, np.random.default_rng(0)
    images = random.uniform(-1, 1, (TASKS, size, size, 3)).astype("float32")
    labels = random.integers(0, classes, BATCH)

    steps = {
        form: fitted(make(seed=0).model, images[:BATCH], labels, keras.optimizers.Adam(RATE))
        for form, make in makers.items()
    }
    if peft:
        steps |= lora_torch.step_forms(trunk, peft, images[:BATCH], labels, classes)
    stepped = interleaved(steps, config.rounds, 2, config.lora_seconds)
    patched = makers["scale_bias+last"](seed=0)
    batches = {
        "last": _mixed_with_heads(makers["last"](seed=0), classes),
        "scale_bias+last": make_form("bank", patched, TASKS),
        "lora": _mixed_with_heads(makers["lora"](seed=0), classes),
        "folded": make_form("folded", patched),
    }
    calls: dict[str, Callable] = {
        form: functools.partial(predict, images, np.arange(TASKS)) for form, predict in batches.items()
    }
    if peft:
        calls |= lora_torch.batch_forms(trunk, peft, images, classes)
    served = interleaved(calls, config.rounds, 2, config.lora_seconds)
    bases = dict.fromkeys(makers, ("scale_bias+last", "folded"))
    if peft:
        bases["peft"] = lora_torch.PATCH, lora_torch.MERGED
    return {
        form: {
            "step_ms": milliseconds(stepped[form]),
            "step_ratio": float(np.median(stepped[form] / stepped[patch])),
            "serving_ms": milliseconds(served[form]),
            "serving_ratio": float(np.median(served[form] / served[one_task])),
            "patch_step_ms": milliseconds(stepped[patch]),
            "one_task_ms": milliseconds(served[one_task]),
            "step_rounds": len(stepped[form]),
            "serving_rounds": len(served[form]),
        }
        for form, (patch, one_task) in bases.items()
    }


class Adapted(keras.layers.Layer):
    """A layer and the adapters of many tasks beside it: `layer(x) + up[task] (down[task] x)` for each image of a batch.

    An adapter belongs before the activation. To add it after costs the same, and nothing but time is measured here.
    """

    _mp_takes_extra = True

    def __init__(self, layer: keras.layers.Layer, tasks: int):
        super().__init__(name=layer.name)
        self.layer, self.tasks = layer, tasks

    def build(self, *_):
        # Kernels are (inputs, outputs), of convolutions (1, 1, inputs, outputs), of attention (inputs, heads, outputs).
        is_convolution = isinstance(self.layer, keras.layers.Conv2D)
        *inner, outputs = self.layer.kernel.shape[2 if is_convolution else 0 :]
        self.down = self.add_weight(shape=(self.tasks, *inner, self.layer.lora_rank), trainable=False)
        self.up = self.add_weight(shape=(self.tasks, self.layer.lora_rank, outputs), trainable=False)

    def call(self, x, extra):
        down, up = (keras.ops.take(table, extra[0], axis=0) for table in (self.down, self.up))
        heads, space = "h" * (len(down.shape) - 3), "xy"[: len(x.shape) - 2]
        inner = keras.ops.einsum(f"b{space}i,bi{heads}r->b{space}{heads}r", x, down)
        return self.layer(x) + keras.ops.einsum(f"b{space}{heads}r,bro->b{space}{heads}o", inner, up)

    def compute_output_spec(self, x, extra):
        return self.layer.compute_output_spec(x)


def mixed(features: keras.Model, tasks: int) -> keras.Model:
    """Returns a net with adapters as a model of images and the number of each one's task, int32, in 0..tasks-1."""

    def replace(path: str, layer: keras.layers.Layer) -> keras.layers.Layer:
        return Adapted(layer, tasks) if getattr(layer, "lora_enabled", False) else layer

    return rewrite(features, replace, extra=[keras.Input((), dtype="int32", name="tasks")])


def _mixed_with_heads(bound: mp.BoundTask, classes: int) -> Callable:
    net = mixed(bound.features, TASKS)
    heads = np.random.default_rng(0).normal(size=(TASKS, net.output.shape[-1], classes)).astype("float32")
    logits = keras.ops.einsum("bi,bio->bo", net.output, keras.ops.take(heads, net.inputs[1], axis=0))
    predict = compiled(keras.Model(net.inputs, logits))
    return lambda images, tasks: np.asarray(predict(images, tasks.astype("int32")))


def lora(trunk: mp.Trunk, task: mp.Task, size: int, seed: int = 0) -> mp.BoundTask:
    """Binds a task with low-rank adapters in place of a patch, and a last layer, for training and evaluation.

    Args:
        trunk, task, seed: as for `bind`.
        size: number of parameters that the adapters should have.

    Raises:
        ModelPatchError: the trunk has neither attention nor convolutions of one pixel nor dense layers.
    """
    bound = mp.bind(trunk, task, mp.TrainSpec.parse("full", "frozen"), seed=seed)
    layers = dict(walk(bound.features))
    attention = {
        name: [layer for path, layer in layers.items() if path.rpartition("/")[2] == name]
        for name in ("query", "value")
    }
    pointwise = [
        layer
        for layer in layers.values()
        if type(layer) is keras.layers.Dense
        or (type(layer) is keras.layers.Conv2D and layer.kernel_size == layer.strides == (1, 1) and layer.groups == 1)
    ]
    for layer in layers.values():
        layer.trainable = False
    options = [attention["query"] + attention["value"], attention["value"]] if attention["value"] else [pointwise]
    if not options[-1]:
        raise ModelPatchError(f"{trunk.name} has no layer for low-rank adapters: choose another of --lora_trunks")
    # For each rank, an adapter of Keras has a value for each input (and head) and one for each output.
    by_rank = [
        sum(int(np.prod(layer.kernel.shape[:-1])) + layer.kernel.shape[-1] for layer in each) for each in options
    ]
    ranks = [max(1, round(size / count)) for count in by_rank]
    _, rank, chosen = min(
        zip([abs(r * count - size) for r, count in zip(ranks, by_rank, strict=True)], ranks, options, strict=True),
        key=lambda each: each[0],
    )
    for layer in chosen:
        layer.trainable = True
        layer.enable_lora(rank)
        if layer.bias is not None:
            layer.bias.trainable = False
    return bound


def _pretrain(trunk: mp.Trunk, config: ConfigDict, workdir: Workdir) -> dict:
    """Trains a trunk on `lora_pretrain_data`, unless an earlier run did; returns its test accuracy there in 0..1."""
    path = workdir.path / "trunk.safetensors"

    def train(seed: int) -> list[dict]:
        data = mp.open_data(config.lora_pretrain_data)
        bound = mp.bind(trunk, mp.Task(data.name, data.labels, trunk.preprocessing), "full", seed=seed)
        recipe = Absolute(
            epochs=config.lora_pretrain_epochs,
            batch_size=BATCH,
            learning_rate=1e-3,
            max_train_images=config.lora_pretrain_images,
            max_test_images=config.lora_pretrain_images // 2,
        )
        mp.fit(bound, data, recipe, seed=seed)
        for key, variable in trunk.variables().items():
            variable.assign(keras.ops.copy(bound.patch_variables[key]))
        save_weights(trunk, path)
        return [{"test_accuracy": mp.evaluate(bound, data, recipe)["accuracy"]}]

    (row,) = workdir.run_rows({}, [{"seed": 0}], train)["rows"]
    load_weights(trunk, path)
    return row


def convnext() -> keras.Model:
    """Returns a random ConvNeXt of 3.4 million parameters (Liu et al. 2022; the sizes are those of timm's `convnext_atto`)."""
    make = sys.modules[keras.applications.ConvNeXtTiny.__module__].ConvNeXt
    sizes = {"depths": (2, 2, 6, 2), "projection_dims": (40, 80, 160, 320)}
    shape = (CONVNEXT_SIZE, CONVNEXT_SIZE, 3)
    return make(**sizes, include_top=False, pooling="avg", input_shape=shape, name=CONVNEXT)
