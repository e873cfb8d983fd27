"""The paper's toy: a two-layer net with fixed random weights fits functions of one variable by training its biases alone.

Command: `python scripts/expressivity.py --workdir=runs/expressivity`, half a minute on two CPU cores. Nothing is downloaded. The
paper's functions and widths are not known to us: these are ours.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/expressivity.py`; each field is a flag, and its comment the flag's help."""
    config = ConfigDict()
    config.functions = ("sine", "absolute", "step", "two_waves")  # Functions to fit.
    config.widths = (8, 32, 128, 512)  # Numbers of hidden units, a net each.
    config.num_points = 256  # Number of points, evenly spaced in -1..1, where the functions are given.
    config.steps = 3000  # Training steps, each on all points.
    config.learning_rate = 0.01  # Learning rate of Adam, with a cosine to zero.
    config.seeds = (0, 1, 2)  # Seeds of the fixed weights.
    return config
