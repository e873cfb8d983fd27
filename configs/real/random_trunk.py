"""A random trunk at full width: MobileNetV2 1.0 at 96 px with random weights, patched for Fashion-MNIST, three seeds.

Command: `python scripts/transfer.py --config=configs/real/random_trunk.py --workdir=runs/real/random-fashion`. 4,000 images, 250 steps
of batch 64; statistics are those of the task's batches, as the trunk has none.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.real import transfer


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/transfer.py`."""
    config = transfer.get_config("fashion")
    config.trunk = "keras:MobileNetV2?weights=none"
    config.train = ("last", "scale_bias", "scale_bias+last", "full")
    config.norm_statistics = "batch"
    return config
