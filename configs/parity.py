"""Parity: clothes, handwritten digits of two sources, trained at once from the bundled trunk, against three nets of their own.

Command: `python scripts/multitask.py --config=configs/parity.py --workdir=runs/parity`
Data: Debian's package dataset-fashion-mnist; the others come with packages. At most 4,000 images of each to train on and 4,000
to test on. Represents the paper's ImageNet and Places365 together. Figures: docs/multitask.md.
"""

from ml_collections import ConfigDict

from configs import multitask


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/multitask.py` for parity."""
    config = multitask.get_config()
    config.data = ("idx:/usr/share/datasets/fashion-mnist", "mnist", "digits")
    config.task_names = ("fashion", "mnist", "digits")
    config.max_train_images = 4000
    config.max_test_images = 4000
    config.epochs = 8
    config.seeds = (0, 1, 2)
    return config
