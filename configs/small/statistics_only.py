"""Statistics only at our scale: mean and variance of the task's images against trained scales and biases, `mnist`, three seeds.

Command: `python scripts/transfer.py --config=configs/small/statistics_only.py --workdir=runs/small/statistics`. The trunk is the
bundled one, which has seen clothes; about 280 steps of batch 64.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import transfer


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/transfer.py`."""
    config = transfer.get_config()
    config.data = "mnist"
    config.train = ("last", "statistics+last", "scale_bias", "scale_bias+last")
    config.norm_statistics = "batch"
    config.epochs = 6
    config.seeds = (0, 1, 2)
    return config
