"""Slots of a bank: how the values of a task become the vectors that a banked layer reads, and back."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from model_patch.bank.layers import Banked
from model_patch.layers.affine import ValueOf, scale_and_bias

Vectors = Sequence[np.ndarray]
"""What a banked layer reads for one task."""

Values = dict[str, np.ndarray]
"""Values of layers by key, `<layer path>/<variable name>`."""


@dataclasses.dataclass(frozen=True)
class BankSlot:
    """A banked layer and how the values of a task become the vectors that it reads.

    Attributes:
        layer: reads vectors of the widths `layer.widths`.
        vectors: returns them for one task, arrays in that order.
        values: returns, for vectors, values with which the trunk's layers at `paths` compute the same; others are the trunk's.
        paths: paths of the trunk's layers whose variables they represent.
    """

    layer: Banked
    vectors: Callable[[ValueOf], list[np.ndarray]]
    values: Callable[[Vectors], Values]
    paths: tuple[str, ...]


def norm_vectors(path: str, layer: keras.layers.BatchNormalization, value_of: ValueOf) -> list:
    """Returns the scale and bias that a batch norm comes to in inference."""
    return [*scale_and_bias(path, value_of, layer.epsilon)]


def norm_values(path: str, layer: keras.layers.BatchNormalization, scale, bias) -> Values:
    """Returns values of which `norm_vectors` makes this scale and bias."""
    return affine_values(path, scale, bias) | {
        f"{path}/moving_mean": np.zeros_like(bias),
        f"{path}/moving_variance": np.full(bias.shape, 1.0 - layer.epsilon),
    }


def affine_values(path: str, scale, bias) -> Values:
    return {f"{path}/gamma": scale, f"{path}/beta": bias}


def values_without_bias(path: str, scale, bias) -> Values:
    """Returns values of which `affine_vectors` makes this scale and bias."""
    return affine_values(path, scale, bias) | {f"{path}/bias": np.zeros_like(bias)}


def affine_vectors(path: str, value_of: ValueOf) -> list:
    """Returns the scale and bias of another layer: gamma, and what it makes of a convolution's own bias, with beta.

    1 and 0 where there are none.
    """
    gamma, beta, bias = (value_of(path, name) for name in ("gamma", "beta", "bias"))
    scale = np.float64(1.0) if gamma is None else gamma.astype("float64")
    shift = np.float64(0.0) if beta is None else beta
    return [scale, shift if bias is None else shift + bias * scale]
