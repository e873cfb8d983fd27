"""Suites that time this package against the ways to do the same without it, side by side in one run."""

import importlib

SUITES = {
    "serving": "model_patch.experiments.benchmark.serving",
    "joint": "model_patch.experiments.benchmark.joint",
    "training": "model_patch.experiments.benchmark.training",
    "data": "model_patch.experiments.benchmark.data",
    "scale": "model_patch.experiments.benchmark.scale",
    "lora": "model_patch.experiments.benchmark.lora",
    "gpu": "model_patch.experiments.benchmark.gpu",
}
"""Modules by the name of their suite. Each has a function `run(config, workdir)`."""


def suite(name: str):
    """Returns the module of a suite."""
    return importlib.import_module(SUITES[name])
