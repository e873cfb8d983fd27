"""Patched layers as citizens of Keras: configuration, saving, precision, data formats."""

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.layers import PatchedBatchNormalization, PatchedDepthwiseConv2D, patch_layer, variables

LAYERS = {
    "batch_norm": (keras.layers.BatchNormalization, {}, {"gamma", "beta", "moving_mean", "moving_variance"}),
    "batch_norm_beta": (keras.layers.BatchNormalization, {}, {"beta"}),
    "batch_norm_no_scale": (keras.layers.BatchNormalization, {"scale": False}, {"gamma", "beta"}),
    "batch_norm_no_center": (keras.layers.BatchNormalization, {"center": False}, {"gamma", "beta"}),
    "layer_norm": (keras.layers.LayerNormalization, {}, {"beta"}),
    "group_norm": (keras.layers.GroupNormalization, {"groups": 2}, {"gamma"}),
    "depthwise": (keras.layers.DepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2}, {"depthwise_kernel"}),
    "depthwise_bias": (keras.layers.DepthwiseConv2D, {"kernel_size": 3, "strides": 2}, {"bias"}),
    "separable": (keras.layers.SeparableConv2D, {"filters": 7, "kernel_size": 3}, {"depthwise_kernel"}),
    "conv_bias": (keras.layers.Conv2D, {"filters": 5, "kernel_size": 3}, {"bias"}),
    "dense_bias": (keras.layers.Dense, {"units": 5}, {"bias"}),
}


@pytest.fixture(params=LAYERS, ids=list(LAYERS))
def pair(request):
    """A built layer with uneven values, frozen as in a trunk, and its patched form."""
    layer_class, arguments, own = LAYERS[request.param]
    layer = layer_class(name="base", **arguments)
    layer.build((None, 7, 5, 4))
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    layer.trainable = False
    return layer, patch_layer(layer, own), own


X = np.random.default_rng(2).normal(size=(3, 7, 5, 4)).astype("float32")


def test_output_is_the_base_layers_to_the_last_bit(pair):
    base, patched, _ = pair
    assert np.array_equal(base(X, training=False), patched(X, training=False))


def test_it_owns_what_it_was_told_and_borrows_the_rest(pair):
    base, patched, own = pair
    patched(X)
    borrowed = {id(v) for v in base.weights}
    by_name = {key.removeprefix("/"): v for key, v in variables("", patched).items()}
    assert {name for name, v in by_name.items() if id(v) not in borrowed} == own
    assert len(patched.trainable_variables) == len(own - {"moving_mean", "moving_variance"})


def test_owned_values_change_without_the_base_and_borrowed_ones_with_it(pair):
    base, patched, own = pair
    before = np.array(base(X, training=False))
    patched(X)
    for variable in patched.trainable_variables:
        variable.assign(variable + 0.25)
    assert np.array_equal(base(X, training=False), before)
    assert not np.allclose(patched(X, training=False), before)


def test_config_round_trip_builds_the_same_layer_without_a_trunk(pair):
    _, patched, own = pair
    patched(X)
    again = type(patched).from_config(patched.get_config())
    again.build(X.shape)
    assert again.get_config() == patched.get_config()
    assert [v.name for v in again.trainable_variables] == [v.name for v in patched.trainable_variables]
    assert sorted(v.name for v in again.weights) == sorted(v.name for v in patched.weights)


def test_a_model_with_it_is_saved_and_loaded_whole(pair, tmp_path):
    _, patched, _ = pair
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, patched(inputs))
    for variable in patched.trainable_variables:
        variable.assign(variable + 0.25)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(model(X, training=False), loaded(X, training=False))


def test_mixed_precision_computes_in_half_and_keeps_float32_variables(pair):
    base, _, own = pair
    config = base.get_config() | {"dtype": "mixed_float16", "trainable": True}
    half = type(base).from_config(config)
    half.build(X.shape)
    half.set_weights(base.get_weights())
    patched = patch_layer(half, own)
    outputs = patched(X, training=False)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float16"
    assert {v.dtype for v in patched.weights} == {"float32"}
    np.testing.assert_allclose(np.array(outputs, "float32"), base(X, training=False), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shared_is_trainable", [False, True])
def test_saving_does_not_depend_on_whether_the_trunk_trains(shared_is_trainable, tmp_path):
    base = keras.layers.Conv2D(5, 3, name="base")
    base.build((None, 7, 5, 4))
    base.trainable = shared_is_trainable
    patched = patch_layer(base, {"bias"})
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, patched(inputs))
    model.save(tmp_path / "model.keras")
    assert np.array_equal(keras.models.load_model(tmp_path / "model.keras")(X), model(X))


def test_channels_first_batch_norm_normalises_axis_1():
    base = keras.layers.BatchNormalization(axis=1, name="base")
    base.build((None, 4, 7, 5))
    patched = patch_layer(base, {"gamma", "beta"}, statistics="frozen")
    x = np.moveaxis(X, -1, 1)
    assert np.array_equal(patched(x), base(x, training=False))
    assert patched.gamma.shape == (4,)


