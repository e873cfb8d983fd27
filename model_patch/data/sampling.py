"""Sampling from several data sets at once: how many images of each come in a step, and the batches themselves."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from model_patch.data.autograph import without_autograph
from model_patch.data.epochs import FOREVER
from model_patch.data.images import Split
from model_patch.data.pipeline import batches
from model_patch.data.share import Share
from model_patch.errors import require_number, unknown
from model_patch.preprocessing import Preprocessing

SAMPLERS = {
    "uniform": lambda power, progress: 0.0,
    "proportional": lambda power, progress: power,
    "annealed": lambda power, progress: 1.0 - (1.0 - power) * progress,
}
"""Samplers by name: the exponent of a data set's size that its share of the images is proportional to, from the configured
power and the progress of training in 0..1. `annealed` begins at 1 and ends at the power, so that small data sets come up
towards the end (Stickland and Murray 2019, "BERT and PALs", section 4.2)."""

LEAST_PER_STEP = 2
"""Images of a task in every step, at least: the statistics of a batch of one may have no variance."""

_READ_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Decides which share of the images comes from which data set.

    Attributes:
        name: a name in `SAMPLERS`.
        power: exponent of the sizes, at least 0: 1 takes all images equally often, 0 all data sets. Its inverse is often
            called the temperature. `uniform` does not look at it.

    Raises:
        ModelPatchError: the name is unknown or the power out of range.
    """

    name: str = "uniform"
    power: float = 0.5

    def __post_init__(self):
        if self.name not in SAMPLERS:
            raise unknown("sampler", self.name, SAMPLERS)
        require_number("sampler_power", self.power, 0)

    def shares(self, num_images: Sequence[int], progress: float = 0.0) -> np.ndarray:
        """Returns the share of each data set, in 0..1, with sum 1.

        Args:
            num_images: sizes of the data sets.
            progress: part of the training that is over, in 0..1.
        """
        weights = np.asarray(num_images, "float64") ** SAMPLERS[self.name](self.power, progress)
        return weights / weights.sum()

    def plan(self, num_images: Sequence[int], batch_size: int, epochs: int) -> np.ndarray:
        """Returns `sizes` for a whole training; in an epoch come as many images as all data sets have together."""
        steps_per_epoch = math.ceil(sum(num_images) / (len(num_images) * batch_size))
        return self.sizes(num_images, batch_size, steps_per_epoch * epochs)

    def sizes(self, num_images: Sequence[int], batch_size: int, num_steps: int) -> np.ndarray:
        """Returns how many images of each data set come in each step.

        Nothing is drawn: the numbers follow the shares, and what rounding takes from a data set in one step it gets in
        the next. Every data set has at least `LEAST_PER_STEP` images in a step, or `batch_size` if that is less.

        Args:
            num_images: sizes of the K data sets.
            batch_size: images of a data set per step, on average over the K; at least 1.
            num_steps: steps of the training.

        Returns:
            int64 `(num_steps, K)`; every row has the sum `K * batch_size`.
        """
        require_number("batch_size", batch_size, 1, whole=True)
        num_tasks = len(num_images)
        least = min(LEAST_PER_STEP, batch_size)
        free = num_tasks * (batch_size - least)
        sizes = np.full((num_steps, num_tasks), least, "int64")
        owed = np.zeros(num_tasks)
        for step in range(num_steps):
            owed += num_tasks * batch_size * self.shares(num_images, step / max(1, num_steps - 1)) - least
            # A data set below the least share would owe more and more, and never give it back: that is forgotten.
            owed = np.maximum(owed, 0.0) * (free / max(np.maximum(owed, 0.0).sum(), 1e-9))
            given = np.floor(owed + 1e-9).astype("int64")
            largest = np.argsort(given - owed, kind="stable")[: free - given.sum()]
            given[largest] += 1
            sizes[step] += given
            owed -= given
        return sizes


@without_autograph
def joint_batches(
    splits: Mapping[str, Split],
    preprocessing: Mapping[str, Preprocessing],
    sizes: np.ndarray,
    *,
    augmentation: Mapping[str, str] | None = None,
    seed: int = 0,
    first_step: int = 0,
    cache: bool = True,
    share: Share | None = None,
):
    """Returns the batches of a joint training, with images of every task in every step.

    Each task's images come as in a training of its own: all of them, in a new order, then all of them again.

    Args:
        splits: the images of each task, by its name.
        preprocessing: image size and scaling, by the task's name.
        sizes: int `(steps, tasks)`, as `Sampler.sizes` returns them, the tasks in the order of `splits`.
        augmentation: names joined by `+`, by the task's name; None for none.
        seed: seed of the order and of augmentation; each task has its own.
        first_step: the steps before it are left out; those from it on are the same as without.
        cache: whether images are cached in memory, as for `batches`.
        share: the part of every task's batch that this process trains on, as for `batches`.

    Returns:
        `tf.data.Dataset` of as many elements as there are steps left: `(images, labels)`, dicts by task name, of float32
        `(size, image_size, image_size, 3)` and int64 `(size,)`; with a share also the int64 sizes of the whole batches.
    """
    import tensorflow as tf

    streams = {}
    for k, (name, split) in enumerate(splits.items()):
        first_epoch, seen = divmod(int(sizes[:first_step, k].sum()), split.num_images)
        streams[name] = batches(
            split,
            preprocessing[name],
            _READ_AT_ONCE,
            augmentation=augmentation[name] if augmentation else "none",
            shuffle_seed=seed + k,
            epochs=FOREVER[first_epoch:],
            cache=cache,
            share=share,
            sizes=sizes[first_step:, k],
            skip=seen,
        )
    joint = tf.data.Dataset.zip(streams)
    num_parts = 2 if share is None else 3
    joint = joint.map(lambda each: tuple({name: parts[i] for name, parts in each.items()} for i in range(num_parts)))
    return joint.prefetch(tf.data.AUTOTUNE)
