"""Patch kinds: which variables of a layer a task makes its own. A new kind is one function here, and nothing elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from model_patch.errors import ModelPatchError, unknown

if TYPE_CHECKING:  # Functions import Keras when they look at a layer: reading what a patch file says takes none.
    import keras

Owns = Callable[["keras.Layer"], set[str]]
"""Given a layer of the trunk, returns the names of its variables that a task owns. Those that Keras trains in a layer of
this class are trained; the others, such as batch norm's statistics, are only kept with the patch."""


VERSION = 2
"""Version of what the kinds own. In version 1, `scale_bias` left RMS norms and layer scales to the trunk; see `owned`."""


def offer_scale_bias(layers: Iterable[keras.Layer]):
    """Marks the convolutions of a net that has no normalisation layer: with `scale_bias` tasks scale their outputs."""
    from model_patch.layers import CONVOLUTIONS, NORMS

    layers = list(layers)
    if not any(isinstance(layer, NORMS) for layer in layers):
        # What is a norm since version 2 was none for patches from before.
        versions = {1} if any(_channel_scales(layer) for layer in layers) else {1, 2}
        for layer in layers:
            if isinstance(layer, CONVOLUTIONS):
                layer._mp_offers_scale_bias = versions


def _channel_scales(layer) -> set[str]:
    """Returns the names of the variables of an RMS norm or a layer scale; empty for other layers.

    Nets have classes of their own for both. They are known by name, and by having vectors for variables.
    """
    if not any(name in type(layer).__name__.lower() for name in ("layerscale", "rmsnorm", "learnableaffine")):
        return set()
    from model_patch.layers import variables

    named = variables("", layer)
    return {key.removeprefix("/") for key in named} if all(len(v.shape) == 1 for v in named.values()) else set()


KINDS: dict[str, Owns] = {}
"""Every patch kind by name."""


def kind(owns: Owns) -> Owns:
    """Decorator that registers a patch kind under its function's name."""
    KINDS[owns.__name__] = owns
    return owns


@kind
def statistics(layer):
    """Batch norm's mean and variance: nothing is trained by gradient, they are re-estimated on the task's images."""
    from keras.layers import BatchNormalization

    if not isinstance(layer, BatchNormalization):
        return set()
    return {variable.name for variable in layer.weights} - {"gamma", "beta"}


@kind
def scale_bias(layer):
    """The paper's S/B patch: scale and bias of every normalisation layer, added where it has none, and its statistics.

    Layer scales, which transformers and ConvNeXt have after their blocks, are scales too. In a net without normalisation
    layers, such as VGG16, they are those of every convolution's output.
    """
    from keras.layers import RMSNormalization

    from model_patch.layers import NORMS

    if isinstance(layer, NORMS):
        return {"gamma", "beta"} | statistics(layer)
    if isinstance(layer, RMSNormalization):
        return {"scale", "beta"}
    return {"gamma", "beta"} if VERSION in getattr(layer, "_mp_offers_scale_bias", ()) else _channel_scales(layer)


@kind
def depthwise(layer):
    """The paper's DW patch: every depthwise kernel, those inside separable convolutions too."""
    from keras.layers import DepthwiseConv2D, SeparableConv2D

    is_depthwise = isinstance(layer, DepthwiseConv2D | SeparableConv2D)
    return {"depthwise_kernel"} if is_depthwise else set()


@kind
def bias(layer):
    """Every bias that the trunk has: of convolutions and dense layers, and the beta of normalisation layers.

    Those of layers inside a layer that cannot be opened, such as a recurrent cell's, stay the trunk's.
    """
    from model_patch.layers import NORMS, variables

    names = {key.removeprefix("/") for key in variables("", layer)}
    return names & ({"beta"} if isinstance(layer, NORMS) else {"bias"})


@kind
def full(layer):
    """Every variable: the task gets a net of its own. This is fine-tuning, the paper's upper row."""
    from keras.layers import Normalization

    from model_patch.layers import variables

    # A Normalization layer holds constants of the data it was adapted to, which are not trained.
    if isinstance(layer, Normalization):
        return set()
    return {key.removeprefix("/") for key in variables("", layer)}


