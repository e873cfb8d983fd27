"""Transfer at our scale: one of four real tasks on the bundled trunk, every patch, about 250 steps of batch 64, three seeds.

Command: `python scripts/transfer.py --config=configs/small/transfer.py:digits --workdir=runs/small/transfer-digits`, and `:mnist`,
`:textures`, `:faces`. Represents the paper's transfer table and figure. Data come with packages.
Figures: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import transfer

EPOCHS = {"digits": 13, "mnist": 6, "textures": 42, "faces": 125}
"""As many as make about 250 steps."""


def get_config(data: str = "digits") -> ConfigDict:
    """Returns the configuration for one of `EPOCHS`."""
    config = transfer.get_config()
    config.data = data
    config.epochs = EPOCHS[data]
    config.seeds = (0, 1, 2)
    return config
