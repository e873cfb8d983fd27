"""A layer whose slots are filled at each call: how one net computes any task whose values it is given."""

import dataclasses
import math
from collections.abc import Sequence

import keras
from keras import ops


@dataclasses.dataclass(frozen=True)
class VectorSlot:
    """Position of one variable's values in a task's vector.

    Attributes:
        key: key of the variable, `<layer path>/<variable name>`; the head's are `head/<variable name>`.
        offset: position of its first value.
        shape: shape of the variable; its values are in row-major order.
    """

    key: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


class Slotted(keras.layers.Layer):
    """Computes what a layer does, some of its variables taken out of a vector that is handed in.

    Args:
        layer: a built layer; its other variables are used unchanged.
        slots: which of its variables are taken, by the variable, and from where.
        **kwargs: options of `keras.layers.Layer`.

    Call arguments:
        inputs: as the layer takes.
        extra: list of one float32 vector `(values,)`.

    Output shape: that of the layer.
    """

    _mp_takes_extra = True

    def __init__(self, layer: keras.Layer, slots: Sequence[tuple[keras.Variable, VectorSlot]], **kwargs):
        super().__init__(**kwargs)
        self.layer = layer
        self.slots = list(slots)

    def build(self, *shapes):
        pass

    def call(self, inputs, extra, training=None, mask=None):
        (vector,) = extra
        # A scope hides the one that this call is in: what that says of the other variables is handed on.
        values = [(variable, variable.value) for variable in self.layer.variables]
        values += [
            (variable, ops.reshape(vector[slot.offset : slot.offset + slot.size], slot.shape))
            for variable, slot in self.slots
        ]
        with keras.StatelessScope(state_mapping=values):
            return self.layer.call(inputs)

    def compute_output_shape(self, inputs_shape, extra_shape):
        return self.layer.compute_output_shape(inputs_shape)
