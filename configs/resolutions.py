"""Domain adaptation: one task at four image resolutions in one net, a patch per resolution, one shared head.

Command: `python scripts/multitask.py --config=configs/resolutions.py --workdir=runs/resolutions`
Rows: `nothing`, a net alone per resolution; `trunk`, one net with a patch per resolution; `trunk+patch`, one net for all
without patches. The images are 28 x 28, so the sizes differ in how coarse the net sees them. Not run with the present recipe;
figures at other sizes and of pictures: docs/multitask.md.
"""

from ml_collections import ConfigDict

from configs import multitask


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/multitask.py` for resolutions."""
    config = multitask.get_config()
    config.data = ("mnist",)
    config.resolutions = (96, 64, 48, 32)
    return config
