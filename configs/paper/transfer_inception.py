"""The paper's transfer table: InceptionV3 at 299 px, from ImageNet, to one of Flowers-102, Cars-196 and Aircraft-100.

Command: `python scripts/transfer.py --config=configs/paper/transfer_inception.py:flowers --workdir=runs/inception_flowers`, and
`:cars`, `:aircraft`.
Data: TensorFlow Datasets' oxford_flowers102 (344 MB) and cars196 (2 GB); FGVC-Aircraft as folders, 100 variants.
Hardware: one GPU with 16 GB or more. *Not run*, but for `--dry_run`, which counts 208,998, 401,604 and 204,900 trained parameters
for `last` and 34,432 more for `scale_bias+last`.
"""

from ml_collections import ConfigDict

from configs import transfer
from configs.paper import recipe


def get_config(data: str = "flowers") -> ConfigDict:
    """Returns the configuration for `flowers`, `cars` or `aircraft`."""
    config = recipe.with_recipe(transfer.get_config(), epochs=100)
    config.trunk = "keras:InceptionV3?weights=imagenet"
    config.data = recipe.DATA[data]
    config.task_name = data
    config.train = ("last", "scale_bias+last", "scale_bias", "full")
    config.batch_size = 64
    return config
