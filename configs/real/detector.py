"""A detector at full width: SSDLite on an ImageNet net at 128 px, trained on collages of cut-outs on photographs.

Command: `python scripts/detect.py train --config=configs/real/detector.py --workdir=runs/real/detector`. The boxes are those of the
pixels that were pasted. One seed; its trunk is that of `configs/real/ssd_to_classification.py`.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import detect_scenes
from model_patch.experiments.real_bench import specs


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/detect_scenes.py`."""
    config = detect_scenes.get_config()
    config.trunk = specs()["trunk"]["mobilenet_v2"]
    config.data = specs()["detection"]["collages"]
    config.image_size = 128
    config.width = 1.0
    config.augmentation = "flip"
    config.epochs = 8
    config.seeds = (0,)
    return config
