"""The demo: three real tasks on the bundled trunk, the first compared in every way.

Command: `make demo`, offline. Run on two CPU cores; the figures for three seeds are those of configs/transfer.py, in README.md.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

TRANSFER = runpy.run_path(str(Path(__file__).with_name("transfer.py")))


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/demo.py`."""
    config = ConfigDict()
    config.transfer = TRANSFER["get_config"]()
    config.tasks = ("digits", "textures", "faces")  # Names of built-in data; the first is the one compared.
    config.compare = config.transfer.train
    config.train = "scale_bias+last"  # What is learnt for the other tasks, and exported for all; one of `compare`.
    config.num_images = 64  # Test images per task that the SavedModel is checked on.
    config.num_columns = 10  # Of them, how many are drawn.
    return config
