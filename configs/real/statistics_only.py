"""Statistics only: mean and variance of the task's images against trained scales and biases, an ImageNet net, icons, three seeds.

Command: `python scripts/transfer.py --config=configs/real/statistics_only.py --workdir=runs/real/statistics`. 96 px, 150 steps of
batch 32; statistics are those of the task's batches.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.real import transfer


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/transfer.py`."""
    config = transfer.get_config("icons")
    config.train = ("last", "statistics+last", "scale_bias", "scale_bias+last")
    config.norm_statistics = "batch"
    return config
