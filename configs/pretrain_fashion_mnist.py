"""The bundled trunk: MobileNetV2 0.35 at 48 px, trained on Fashion-MNIST from random weights.

Command: `python scripts/pretrain.py --workdir=runs/pretrain`
Data: 70,000 images in MNIST's format, for example from Debian's package dataset-fashion-mnist; `--data=tfds:fashion_mnist`
is the same. Run once, seed 0, on two CPU cores that other programs used too: 21 minutes, test accuracy 0.9146.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/pretrain.py`."""
    config = ConfigDict()
    config.trunk = "keras:MobileNetV2?alpha=0.35&weights=none"
    config.data = "idx:/usr/share/datasets/fashion-mnist"
    config.image_size = 48
    config.epochs = 12
    config.batch_size = 128
    config.optimizer = "adamw"
    config.learning_rate = 0.003
    config.schedule = "cosine"
    config.augmentation = "auto"
    config.momentum = 0.99  # Of batch norm's moving statistics, which are re-estimated at the end.
    config.max_train_images = 0  # 0: all.
    config.max_test_images = 0
    config.seed = 0
    return config
