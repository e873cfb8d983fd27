"""Three picture tasks at once: stamps, icons and sprites on one ImageNet net, against three nets of their own, three seeds.

Command: `python scripts/multitask.py --config=configs/real/multitask.py --workdir=runs/real/multitask`. 96 px, about 90 steps of 96
images. Represents the paper's ImageNet and Places365.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import multitask
from model_patch.experiments.real_bench import specs

TASKS = ("stamps", "icons", "sprites")


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/multitask.py`."""
    config = multitask.get_config()
    config.trunk = specs()["trunk"]["mobilenet_v2"]
    config.data = tuple(specs()["data"][task] for task in TASKS)
    config.image_sizes = (96,) * len(TASKS)
    config.epochs = 5
    config.seeds = (0, 1, 2)
    return config
