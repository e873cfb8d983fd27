"""Detection to classification: the trunk of a detector learns other images.

The paper's experiment is a detector of COCO whose trunk, with 98 % of its parameters reused, classifies ImageNet. Offline:
`python scripts/detect.py train --workdir=runs/detect`, then
`python scripts/ssd_to_classification.py --detector=runs/detect --data=mnist --workdir=runs/ssd_to_mnist`. Figures are in
docs/detection.md.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

TRANSFER = runpy.run_path(str(Path(__file__).with_name("transfer.py")))


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/ssd_to_classification.py`: those of transfer but for what is set here."""
    config = TRANSFER["get_config"]()
    config.trunk = ""  # That of --detector.
    config.data = "mnist"
    config.train = ("last", "scale_bias", "scale_bias+last", "depthwise+last", "full")
    config.image_size = 48  # Pixels; 0: the trunk's own. A detector's images are larger than one object.
    return config
