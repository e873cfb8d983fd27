"""The demo: three real tasks on the bundled trunk, four ways to train compared on the first.

Command: `make demo`, offline. The figures for three seeds are those of configs/small/transfer.py, in README.md.
"""

from ml_collections import ConfigDict

from configs import transfer


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/demo.py`."""
    config = ConfigDict()
    config.transfer = transfer.get_config()  # Options of `scripts/transfer.py`: --config.transfer.epochs=3.
    config.tasks = ("digits", "textures", "faces")  # Names of built-in data; the first is the one compared.
    config.compare = (  # Ways to train that are compared on the first task.
        *("last", "scale_bias+last", "depthwise+last", "full"),
    )
    config.train = "scale_bias+last"  # What is trained for the other tasks, and exported for all; one of compare.
    config.num_images = 64  # Number of test images per task that the SavedModel is checked on.
    config.num_columns = 10  # Number of them in the picture.
    return config
