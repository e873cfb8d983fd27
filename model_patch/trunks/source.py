"""The variables of a net that was trained elsewhere, and how they come into the Keras net that it is."""

import dataclasses
import re
from collections.abc import Mapping

import keras
import numpy as np

from model_patch.errors import ModelPatchError, mismatches
from model_patch.graph.rewrite import rewrite, walk
from model_patch.layers import variables
from model_patch.preprocessing import TORCH_DEVIATION, TORCH_MEAN
from model_patch.trunks.architectures import ARCHITECTURES, Architecture
from model_patch.trunks.weights import refresh

NOT_PART_OF_A_NET = (
    r"global_step|beta[12]_power",
    r".*/(Momentum|RMSProp(_1)?|Adam(_1)?|ExponentialMovingAverage)",
    r"FeatureExtractor/.*_Conv2d_\d_(1x1|3x3_s2)_\d+(_depthwise)?/.*",  # The layers of an SSD after its trunk.
    r"FeatureExtractor/(.*/)?fpn/.*",
    r"BoxPredictor_\d+/.*|WeightSharedConvolutionalBoxPredictor(_\d+)?/.*",
    r"(.*/)?(Logits|AuxLogits|logits|Predictions|predictions)/.*",
    r".*/head/dense/.*",
)
"""Variables of checkpoints that no trunk uses: of optimizers, of heads, of a detector's further layers."""

AVERAGE = "/ExponentialMovingAverage"
"""After the name of a variable: its average over training, with which these nets were evaluated."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The variables of a net that was trained elsewhere.

    Attributes:
        values: arrays by full name.
        architecture: what they are variables of.
        prefix: what comes before every name of the net, ending in `/`.
        where: what they were read from, for errors.
    """

    values: dict[str, np.ndarray]
    architecture: Architecture
    prefix: str
    where: str

    @property
    def scope(self) -> str:
        """The net's own scope, the last part of the prefix."""
        return self.prefix.rstrip("/").rpartition("/")[2]

    def image_size(self) -> int:
        """Returns the height and width in pixels that the net was trained at."""
        return self.architecture.image_size(self.scope)

    def net(self, image_size: int, scales: bool = True) -> keras.Model:
        """Returns the Keras net with these values: images in `architecture.mode` to features `(batch, channels)`.

        Args:
            image_size: height and width in pixels.
            scales: whether a net of Keras that scales pixels by itself still does so.

        Raises:
            ModelPatchError: a variable is missing, not known, or of another shape than the net's; all are named.
        """
        inner = {name.removeprefix(self.prefix): value.shape for name, value in self.values.items()}
        net = self.architecture.build(self.scope, inner, image_size)
        constants = _constants(net)
        ours = {}
        scopes = self.architecture.scopes(net)
        for path, layer in walk(net):
            for key, variable in variables(path, layer).items():
                if key not in constants:
                    name = key.removeprefix(f"{path}/")
                    ours[f"{self.prefix}{scopes[path]}/{self.architecture.names.get(name, name)}"] = variable
                else:
                    variable.assign(constants[key])
        shapes = {name: tuple(variable.shape) for name, variable in ours.items()}
        extra = re.compile("|".join(NOT_PART_OF_A_NET))
        given = {name: value.shape for name, value in self.values.items() if name in ours or not extra.fullmatch(name)}
        mismatched = mismatches(shapes, given)
        if mismatched:
            raise ModelPatchError(f"the variables of {self.where} are not those of {self.scope}: {mismatched}")
        for name, variable in ours.items():
            variable.assign(self.values[name])
        if self.architecture.bgr:
            stem = next(variable for variable in ours.values() if variable.shape[-2] == 3)
            stem.assign(keras.ops.flip(stem.value, axis=-2))
        refresh(net)
        return net if scales else rewrite(net, _without_scaling)


def recognise(values: Mapping[str, np.ndarray], where: str) -> Source | None:
    """Finds out which architecture variables belong to; None where no known one.

    Args:
        values: arrays by full name. Those that training averaged are replaced by their average.
        where: what they were read from, for errors.
    """
    averaged = {name: values.get(name + AVERAGE, value) for name, value in values.items()}
    for architecture in ARCHITECTURES:
        pattern = re.compile(rf"(.*?/)?{architecture.scope}/")
        prefixes = {match[0] for name in values if (match := pattern.match(name))}
        if prefixes:
            return Source(averaged, architecture, min(prefixes, key=len), where)
    return None


def _without_scaling(path: str, layer: keras.Layer) -> keras.Layer:
    is_scaling = isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)
    return keras.layers.Identity(name=layer.name) if is_scaling else layer


def _constants(net: keras.Model) -> dict[str, np.ndarray | int]:
    """Returns the values of what no training moves, by key: EfficientNet scales its images by itself."""
    known: dict[str, np.ndarray | int] = {"mean": TORCH_MEAN, "variance": TORCH_DEVIATION**2, "count": 0}
    return {
        key: np.reshape(known[variable.name], variable.shape)
        for path, layer in walk(net)
        if isinstance(layer, keras.layers.Normalization)
        for key, variable in variables(path, layer).items()
    }
