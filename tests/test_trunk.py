import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Trunk
from tests.conftest import SIZE, same, small_net, snapshot


def test_a_trunk_is_frozen_and_runs_in_inference_mode(trunk, images):
    before = snapshot(trunk.variables())
    assert trunk.model.trainable_variables == []
    assert np.array_equal(trunk.model(images, training=True), trunk.model(images, training=False))
    assert same(before, snapshot(trunk.variables()))


def test_variables_have_one_key_each_and_depthwise_kernels_their_own_name(trunk):
    variables = trunk.variables()
    assert len(variables) == len(trunk.model.weights)
    assert "depthwise/depthwise_kernel" in variables and "depthwise/kernel" not in variables
    assert trunk.num_parameters() == 3 * 9 * 8 + 4 * 8 + 9 * 8 + 3 * 8 + 9 * 8 + 8 * 12 + 12 + 4 * 12 + 12 * 16 + 16


def test_the_fingerprint_is_that_of_the_named_values_whatever_the_net_around_them(trunk, tmp_path):
    keys = sorted(trunk.variables())
    trunk.model.save(tmp_path / "trunk.keras")
    loaded = Trunk(keras.models.load_model(tmp_path / "trunk.keras"), "renamed", Preprocessing(64, "torch"))
    assert loaded.fingerprint(reversed(keys)) == trunk.fingerprint(keys)
    assert Trunk(small_net(size=64), "larger", Preprocessing(64, "tf")).fingerprint(keys) == trunk.fingerprint(keys)
    assert trunk.fingerprint(keys[1:]) != trunk.fingerprint(keys)
    assert Trunk(small_net(seed=1), "other", Preprocessing(SIZE, "tf")).fingerprint(keys) != trunk.fingerprint(keys)


def test_two_inputs_are_refused():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    with pytest.raises(ModelPatchError, match="'pair' has 2 inputs and 1 outputs"):
        Trunk(keras.Model([a, b], keras.layers.Add()([a, b])), "pair", Preprocessing(8, "tf"))


def test_a_net_for_images_of_any_size_is_made_one_for_those_of_the_preprocessing(images):
    image = keras.Input((None, None, 3))
    norm = keras.layers.BatchNormalization(name="norm")
    net = keras.Model(image, keras.layers.GlobalAveragePooling2D()(norm(image)))
    trunk = Trunk(net, "any", Preprocessing(SIZE, "tf"))
    assert trunk.model.input_shape == (None, SIZE, SIZE, 3) and trunk.layers()["norm"] is norm
    assert np.array_equal(trunk.model(images), net(images))
