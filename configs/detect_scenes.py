"""Detection offline: SSDLite on MobileNetV2 0.35 at 96 px, from random weights, on scenes of Fashion-MNIST.

Command: `python scripts/detect.py train --workdir=runs/detect`
Data: 70,000 images in MNIST's format, for example from Debian's package dataset-fashion-mnist; without it `--data=scenes:mnist`
works on any computer. Two cores, 13 minutes per seed: mAP@50 0.78, see docs/detection.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/detect.py train`."""
    config = ConfigDict()
    config.trunk = "keras:MobileNetV2?alpha=0.35&weights=none"  # Which trunk, scheme:rest.
    config.data = "scenes:idx:/usr/share/datasets/fashion-mnist?size=96&train=8000&test=1000"
    config.task_name = ""  # Name of the task in patch files; empty: the data's own name.
    config.train = "full"  # full: the trunk is learnt, too, and written; otherwise a patch on it.
    config.norm_statistics = "auto"  # batch: own statistics; frozen: the trunk's; auto: by kind.
    config.image_size = 96
    # The head: objects of a fifth of the side need a map of stride 8 beside those of stride 16 and 32.
    config.layers = ()  # The trunk's layers to detect on, finest first; empty: the last of each resolution.
    config.num_trunk_maps = 3  # Of so many of the coarsest resolutions.
    config.num_maps = 5  # With the coarser maps that the head makes; fewer where one cell is reached.
    config.width = 0.35  # Of the head's own maps.
    config.confidence = "softmax"  # softmax with hard negative mining, or focal.
    config.min_scale = 0.2
    config.max_scale = 0.8
    config.aspect_ratios = (1.0, 2.0, 1 / 2)
    config.reduce_lowest = False
    config.epochs = 20
    config.batch_size = 32
    config.optimizer = "adam"
    config.learning_rate = 0.0  # 0: the default for the optimizer and for what is trained.
    config.schedule = "cosine"
    config.augmentation = "auto"  # auto: what the data recommend.
    config.momentum = 0.97  # Of batch norm's moving statistics, which are re-estimated at the end.
    config.max_train_images = 0  # 0: all.
    config.max_test_images = 0
    config.patch_dtype = "float32"
    config.seeds = (0, 1)
    return config
