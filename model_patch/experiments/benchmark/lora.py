"""LoRA: patches against low-rank adapters of about the same number of parameters, trained by the same recipe.

Form | What is trained
-----|---------------
`last` | the last layer
`scale_bias+last` | a patch
`lora` | adapters of the rank that comes nearest to the patch's number of parameters (Hu et al. 2021), by Keras' `enable_lora`, and the last layer: on the query and value projections of attention or on the latter, or else on every convolution of one pixel

The adapters' learning rate is the one of `lora_rates` with the highest test accuracy for the first seed: a choice in their favour.
"""

import functools
import logging
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import ModelPatchError, require_seeds
from model_patch.experiments.benchmark.output import new_results, write_suite
from model_patch.experiments.benchmark.timing import interleaved, milliseconds
from model_patch.experiments.report.table import table
from model_patch.files import as_path
from model_patch.graph.rewrite import walk

_logger = logging.getLogger(__name__)

VIT = "vit"
"""Among the trunks: a small transformer, which the suite trains on `lora_pretrain_data` first."""

VIT_SIZE = 32

FORMS = ("last", "scale_bias+last", "lora")


def run(config: ConfigDict, workdir: str | Path):
    """Trains all forms with all seeds and writes `lora.json` and `lora.md` into the workdir.

    Args:
        config: see `configs/benchmark.py`; the fields `lora_...`, `rounds`.
        workdir: folder for the files.

    Raises:
        ModelPatchError: a trunk or the data cannot be opened, or a trunk has no layer for adapters.
    """
    require_seeds(config.lora_seeds)
    data = mp.open_data(config.lora_data)
    results = new_results(data=config.lora_data, epochs=config.lora_epochs, pretrained={})
    for name in config.lora_trunks:
        if name == VIT:
            trunk, accuracy = pretrained_vit(config)
            results["pretrained"][name] = {"data": config.lora_pretrain_data, "test_accuracy": accuracy}
        else:
            trunk = mp.open_trunk(name)
        results["rows"] += _rows(config, name, trunk, data)
        _logger.info("%s: done", name)
    columns = {
        "trunk": "{trunk}",
        "form": "{form}",
        "parameters without head": "{parameters:,}",
        "float32 bytes": "{bytes:,}",
        "test accuracy": "{accuracy:.4f} ± {deviation:.4f}",
        "step (ms)": "{step_ms:.1f}",
    }
    note = f"Mean and standard deviation over the seeds {', '.join(map(str, config.lora_seeds))}; a step has {BATCH} images."
    title = f"Patches and low-rank adapters: {config.lora_data}, {config.lora_epochs} epochs"
    write_suite(as_path(workdir), "lora", title, results, [table(results["rows"], columns), note])


BATCH = 64


def _rows(config: ConfigDict, name: str, trunk: mp.Trunk, data: mp.ImageData) -> list[dict]:
    task = mp.Task(data.name, data.labels, trunk.preprocessing)
    size = mp.bind(trunk, task, "scale_bias+last").counts().patch
    makers = {
        "last": functools.partial(mp.bind, trunk, task, "last"),
        "scale_bias+last": functools.partial(mp.bind, trunk, task, "scale_bias+last"),
        "lora": functools.partial(lora, trunk, task, size),
    }

    def accuracy(form: str, seed: int, rate: float = 0.0) -> float:
        keras.utils.set_random_seed(seed)
        recipe = mp.Recipe(epochs=config.lora_epochs, batch_size=BATCH, learning_rate=rate)
        bound = makers[form](seed=seed)
        mp.fit(bound, data, recipe, seed=seed)
        found = mp.evaluate(bound, data, recipe)["accuracy"]
        _logger.info("%s, %s, seed %d, rate %g: %.4f", name, form, seed, rate, found)
        return found

    first = config.lora_seeds[0]
    tried = {rate: accuracy("lora", first, rate) for rate in config.lora_rates}
    best = max(tried, key=lambda rate: tried[rate])
    rows = []
    for form in FORMS:
        rate = best if form == "lora" else 0.0
        found = [
            tried[rate] if form == "lora" and seed == first else accuracy(form, seed, rate)
            for seed in config.lora_seeds
        ]
        bound = makers[form](seed=first)
        parameters = sum(int(np.prod(v.shape)) for v in bound.features.trainable_variables) if form != "last" else 0
        rows.append(
            {
                "trunk": name,
                "form": form,
                "parameters": parameters,
                "bytes": 4 * (parameters + bound.counts().head),
                "learning_rate": rate,
                "accuracies": found,
                "accuracy": float(np.mean(found)),
                "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0,
            }
        )
    steps = {form: _step(makers[form](seed=first), len(data.labels)) for form in FORMS}
    for row, times in zip(rows, interleaved(steps, config.rounds, 2, config.lora_seconds).values(), strict=True):
        row["step_ms"] = milliseconds(times)
    return rows


