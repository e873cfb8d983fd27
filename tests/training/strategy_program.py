"""What the tests of strategies run in processes of their own: a few steps, and the losses as JSON.

python -m tests.training.strategy_program STRATEGY FILE TRAIN STATISTICS [TRAIN STATISTICS ...]
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from model_patch import Preprocessing, Task, Trunk, bind
from model_patch.kinds import Trained
from model_patch.training import strategies
from model_patch.training.fit import run_epochs
from model_patch.training.recipe import Recipe
from tests.conftest import SIZE, small_net


def main(strategy: str, file: str, *ways: str):
    """Trains each way with 20 images in batches of 8, and writes the loss of every epoch and that of a test."""
    if strategy == "mirrored":
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    images = np.random.default_rng(0).uniform(-1, 1, (20, SIZE, SIZE, 3)).astype("float32")
    found = {}
    with strategies.devices(strategy):  # Before any operation runs: TensorFlow joins the workers at program start only.
        batches = tf.data.Dataset.from_tensor_slices((images, np.arange(20) % 3)).batch(8)
        for train, statistics in zip(ways[::2], ways[1::2], strict=True):
            trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
            task = Task("shapes", ("circle", "square", "star"), trunk.preprocessing)
            bound = bind(trunk, task, Trained.parse(train, statistics))
            recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.03)
            history = run_epochs(bound, bound.model, lambda each: batches.repeat(len(each)), 20, recipe).history["loss"]
            logits = np.concatenate([strategies.predictor(bound.model)(x) for x, _ in batches])
            losses = keras.ops.sparse_categorical_crossentropy(np.arange(20) % 3, logits, from_logits=True)
            found[f"{train} {statistics}"] = {
                "epochs": history,
                "tested": float(np.mean(losses)),
                "replicas": getattr(strategies.current(), "num_replicas_in_sync", 1),
            }
    with open(file, "w") as output:  # noqa: PTH123 (a test's own file)
        json.dump(found, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
