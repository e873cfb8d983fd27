"""The paper's detection to classification: the trunk of an SSD of COCO on MobileNetV2 is patched for the 1000 classes of ImageNet.

Command: `python scripts/detect.py train --config=configs/detect_coco.py --workdir=runs/coco`, then
`python scripts/ssd_to_classification.py --config=configs/paper/ssd_to_imagenet.py --workdir=runs/ssd_to_imagenet`. With the
Object Detection API's own detector, as in the paper: `--detector=slim:ssd_mobilenet_v2_coco_2018_03_29/model.ckpt`.
Data: TensorFlow Datasets' imagenet2012, 1.28 million images, downloaded by hand. Hardware: several GPUs. *Not run*, but for
`--dry_run`, which counts 34,112 trained parameters for `scale_bias`, 1.5 % of the trunk.
"""

from ml_collections import ConfigDict

from configs import transfer
from configs.paper import recipe


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/transfer.py`."""
    config = recipe.with_recipe(transfer.get_config(), epochs=100)
    config.trunk = "keras:MobileNetV2?weights=runs/coco/trunks/seed0.safetensors"
    config.data = recipe.DATA["imagenet"]
    config.image_size = 224
    config.train = ("last", "scale_bias+last", "scale_bias", "full")
    return config
