"""Detection to classification at full width: the trunk of `configs/real/detector.py`, patched for icons, three seeds.

Command: `python scripts/ssd_to_classification.py --config=configs/real/ssd_to_classification.py --workdir=runs/real/ssd`, after the
detector. 96 px, 150 steps of batch 32. Represents the paper's SSD of COCO and ImageNet.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.real import transfer

TRUNK = "runs/real/detector/trunks/seed0.keras"


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/transfer.py`."""
    config = transfer.get_config("icons")
    config.trunk = f"file:{TRUNK}?preprocessing=tf"
    config.train = ("last", "scale_bias+last", "depthwise+last", "full")
    return config
