"""The paper's multi-task experiment: ImageNet at 224 px and Places365 at 256 px at once, on one MobileNetV2.

Command: `python scripts/multitask.py --config=configs/paper/imagenet_places.py --workdir=runs/imagenet_places`
Data: TensorFlow Datasets' imagenet2012 and places365_small, 3.1 million images. Hardware: several GPUs. All nets begin with
random weights; the paper's beginning is not known to us. *Not run*, but for `--dry_run`.
"""

from ml_collections import ConfigDict

from configs import multitask
from configs.paper import recipe


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/multitask.py`."""
    config = recipe.with_recipe(multitask.get_config(), epochs=100)
    config.trunk = "keras:MobileNetV2?weights=none"
    config.data = (recipe.DATA["imagenet"], recipe.DATA["places"])
    config.task_names = ("imagenet", "places")
    config.image_sizes = (224, 256)
    config.validation_fraction = 0.01
    return config
