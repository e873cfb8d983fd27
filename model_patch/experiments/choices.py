"""The options that take one of a few names, by flag. Without Keras, so that `--help` and mistakes take no time."""

from model_patch.data.sampling import SAMPLERS
from model_patch.kinds import NORM_STATISTICS
from model_patch.patch import DTYPES
from model_patch.training import STRATEGIES

HEADS = ("auto", "own", "shared")
"""Whether joined tasks have a head each or one for all; `auto`: one where they are resolutions of one data set."""

CHOICES = {
    "head": HEADS,
    "norm_statistics": NORM_STATISTICS,
    "patch_dtype": DTYPES,
    "sampler": tuple(SAMPLERS),
    "strategy": STRATEGIES,
}
"""By flag."""
