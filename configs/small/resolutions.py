"""Domain adaptation at our scale: `mnist` at 64, 48 and 32 px in one net, three ways of sharing, three seeds.

Command: `python scripts/multitask.py --config=configs/small/resolutions.py --workdir=runs/small/resolutions`. Represents the paper's
ImageNet at five resolutions. About 425 steps of 96 images. The images are 28 x 28, so the sizes differ in how coarse the net
sees them.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import multitask


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/multitask.py`."""
    config = multitask.get_config()
    config.data = ("mnist",)
    config.resolutions = (64, 48, 32)
    config.epochs = 5
    config.seeds = (0, 1, 2)
    return config
