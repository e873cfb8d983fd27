"""The paper's statistics only: are mean and variance of the task's images enough, or must scale and bias be trained?

Command: `python scripts/transfer.py --config=configs/paper/statistics_only.py:cifar10 --workdir=runs/statistics_cifar10`, and the
other data of configs/paper/transfer_mobilenet.py.
Data: of TensorFlow Datasets, as there. Hardware: one GPU with 16 GB or more. *Not run*, but for `--dry_run`.
"""

from ml_collections import ConfigDict

from configs.paper import transfer_mobilenet


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the configuration for `cifar10`, `cifar100`, `flowers`, `cars` or `aircraft`."""
    config = transfer_mobilenet.get_config(data)
    config.train = ("last", "statistics+last", "scale_bias", "scale_bias+last")
    config.learning_rates = ()
    return config
