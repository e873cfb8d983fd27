"""The paper's random trunk: MobileNetV2 with random weights, patched for the 1000 classes of ImageNet.

Command: `python scripts/transfer.py --config=configs/paper/random_to_imagenet.py --workdir=runs/random_to_imagenet`
Data: TensorFlow Datasets' imagenet2012, 1.28 million images, downloaded by hand. Hardware: several GPUs. *Not run*, but for
`--dry_run`.
"""

from ml_collections import ConfigDict

from configs.paper import ssd_to_imagenet


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/transfer.py`."""
    config = ssd_to_imagenet.get_config()
    config.trunk = "keras:MobileNetV2?weights=none"
    return config
