"""Detection to classification: the trunk of a detector, trained to classify other images.

The paper's experiment is a detector of COCO whose trunk, with 98 % of its parameters reused, classifies ImageNet. Offline:
`python scripts/detect.py train --workdir=runs/detect`, then
`python scripts/ssd_to_classification.py --detector=runs/detect --data=mnist --workdir=runs/ssd_to_mnist`. Figures are in
docs/detection.md.
"""

from ml_collections import ConfigDict

from configs import transfer


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/ssd_to_classification.py`: those of transfer but for what is set here."""
    config = transfer.get_config()
    config.trunk = ""  # The trunk, scheme:rest; by default that of --detector.
    config.data = "mnist"
    config.train = ("last", "scale_bias", "scale_bias+last", "depthwise+last", "full")
    config.image_size = 48  # Height and width in pixels; 0: the trunk's own, made for several objects per image.
    return config