def _step(bound: mp.BoundTask, classes: int):
    """Returns one training step on a batch of random images."""
    rng, size = np.random.default_rng(0), bound.task.preprocessing.image_size
    images = rng.uniform(-1, 1, (BATCH, size, size, 3)).astype("float32")
    labels = rng.integers(0, classes, BATCH)
    bound.model.compile(keras.optimizers.Adam(1e-4), bound.task.loss(), jit_compile=False)
    return functools.partial(bound.model.train_on_batch, images, labels)


def lora(trunk: mp.Trunk, task: mp.Task, size: int, seed: int = 0) -> mp.BoundTask:
    """Binds a task with low-rank adapters in place of a patch, and a last layer, for training and evaluation.

    Args:
        trunk, task, seed: as for `bind`.
        size: number of parameters that the adapters should have.

    Raises:
        ModelPatchError: the trunk has neither attention nor convolutions of one pixel.
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
        if type(layer) is keras.layers.Conv2D and layer.kernel_size == (1, 1) and layer.groups == 1
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


def pretrained_vit(config: ConfigDict) -> tuple[mp.Trunk, float]:
    """Returns a small transformer, trained on `lora_pretrain_data`, and its test accuracy there in 0..1."""
    keras.utils.set_random_seed(0)
    data = mp.open_data(config.lora_pretrain_data)
    trunk = mp.Trunk(vit(), VIT, mp.Preprocessing(VIT_SIZE, "tf"), prefix_tokens=0)
    bound = mp.bind(trunk, mp.Task(data.name, data.labels, trunk.preprocessing), "full")
    recipe = mp.Recipe(epochs=config.lora_pretrain_epochs, batch_size=BATCH, learning_rate=1e-3)
    mp.fit(bound, data, recipe)
    accuracy = mp.evaluate(bound, data, recipe)["accuracy"]
    for key, variable in trunk.variables().items():
        variable.assign(keras.ops.copy(bound.patch_variables[key]))
    return trunk, accuracy


def vit(patch: int = 4, width: int = 64, heads: int = 4, blocks: int = 4) -> keras.Model:
    """Returns a random vision transformer without class token (Dosovitskiy et al. 2021), images to tokens."""
    layers = keras.layers
    images = keras.Input((VIT_SIZE, VIT_SIZE, 3))
    x = layers.Conv2D(width, patch, patch, name="patches")(images)
    # Of zero-padded patches a depthwise convolution tells the place (Chu et al. 2021), in place of learnt positions.
    x = layers.Add(name="place_add")([x, layers.DepthwiseConv2D(3, padding="same", name="place")(x)])
    x = layers.Reshape(((VIT_SIZE // patch) ** 2, width), name="tokens")(x)
    for i in range(blocks):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block_{i}_norm1")(x)
        y = layers.MultiHeadAttention(heads, width // heads, name=f"block_{i}_attention")(y, y)
        x = layers.Add(name=f"block_{i}_add1")([x, y])
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block_{i}_norm2")(x)
        y = layers.Dense(4 * width, activation="gelu", name=f"block_{i}_expand")(y)
        x = layers.Add(name=f"block_{i}_add2")([x, layers.Dense(width, name=f"block_{i}_project")(y)])
    return keras.Model(images, layers.LayerNormalization(epsilon=1e-6, name="norm")(x), name="vit")
