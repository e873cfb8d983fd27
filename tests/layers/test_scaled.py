import keras
import numpy as np
import pytest

from model_patch import Preprocessing, Task, Trunk, bind, join
from model_patch.layers import patch_layer
from tests.conftest import same, snapshot, train_steps

SIZE = 16


def convolution(kind, use_bias=True):
    options = {"strides": 2, "padding": "same", "use_bias": use_bias, "activation": "relu", "name": "conv"}
    return (
        keras.layers.Conv2D(7, 3, **options)
        if kind == "conv"
        else keras.layers.DepthwiseConv2D(3, depth_multiplier=2, **options)
    )


def built(kind, use_bias=True):
    layer = convolution(kind, use_bias)
    layer.build((None, SIZE, SIZE, 5))
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    return layer


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_scale_and_bias_stand_between_convolution_and_activation(kind, use_bias):
    layer = built(kind, use_bias)
    patched = patch_layer(layer, {"gamma", "beta"})
    x = np.random.default_rng(1).normal(size=(3, SIZE, SIZE, 5)).astype("float32")
    np.testing.assert_allclose(patched(x), layer(x), atol=1e-5)
    rng = np.random.default_rng(2)
    gamma, beta = (rng.normal(size=patched.gamma.shape).astype("float32") for _ in range(2))
    patched.gamma.assign(gamma)
    patched.beta.assign(beta)
    layer.activation = keras.activations.linear
    expected = np.maximum(gamma * np.array(layer(x)) + beta, 0)
    np.testing.assert_allclose(patched(x), expected, atol=1e-4)


def net(data_format="channels_last"):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(6, 3, activation="relu", name="first"),
        keras.layers.DepthwiseConv2D(3, name="second"),
    ]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers, keras.layers.GlobalAveragePooling2D()])


def test_a_net_without_norms_is_patched_at_its_convolutions_and_stays_as_it_is():
    trunk = Trunk(net(), "plain", Preprocessing(SIZE, "tf"))
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last")
    assert set(bound.patch_variables) == {"first/gamma", "first/beta", "second/gamma", "second/beta"}
    assert bound.counts().patch == 2 * (6 + 6)
    images = np.random.default_rng(0).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype("float32")
    np.testing.assert_allclose(bound.features(images), trunk.model(images), atol=1e-6)
    before, patch = snapshot(trunk.variables()), snapshot(bound.patch_variables)
    train_steps(bound, images, np.arange(4) % 2)
    assert same(before, snapshot(trunk.variables()))
    assert all(not np.array_equal(patch[key], value) for key, value in snapshot(bound.patch_variables).items())


def test_such_a_patch_is_saved_with_the_model_and_by_itself(tmp_path):
    trunk = Trunk(net(), "plain", Preprocessing(SIZE, "tf"))
    bound, other = (bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last") for _ in range(2))
    images = np.random.default_rng(0).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype("float32")
    train_steps(bound, images, np.arange(4) % 2)
    other.load(bound.patch())
    bound.model.save(tmp_path / "bound.keras")
    predictions = np.array(bound.model(images))
    assert np.array_equal(other.model(images), predictions)
    assert np.array_equal(keras.models.load_model(tmp_path / "bound.keras")(images), predictions)


def test_such_tasks_are_joined():
    trunk = Trunk(net(), "plain", Preprocessing(SIZE, "tf"))
    joined = join(trunk, [Task(name, ("a", "b"), trunk.preprocessing) for name in ("one", "two")], "scale_bias+last")
    images = np.random.default_rng(0).uniform(-1, 1, (5, SIZE, SIZE, 3)).astype("float32")
    joined.model.compile("sgd", joined.losses(), run_eagerly=True)
    joined.model.fit({"one": images, "two": images}, {"one": np.arange(5) % 2, "two": np.ones(5)}, verbose=0)
    predictions = joined.model({"one": images, "two": images[:3]})
    assert not np.allclose(predictions["one"][:3], predictions["two"])
    for name, batch in (("one", images), ("two", images[:3])):
        np.testing.assert_allclose(joined.tasks[name].model(batch), predictions[name], atol=1e-5)


def test_convolutions_of_a_net_with_norms_are_left_alone(trunk, task):
    keys = bind(trunk, task, "scale_bias+last").patch_variables
    assert {key.split("/")[0] for key in keys} == {"stem_bn", "depthwise_bn", "separable_bn"}
