"""Accuracy against learning rate, of each patch and of the whole net: an ImageNet net, one of two picture tasks, three seeds.

Command: `python scripts/transfer.py --config=configs/real/rates.py:icons --workdir=runs/real/rates-icons`, and `:sprites`. Rates are
relative to each variable's size, and the default is the third.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.real import transfer


def get_config(data: str = "icons") -> ConfigDict:
    """Returns the configuration for one of `transfer.EPOCHS`."""
    config = transfer.get_config(data)
    config.train = ("scale_bias+last", "depthwise+last", "full")
    config.learning_rates = (0.001, 0.003, 0.01, 0.03, 0.1)
    return config
