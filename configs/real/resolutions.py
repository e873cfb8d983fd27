"""A patch per resolution: stamps at 160, 128, 96 and 64 px in one ImageNet net, three ways of sharing, three seeds.

Command: `python scripts/multitask.py --config=configs/real/resolutions.py --workdir=runs/real/resolutions`. Represents the paper's
ImageNet at five resolutions. The pictures have up to 512 px, so a larger size shows more.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import multitask
from model_patch.experiments.real_bench import specs


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/multitask.py`."""
    config = multitask.get_config()
    config.trunk = specs()["trunk"]["mobilenet_v2"]
    config.data = (specs()["data"]["stamps"],)
    config.resolutions = (160, 128, 96, 64)
    config.epochs = 4
    config.seeds = (0, 1, 2)
    return config