def owned(kind: str, layer: keras.Layer, version: int = VERSION) -> set[str]:
    """Returns the names of the layer's variables that a kind owns.

    Patches keep the version by which they were made: what a kind owns decides which values a file must hold.

    A layer that contains a whole net of unknown graph says so itself: it has an attribute `_mp_slots`, names
    by kind.

    Raises:
        ModelPatchError: such a layer does not have the kind.
    """
    slots = getattr(layer, "_mp_slots", None)
    if slots is None:
        if version == 1 and kind == "scale_bias":
            return _scale_bias_1(layer)
        return KINDS[kind](layer)
    if kind not in slots:
        raise ModelPatchError(
            f"{kind} cannot be trained on a trunk that runs as a single layer, nor norm_statistics=batch: expected "
            f"{', '.join(slots)}, with norm_statistics=frozen"
        )
    return slots[kind]


def _scale_bias_1(layer) -> set[str]:
    from model_patch.layers import NORMS

    offers = isinstance(layer, NORMS) or 1 in getattr(layer, "_mp_offers_scale_bias", ())
    return {"gamma", "beta"} | statistics(layer) if offers else set()


LAST = "last"

NORM_STATISTICS = ("auto", "batch", "frozen")

SHARE = {
    "nothing": "each task has a net of its own, head and all: independent nets",
    "trunk": "each task has a patch and a head of its own",
    "trunk+patch": "one patch for all tasks; only the heads are their own",
}
"""What the tasks of a join may share."""


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What is trained for a task, and with which statistics.

    Attributes:
        kinds: names of patch kinds, in the order of `KINDS`; may be empty, for the last layer alone.
        last: whether the last layer is trained; otherwise it stays at its random initial values.
        norm_statistics: `batch`: the task trains with the statistics of its own batches and keeps its own moving ones,
            as in the paper; `frozen`: batch norm is an affine map with the trunk's statistics. Given as `auto`, it is
            what measured best (docs/choices.md): frozen for patches, batch for `full` and where `statistics` is a kind.
        version: see `VERSION`; that of the file, for a patch that was read.
    """

    kinds: tuple[str, ...]
    last: bool
    norm_statistics: str = "auto"
    version: int = dataclasses.field(default=VERSION, compare=False)

    def __post_init__(self):
        if self.norm_statistics not in NORM_STATISTICS:
            raise unknown("norm_statistics", self.norm_statistics, NORM_STATISTICS)
        if self.norm_statistics == "auto":
            best = "batch" if {"full", "statistics"} & set(self.kinds) else "frozen"
            object.__setattr__(self, "norm_statistics", best)  # The class is frozen only for its users.
        if self.norm_statistics == "frozen" and self.kinds == ("statistics",):
            raise ModelPatchError(
                "statistics alone with norm_statistics=frozen changes nothing: use norm_statistics=batch"
            )

    @classmethod
    def parse(cls, text: str, norm_statistics: str = "auto", version: int = VERSION) -> TrainSpec:
        """Parses names of kinds and `last`, joined by `+`, such as `scale_bias+depthwise+last`. `full` includes `last`.

        Raises:
            ModelPatchError: a name is unknown or repeated, `full` is joined with another kind, or the kinds cannot have
                the statistics.
        """
        names = text.split("+")
        for name in names:
            if name not in KINDS and name != LAST:
                raise unknown("patch kind", name, [*KINDS, LAST])
        if len(set(names)) < len(names):
            raise ModelPatchError(f"{text!r} names a patch kind more than once: write each once")
        if "full" in names and set(names) - {"full", LAST}:
            raise ModelPatchError(f"{text!r} joins full with a part of it: write full alone")
        kinds = tuple(name for name in KINDS if name in names)
        return cls(kinds, LAST in names or "full" in names, norm_statistics, version)

    def __str__(self):
        return "full" if "full" in self.kinds else "+".join([*self.kinds, *([LAST] if self.last else [])])

    def owns(self, layer: keras.Layer) -> set[str]:
        """Returns the names of the layer's variables that the task owns.

        This one function decides what is trained, saved, counted and exported for a task: the union over its kinds,
        and batch norm's statistics wherever training with batch statistics would otherwise move the trunk's.
        """
        kinds = {*self.kinds, "statistics"} if self.kinds and self.norm_statistics == "batch" else self.kinds
        return set().union(*(owned(name, layer, self.version) for name in kinds))
