"""Pretraining: a trunk from random weights."""

import logging
from pathlib import Path

import keras
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.experiments.report.output import named
from model_patch.experiments.run import make_recipe
from model_patch.experiments.workdir import Workdir, versions
from model_patch.files import write_bytes
from model_patch.trunks.weights import save_weights

_logger = logging.getLogger(__name__)

WEIGHTS = "trunk.safetensors"
CARD = "card.md"


def pretrain(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains a whole net on one data set and writes it as a trunk.

    Writes to the workdir `trunk.safetensors`, which `keras:NAME?weights=PATH` opens, `card.md`, which documents how it was
    made, and `results.json`.

    Args:
        config: see `configs/pretrain_fashion_mnist.py`.
        workdir: folder for all files.

    Returns:
        The contents of `results.json`: `trunk`, `data`, `image_size`, `versions`, `test_accuracy` (0..1), `train_seconds`.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    trunk = mp.open_trunk(config.trunk, config.image_size)
    data = mp.open_data(config.data)
    data = data.with_validation(config.validation_fraction, config.max_train_images or None)
    recipe = make_recipe(config, data.augmentation)
    task = mp.Task(data.name, data.labels, trunk.preprocessing)
    folder = Workdir(workdir, config.to_dict())
    if folder.results():
        _logger.info("%s holds this run already: nothing to do", folder.path)
        return folder.results()

    keras.utils.set_random_seed(config.seed)
    bound = mp.bind(trunk, task, "full", seed=config.seed, momentum=config.momentum)
    log_dir, checkpoint = folder.path / "tensorboard", folder.checkpoint("trunk")
    seconds = mp.fit(bound, data, recipe, seed=config.seed, log_dir=log_dir, checkpoint=checkpoint).seconds
    accuracy = mp.evaluate(bound, data, recipe)["accuracy"]
    for key, variable in trunk.variables().items():
        variable.assign(keras.ops.copy(bound.patch_variables[key]))
    save_weights(trunk, folder.path / WEIGHTS)
    results = {
        "trunk": config.trunk,
        "data": config.data,
        "image_size": config.image_size,
        "versions": versions(),
        "test_accuracy": accuracy,
        "train_seconds": seconds,
    }
    write_bytes(folder.path / CARD, _card(config, task, results).encode())
    folder.write_results(results)
    _logger.info("test accuracy %.4f in %.0f s", accuracy, seconds)
    return results


def _card(config: ConfigDict, task: mp.Task, results: dict) -> str:
    recipe = ", ".join(
        f"{name} {value}" for name, value in sorted(config.to_dict().items()) if name not in ("trunk", "data")
    )
    return f"""# A trunk trained on {task.name}

- Model: `{config.trunk}`, {config.image_size} px, preprocessing `{task.preprocessing.mode}`.
- Data: {task.name}, {len(task.labels)} classes: {", ".join(task.labels)}.
- Recipe: {recipe}.
- Test accuracy: {results["test_accuracy"]:.4f}, one run, last epoch; the test images did not select a checkpoint.
- Trained in {results["train_seconds"] / 60:.0f} minutes with {named(results["versions"])}.
- To reproduce: `python scripts/pretrain.py --workdir=runs/pretrain`
- Licence of the weights: that of this project. Fashion-MNIST is under the MIT licence (Xiao, Rasul, Vollgraf 2017).
"""