def test_channels_first_depthwise_equals_channels_last():
    first = keras.layers.DepthwiseConv2D(3, data_format="channels_first", name="base")
    first.build((None, 4, 7, 5))
    last = keras.layers.DepthwiseConv2D(3, data_format="channels_last", name="base")
    last.build((None, 7, 5, 4))
    last.set_weights(first.get_weights())
    patched = patch_layer(first, {"depthwise_kernel"})
    outputs = np.moveaxis(np.array(patched(np.moveaxis(X, -1, 1))), 1, -1)
    np.testing.assert_allclose(outputs, patch_layer(last, {"depthwise_kernel"})(X), rtol=1e-5, atol=1e-6)


def test_batch_statistics_normalise_the_batch_and_move_only_owned_statistics():
    x = 3 * X + 2
    layer = PatchedBatchNormalization(own=("gamma", "beta", "moving_mean", "moving_variance"), momentum=0.75)
    outputs = np.array(layer(x, training=True))
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(outputs.var((0, 1, 2)), 1, rtol=1e-3)
    np.testing.assert_allclose(layer.moving_mean, 0.25 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, 0.75 + 0.25 * x.var((0, 1, 2)), rtol=1e-4)
    shared = PatchedBatchNormalization(own=("gamma", "beta"))
    assert np.array_equal(shared(x, training=True), shared(x, training=False)), "the trunk's statistics are not moved"


def test_frozen_statistics_are_an_affine_map_with_gradients_to_gamma_and_beta():
    layer = PatchedBatchNormalization(own=("gamma", "beta", "moving_mean", "moving_variance"), statistics="frozen")
    layer.build(X.shape)
    layer.moving_mean.assign([0.5, -1.0, 0.0, 2.0])
    layer.moving_variance.assign([1.0, 4.0, 0.25, 2.0])
    expected = (X - [0.5, -1.0, 0.0, 2.0]) / np.sqrt(np.array([1.0, 4.0, 0.25, 2.0]) + layer.epsilon)
    np.testing.assert_allclose(layer(X, training=True), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, [0.5, -1.0, 0.0, 2.0])
    assert [v.name for v in layer.trainable_variables] == ["gamma", "beta"]


def test_unknown_statistics_are_refused():
    with pytest.raises(ModelPatchError, match="unknown statistics 'running': expected one of batch, frozen"):
        PatchedBatchNormalization(statistics="running")


def test_a_users_own_subclass_keeps_its_behaviour():
    class Doubled(keras.layers.DepthwiseConv2D):
        def call(self, x):
            return 2 * super().call(x)

    base = Doubled(3, name="base")
    base.build((None, 7, 5, 4))
    patched = patch_layer(base, {"depthwise_kernel"})
    assert isinstance(patched, PatchedDepthwiseConv2D)
    assert np.array_equal(patched(X), base(X))


def test_a_layer_with_layers_inside_cannot_be_owned_in_part():
    layer = keras.layers.MultiHeadAttention(2, 4, name="attention")
    layer.build((None, 7, 4), (None, 7, 4))
    with pytest.raises(ModelPatchError, match="'attention' .MultiHeadAttention. contains other layers"):
        patch_layer(layer, {"bias"})


class GroupedNorm(keras.layers.LayerNormalization):
    """A norm whose constructor needs what its get_config does not return."""

    def __init__(self, group, **kwargs):
        super().__init__(**kwargs)


class Silent(keras.layers.BatchNormalization):
    """A norm whose get_config leaves out what it computes with."""

    def __init__(self, power=1.0, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) ** self.power


class NoConfig(keras.layers.Conv2D):
    def get_config(self):
        raise NotImplementedError("no configuration")


@pytest.mark.parametrize(
    ("layer", "train", "message"),
    [
        (lambda: GroupedNorm(2), "scale_bias", "GroupedNorm.* cannot be copied for a task .*'group'.*get_config"),
        (lambda: NoConfig(4, 3), "full", r"NoConfig.* cannot be copied for a task \(no configuration\)"),
        (lambda: NoConfig(4, 3), "bias", r"NoConfig.* cannot be copied for a task \(no configuration\)"),
        (lambda: Silent(3.0), "scale_bias", "a copy of the layer .*Silent.* computes something else"),
        (lambda: Silent(3.0), "full", "a copy of the layer .*Silent.* computes something else"),
    ],
)
def test_a_users_layer_that_cannot_be_copied_is_refused_in_a_sentence(layer, train, message):
    image = keras.Input((16, 16, 3))
    trunk = Trunk(keras.Model(image, layer()(keras.layers.Conv2D(4, 3)(image))), "t", Preprocessing(16, "tf"))
    with pytest.raises(ModelPatchError, match=message):
        bind(trunk, Task("a", ("x", "y"), trunk.preprocessing), train)
