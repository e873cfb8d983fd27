"""Multi-task at our scale: digits, mnist and textures at once from the bundled trunk, three ways of sharing, three seeds.

Command: `python scripts/multitask.py --config=configs/small/multitask.py --workdir=runs/small/multitask`. Stands for the paper's
ImageNet and Places365 together. About 480 steps of 96 images. Not run yet in full;
`scripts/reproduce.py` writes docs/results.md.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

MULTITASK = runpy.run_path(str(Path(__file__).parents[1] / "multitask.py"))


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/multitask.py`."""
    config = MULTITASK["get_config"]()
    config.epochs = 10
    config.seeds = (0, 1, 2)
    return config
