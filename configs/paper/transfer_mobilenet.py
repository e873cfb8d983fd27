"""The paper's figure of patches and learning rates: MobileNetV2 at 224 px, from ImageNet, every patch at four rates.

Command: `python scripts/transfer.py --config=configs/paper/transfer_mobilenet.py:cifar10 --workdir=runs/rates_cifar10`, and
`:cifar100`, `:flowers`, `:cars`, `:aircraft`.
Data: of TensorFlow Datasets; FGVC-Aircraft as folders. Hardware: one GPU with 16 GB or more. The rates are ours, around the
paper's 0.045. *Not run*, but for `--dry_run`.
"""

from ml_collections import ConfigDict

from configs import transfer
from configs.paper import recipe


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the configuration for `cifar10`, `cifar100`, `flowers`, `cars` or `aircraft`."""
    config = recipe.with_recipe(transfer.get_config(), epochs=50)
    config.trunk = "keras:MobileNetV2?weights=imagenet"
    config.data = recipe.DATA[data]
    config.task_name = data
    config.train = (
        "last",
        "scale_bias",
        "scale_bias+last",
        "depthwise",
        "depthwise+last",
        "scale_bias+depthwise+last",
        "full",
    )
    config.learning_rates = (0.0045, 0.045, 0.15, 0.45)
    return config
