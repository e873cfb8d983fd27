"""How to train: optimizer, learning rate and schedule, as pure functions of what is trained and for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from model_patch.data.augment import augmenter
from model_patch.data.balance import BALANCES
from model_patch.errors import require_number, unknown
from model_patch.kinds import TrainSpec

if TYPE_CHECKING:  # Flags take their choices from here, and `--help` imports no Keras.
    import keras
    import numpy as np


def _optimizers():
    import keras

    return keras.optimizers


def _adam(rate, **options):
    from model_patch.training.adam import adam

    return adam(rate, **options)


OPTIMIZERS = {
    "adam": _adam,
    "adamw": lambda rate: _optimizers().AdamW(rate, weight_decay=0.02),
    "rmsprop": lambda rate: _optimizers().RMSprop(rate, rho=0.9, momentum=0.9, epsilon=1.0),
    "sgd": lambda rate: _optimizers().SGD(rate, momentum=0.9, nesterov=True),
}
"""Optimizers by name. RMSProp's decay, momentum and epsilon are those of the Inception and MobileNet papers, which the
paper's rate of 0.045 belongs to (Szegedy et al. 2016, section 8; Sandler et al. 2018, section 6.1)."""


def _scaled(schedule, rate: float):
    from model_patch.training.adam import Scaled

    return Scaled(schedule, rate)


SCHEDULES = {
    "constant": lambda rate, steps, steps_per_epoch: rate,
    "cosine": lambda rate, steps, steps_per_epoch: _scaled(_optimizers().schedules.CosineDecay(1.0, steps), rate),
    "paper": lambda rate, steps, steps_per_epoch: _scaled(
        _optimizers().schedules.ExponentialDecay(
            1.0, decay_steps=max(1, round(2.5 * steps_per_epoch)), decay_rate=0.98, staircase=True
        ),
        rate,
    ),
}
"""Learning-rate schedules by name. `paper`: times 0.98 every 2.5 epochs."""

PAPER_LEARNING_RATE = 0.045
"""The paper's, for RMSProp."""

RELATIVE_LEARNING_RATE = 0.01
"""Adam's for a classification task, in each variable's own size, see `training.adam`, on a trunk of `REFERENCE_WIDTH`. See
docs/choices.md."""

REFERENCE_WIDTH = 328.0
"""Width of MobileNetV2 1.0, see `Trunk.width`. A relative rate falls as the width rises: all channels of a layer move together, and
the next layer adds them up (Yang et al. 2022, "Tensor Programs V")."""

RELATIVE_RATES = (0.003, 0.06)
"""Lowest and highest default of one patch kind, whatever the width."""

BATCH_STATISTICS_FACTOR = 3.0
"""How much larger the default of a patch on a frozen trunk is with the batch's statistics: they undo what a step does to the scale of
a layer's input, so that larger steps are safe."""

WARM_UP = 0.1
"""Share of the steps in which a relative rate rises to its highest: Adam's first steps are as long as any, in directions
that one batch gave."""

