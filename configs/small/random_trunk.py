"""A random trunk at our scale: MobileNetV2 0.35 at 48 px with random weights, patched for `mnist` or Fashion-MNIST.

Command: `python scripts/transfer.py --config=configs/small/random_trunk.py:mnist --workdir=runs/small/random-mnist`; `:fashion` needs
Debian's package dataset-fashion-mnist and takes 6,000 of its images. About 380 steps, three seeds. Statistics are
those of the task's batches: the trunk has none.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import transfer

DATA = {"mnist": ("mnist", 8, 0), "fashion": ("idx:/usr/share/datasets/fashion-mnist", 4, 6000)}
"""Spec, epochs and number of training images."""


def get_config(data: str = "mnist") -> ConfigDict:
    """Returns the configuration for one of `DATA`."""
    config = transfer.get_config()
    config.trunk = "keras:MobileNetV2?alpha=0.35&weights=none"
    config.image_size = 48
    config.data, config.epochs, config.max_train_images = DATA[data]
    config.max_test_images = 2000
    config.train = ("last", "scale_bias", "scale_bias+last", "full")
    config.norm_statistics = "batch"
    config.seeds = (0, 1, 2)
    return config
