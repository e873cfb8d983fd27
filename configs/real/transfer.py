"""Transfer of an ImageNet net to one of five picture tasks, or to Fashion-MNIST: every patch, default flags, 96 px, three seeds.

Command: `python scripts/transfer.py --config=configs/real/transfer.py:stamps --workdir=runs/real/transfer-stamps`, and `:clipart`,
`:icons`, `:sprites`, `:photographs`, `:fashion`. Data and trunk: `python scripts/real_bench.py`. 140 to 260 steps.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import transfer
from model_patch.experiments.real_bench import specs

EPOCHS = {"stamps": 15, "clipart": 5, "icons": 10, "sprites": 5, "photographs": 11, "fashion": 4}
"""As many as make 140 to 260 steps."""


def get_config(data: str = "stamps") -> ConfigDict:
    """Returns the configuration for one of `EPOCHS`."""
    config = transfer.get_config()
    config.trunk = specs()["trunk"]["mobilenet_v2"]
    config.data = specs()["data"][data]
    config.image_size = 96
    config.epochs = EPOCHS[data]
    config.batch_size = 32
    if data == "fashion":
        config.batch_size, config.max_train_images, config.max_test_images = 64, 4000, 2000
    config.seeds = (0, 1, 2)
    return config
