"""Optimisations of speed and memory do not change accuracy: digits on the bundled trunk, with each and without, three seeds.

python -m tests.soak.soak_accuracy        # prints the table of docs/speed.md
python -m tests.soak.soak_accuracy 3 500  # epochs, and images to train on at most; further arguments: names in PAIRS
"""

import contextlib
import sys
from unittest import mock

import keras
import numpy as np
import pytest

from model_patch import Task, bind
from model_patch.data import open_data
from model_patch.data.pipeline import batches
from model_patch.experiments.report.table import markdown
from model_patch.graph.fused_norm import FusedNormModel
from model_patch.kinds import TrainSpec
from model_patch.layers import PatchedBatchNormalization
from model_patch.training.fit import evaluate, fit
from model_patch.training.loop import run_epochs
from model_patch.training.recipe import Recipe
from model_patch.trunks import open_trunk

SEEDS = (0, 1, 2)

PAIRS = {
    "tune mode": ("scale_bias+last", "frozen"),
    "fused batch norm": ("scale_bias+last", "batch"),
    "remat, frozen statistics": ("scale_bias+last", "frozen"),
    "remat, batch statistics": ("scale_bias+last", "batch"),
    "kept features, an epoch in one call": ("last", "frozen"),
}
"""What is compared with the same training without it: what is learnt, and whose statistics."""


@contextlib.contextmanager
def without(name: str):
    """Runs what is inside without tune mode, or without fused batch norm."""

    def as_layers(self, *args, **kwargs):
        return super(FusedNormModel, self).call(*args, **kwargs)

    with contextlib.ExitStack() as patches:
        if name in ("tune mode", "fused batch norm"):
            patches.enter_context(mock.patch.object(FusedNormModel, "call", as_layers))
        if name == "fused batch norm":
            patches.enter_context(mock.patch.object(PatchedBatchNormalization, "_can_be_fused", lambda *_: False))
        yield


def trained(name: str, seed: int, recipe: Recipe, with_it: bool):
    """Returns the test accuracy and the logits of the test images."""
    keras.utils.set_random_seed(seed)
    trunk, data = open_trunk("bundled"), open_data("digits")
    task = Task("digits", data.labels, trunk.preprocessing)
    bound = bind(trunk, task, TrainSpec.parse(*PAIRS[name]), seed=seed, remat=with_it and name.startswith("remat"))
    with contextlib.nullcontext() if with_it else without(name):
        if name.startswith("kept") and not with_it:

            def images(epochs):
                most = recipe.max_train_images or None
                return batches(
                    data.train, task.preprocessing, recipe.batch_size, max_images=most, shuffle_seed=seed, epochs=epochs
                )

            run_epochs(bound, bound.model, images, data.train.take(recipe.max_train_images or None), recipe)
        else:
            fit(bound, data, recipe, seed=seed)
    accuracy = evaluate(bound, data, recipe)["accuracy"]
    test = next(iter(batches(data.test, task.preprocessing, 360)))[0]
    return accuracy, np.array(bound.model(test, training=False))


def compared(name: str, recipe: Recipe) -> list[str]:
    """Returns a row of the table: both mean accuracies, the largest difference of a seed's two, and of any logit."""
    runs = [[trained(name, seed, recipe, with_it) for with_it in (True, False)] for seed in SEEDS]
    accuracies = np.array([[accuracy for accuracy, _ in pair] for pair in runs])
    logits = max(float(np.abs(a - b).max()) for (_, a), (_, b) in runs)
    differing = max(int((a.argmax(-1) != b.argmax(-1)).sum()) for (_, a), (_, b) in runs)
    largest = float(np.abs(np.subtract(*accuracies.T)).max())
    with_it, plain = accuracies.mean(axis=0)
    return [
        name,
        "+".join(PAIRS[name][:1]),
        f"{with_it:.4f}",
        f"{plain:.4f}",
        f"{largest:.4f}",
        str(differing),
        f"{logits:.1e}",
    ]


HEADER = [
    "",
    "trained",
    "accuracy",
    "without",
    "largest difference of a seed",
    "test images predicted otherwise",
    "of a logit",
]


@pytest.mark.parametrize("name", PAIRS)
def test_accuracy_is_the_same(name):
    row = compared(name, Recipe(epochs=5, max_train_images=600))
    assert abs(float(row[2]) - float(row[3])) <= 0.01, row


if __name__ == "__main__":
    epochs, images = (int(text) for text in (sys.argv[1:3] or ["15", "0"]))
    rows = []
    for each in sys.argv[3:] or PAIRS:
        rows.append(compared(each, Recipe(epochs=epochs, max_train_images=images)))
        print(markdown(HEADER, rows), flush=True)
