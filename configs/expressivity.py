"""The paper's toy: a net of two layers with fixed random weights learns functions of one number by its biases alone.

Command: `python scripts/expressivity.py --workdir=runs/expressivity`, half a minute on two CPU cores. Nothing is downloaded. The
paper's functions and widths are not known to us: these are ours.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/expressivity.py`."""
    config = ConfigDict()
    config.functions = (
        "sine",
        "absolute",
        "step",
        "two_waves",
    )  # Names in `model_patch.experiments.expressivity.FUNCTIONS`.
    config.widths = (8, 32, 128, 512)  # Units of the hidden layer.
    config.num_points = 256  # Where the functions are given, evenly spaced in -1..1.
    config.steps = 3000
    config.learning_rate = 0.01  # Of Adam, with a cosine to zero.
    config.seeds = (0, 1, 2)  # Of the fixed weights.
    return config