ADAM_LEARNING_RATES = {
    # TrainSpec by name: with batch statistics, with frozen ones.
    "full": (0.003, 0.001),
    "last": (0.1, 0.1),
    "depthwise": (0.003, 0.003),
    "patch": (0.03, 0.01),
}
"""Adam's absolute rates by what is trained, for detectors and a last layer alone: where depthwise kernels are trained, theirs;
`patch`: any other. See docs/choices.md."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one task is trained.

    Attributes:
        epochs: passes over the training images, at least 1.
        batch_size: images per step, at least 1.
        optimizer: a name in `OPTIMIZERS`.
        learning_rate: highest rate; 0 takes the default for the optimizer and for what is trained. For a patch or all
            weights Adam's is relative to each variable's size, see `is_relative`; not for detection.
        schedule: a name in `SCHEDULES`.
        augmentation: names joined by `+`, see `model_patch.data.augment`.
        balance: how classes of unequal size are counted, one of `data.balance.BALANCES`; with another than `none` the
            best epoch is that of the highest macro accuracy.
        patience: where there are validation images, epochs without a better one after which training stops; 0 for never.
        max_train_images, max_test_images: use at most this many, the first ones; 0 for all.

    Raises:
        ModelPatchError: a name is unknown or a number out of range.
    """

    epochs: int = 15
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 0.0
    schedule: str = "cosine"
    augmentation: str = "none"
    balance: str = "none"
    patience: int = 0
    max_train_images: int = 0
    max_test_images: int = 0

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.balance not in BALANCES:
            raise unknown("balance", self.balance, BALANCES)
        augmenter(self.augmentation)
        for field, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("learning_rate", 0),
            ("patience", 0),
            ("max_train_images", 0),
            ("max_test_images", 0),
        ):
            require_number(field, getattr(self, field), least, whole=field != "learning_rate")

    def learns_last_layer_first(self, train_spec: TrainSpec) -> bool:
        """Whether the last layer is trained by itself, see `training.last_layer`.

        With another optimizer than Adam or the paper's schedule nothing is; and the last layer alone takes steps of
        gradient descent where a rate is given for them.
        """
        default = self.optimizer == "adam" and self.schedule != "paper"
        return train_spec.last and default and bool(train_spec.kinds or not self.learning_rate)

    def is_relative(self, train_spec: TrainSpec) -> bool:
        """Whether the rate is relative to each variable's size: Adam's, unless only the last layer trains."""
        return bool(train_spec.kinds) and self.optimizer == "adam" and self.schedule != "paper"

    def make_optimizer(
        self,
        train_spec: TrainSpec,
        steps_per_epoch: int,
        relative: bool = False,
        decays: Mapping[str, np.ndarray] | None = None,
        width: float = REFERENCE_WIDTH,
        trains_trunk: bool = False,
    ) -> keras.optimizers.Optimizer:
        """Returns a new optimizer with its schedule for `epochs * steps_per_epoch` steps.

        Args:
            train_spec: what is trained.
            steps_per_epoch: at least 1.
            relative: whether Adam's rate is relative to each variable's size; a cosine then has a warm-up.
            decays: Adam's weight decays by the key of a variable, see `training.adam.RelativeAdam`.
            width: width of the trunk, in channels; the default of a relative rate depends on it.
            trains_trunk: whether the trunk is trained, too, as that of joined tasks may be.
        """
        steps, options = self.epochs * steps_per_epoch, {"decays": decays} if decays else {}
        if not relative:
            rate = self.learning_rate or default_learning_rate(self.optimizer, train_spec)
            return OPTIMIZERS[self.optimizer](SCHEDULES[self.schedule](rate, steps, steps_per_epoch), **options)
        rate = self.learning_rate or relative_learning_rate(train_spec, width, trains_trunk)
        if self.schedule != "cosine":
            return _adam(SCHEDULES[self.schedule](rate, steps, steps_per_epoch), relative=True, **options)
        warm_up = max(1, round(WARM_UP * steps))
        cosine = _optimizers().schedules.CosineDecay(
            0.0, max(1, steps - warm_up), warmup_target=1.0, warmup_steps=warm_up
        )
        return _adam(_scaled(cosine, rate), relative=True, **options)


def relative_learning_rate(train_spec: TrainSpec, width: float, trains_trunk: bool = False) -> float:
    """Returns the relative rate to use where none is given, for a trunk of this width; as measured, see docs/choices.md.

    It is inversely proportional to the width where kernels of the trunk are trained, and to its square for patches on a frozen
    trunk, for which it is larger with the batch's statistics. Patch kinds that train together share it: a layer whose norm and
    kernel both move changes by more.
    """
    kinds = set(train_spec.kinds) - {"statistics"}
    rate = RELATIVE_LEARNING_RATE * REFERENCE_WIDTH / width
    if not trains_trunk and "full" not in kinds:
        rate *= REFERENCE_WIDTH / width
        if kinds and train_spec.norm_statistics == "batch":
            rate *= BATCH_STATISTICS_FACTOR
    lowest, highest = RELATIVE_RATES
    return min(highest, max(lowest, rate)) / max(1, len(kinds))


def default_learning_rate(optimizer: str, train_spec: TrainSpec) -> float:
    """Returns the learning rate to use where none is given; the numbers were measured, see docs/choices.md."""
    if not optimizer.startswith("adam"):
        return PAPER_LEARNING_RATE
    if not train_spec.kinds:
        name = "last"
    else:
        name = next((kind for kind in ("full", "depthwise") if kind in train_spec.kinds), "patch")
    return ADAM_LEARNING_RATES[name][train_spec.norm_statistics == "frozen"]
