"""What the configurations of the paper's experiments share: its recipe, and where its data come from.

RMSProp at 0.045, times 0.98 every 2.5 epochs, statistics of the task's own batches. Batch sizes and epochs are not known
to us from the paper: 96 is the batch of MobileNetV2's own paper (Sandler et al. 2018, section 6.1), the epochs are ours.
"""

from ml_collections import ConfigDict

DATA = {
    "flowers": "tfds:oxford_flowers102?train=train+validation&test=test",
    "cars": "tfds:cars196",
    "aircraft": "folder:fgvc_aircraft",  # TFDS has not got it: `train` and `test` with a folder per variant.
    "cifar10": "tfds:cifar10",
    "cifar100": "tfds:cifar100",
    "imagenet": "tfds:imagenet2012",
    "places": "tfds:places365_small",
}
"""Specs of the paper's data by a short name."""


def with_recipe(config: ConfigDict, epochs: int, learning_rate: float = 0.045) -> ConfigDict:
    """Returns a configuration of `scripts/transfer.py` or `scripts/multitask.py` with the paper's recipe."""
    config.optimizer = "rmsprop"
    config.schedule = "paper"
    config.learning_rate = learning_rate
    config.norm_statistics = "batch"
    config.batch_size = 96
    config.epochs = epochs
    config.validation_fraction = 0.0  # The paper does not say that an epoch was chosen.
    return config
