"""The paper's domain adaptation: ImageNet at five resolutions at once, on one MobileNetV2 with a patch per resolution.

Command: `python scripts/multitask.py --config=configs/paper/resolutions.py --workdir=runs/imagenet_resolutions`
Data: TensorFlow Datasets' imagenet2012, 1.28 million images, downloaded by hand. Hardware: several GPUs. *Not run*, but for
`--dry_run`.
"""

from ml_collections import ConfigDict

from configs.paper import imagenet_places


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/multitask.py`."""
    config = imagenet_places.get_config()
    config.data = config.data[:1]
    config.task_names, config.image_sizes = (), ()
    config.resolutions = (224, 192, 160, 128, 96)
    return config
