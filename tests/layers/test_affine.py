import keras
import numpy as np
import pytest

from model_patch.layers.affine import Affine
from model_patch.layers.slotted import Slotted, VectorSlot


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_it_scales_and_shifts_each_channel(axis):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype("float32")
    layer = Affine(axis)
    layer.build(x.shape)
    scale, bias = np.random.default_rng(1).normal(size=(2, x.shape[axis])).astype("float32")
    layer.set_weights([scale, bias])
    expected = np.moveaxis(np.moveaxis(x, axis, -1) * scale + bias, -1, axis)
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert copy.axis == axis and copy.compute_output_shape(x.shape) == x.shape


def test_a_slotted_layer_takes_what_its_slots_say_out_of_the_vector_and_keeps_the_rest():
    x = np.random.default_rng(0).normal(size=(2, 5)).astype("float32")
    dense = keras.layers.Dense(3)
    dense.build(x.shape)
    kernel, bias = (np.array(v) for v in dense.get_weights())
    slotted = Slotted(dense, [(dense.bias, VectorSlot("dense/bias", 2, (3,)))])
    vector = np.array([9, 9, 1, 2, 3, 9], "float32")
    np.testing.assert_allclose(slotted(x, [vector]), x @ kernel + [1, 2, 3], atol=1e-5)
    np.testing.assert_array_equal(dense.bias, bias)
