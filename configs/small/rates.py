"""Learning rates at our scale: digits on the bundled trunk, four ways to train at four rates, 120 steps, three seeds.

Command: `python scripts/transfer.py --config=configs/small/rates.py --workdir=runs/small/rates`. Represents the paper's figure of
patches and learning rates; statistics are those of the task's batches, as there.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import transfer


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/transfer.py`."""
    config = transfer.get_config()
    config.train = ("last", "scale_bias+last", "depthwise+last", "full")
    config.norm_statistics = "batch"
    config.learning_rates = (0.003, 0.01, 0.03, 0.1)
    config.epochs = 6
    config.seeds = (0, 1, 2)
    return config
