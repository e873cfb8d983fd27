"""The bundled trunk: MobileNetV2 0.35 at 48 px, trained on Fashion-MNIST from random weights.

Command: `python scripts/pretrain.py --workdir=runs/pretrain`
Data: 70,000 images in MNIST's format, for example from Debian's package dataset-fashion-mnist; `--data=tfds:fashion_mnist`
is the same. Run once, seed 0, on two CPU cores that other programs used too: 21 minutes, test accuracy 0.9146.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/pretrain.py`; each field is a flag, and its comment the flag's help."""
    config = ConfigDict()
    config.trunk = "keras:MobileNetV2?alpha=0.35&weights=none"  # The net, scheme:rest, with random weights.
    config.data = "idx:/usr/share/datasets/fashion-mnist"  # Images to train on, scheme:rest.
    config.image_size = 48  # Height and width in pixels.
    config.epochs = 12  # Passes over the training images.
    config.batch_size = 128  # Images per step, on all devices together.
    config.optimizer = "adamw"  # Optimizer.
    config.learning_rate = 0.003  # Highest learning rate; 0: the default for the optimizer.
    config.schedule = "cosine"  # Learning-rate schedule.
    config.augmentation = "auto"  # none | shift, flip, crop, colour joined by + | auto: what suits the data
    config.momentum = 0.99  # Of batch norm's moving statistics, which are re-estimated at the end.
    config.validation_fraction = 0.0  # Share of training images that choose the best epoch, if no split does.
    config.patience = 0  # Stop after this many epochs without a better one on the validation images; 0: never.
    config.max_train_images = 0  # Train on the first N images; 0: all.
    config.max_test_images = 0  # Test on the first N images; 0: all.
    config.seed = 0  # Of the initial weights, the order of the images and augmentation.
    return config
