"""The options that take one of a few names, by flag. Without Keras, so that `--help` and mistakes take no time."""

from model_patch.data.balance import BALANCES
from model_patch.data.sampling import SAMPLERS
from model_patch.detection import CONFIDENCES
from model_patch.export import FORMATS, QUANTIZE
from model_patch.kinds import NORM_STATISTICS, SHARE
from model_patch.patch import DTYPES
from model_patch.preprocessing import RESIZE
from model_patch.tasks import POOLINGS
from model_patch.training import STRATEGIES
from model_patch.training.recipe import OPTIMIZERS, SCHEDULES

HEADS = ("auto", "own", "shared")
"""Whether joined tasks have a head each or one for all; `auto`: one where they are resolutions of one data set."""

RUNNERS = ("local", "ray")

CHOICES = {
    "balance": BALANCES,
    "confidence": tuple(CONFIDENCES),
    "format": tuple(FORMATS),
    "head": HEADS,
    "norm_statistics": NORM_STATISTICS,
    "optimizer": tuple(OPTIMIZERS),
    "patch_dtype": DTYPES,
    "pooling": POOLINGS,
    "quantize": QUANTIZE,
    "resize": tuple(RESIZE),
    "runner": RUNNERS,
    "sampler": tuple(SAMPLERS),
    "schedule": tuple(SCHEDULES),
    "share": tuple(SHARE),
    "strategy": STRATEGIES,
}
"""By flag; of a flag that takes a list, what each item may be."""
