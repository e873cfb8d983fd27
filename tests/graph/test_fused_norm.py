"""Fused norms: the training graph against the plain one, values and gradients, and that it is what training runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import Preprocessing, Task, Trunk, bind, join
from model_patch.graph.fused_norm import FusedNormModel, fuse_norms
from model_patch.kinds import TrainSpec
from model_patch.layers.conv_norm import ConvNorm
from model_patch.training.replicated import predictor
from tests.conftest import random_norms, train_steps

FROZEN = TrainSpec.parse("scale_bias+last", "frozen")


def odd_net(size: int = 23) -> Trunk:
    """Every convolution that can be one with its norm, in sizes that are different primes."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(5, (3, 2), strides=2, padding="same", name="biased")(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(x)
    x = layers.Activation("relu")(layers.BatchNormalization(center=False)(x))
    y = layers.BatchNormalization(scale=False)(layers.Conv2D(10, 1, use_bias=False)(x))  # Without an activation.
    x = layers.Add()([x, y])
    x = layers.Activation("swish")(layers.BatchNormalization()(layers.Conv2D(7, 1)(x)))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x), name="odd")
    random_norms(model)
    return Trunk(model, "odd", Preprocessing(size, "tf"))


def gradients(model, variables, images):
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = tf.reduce_mean(outputs**2) + tf.reduce_mean(outputs[:, 0])
    return np.array(outputs), tape.gradient(loss, [v.value for v in variables])


def as_layers(bound) -> keras.Model:
    """Returns the model without the training graph."""
    return keras.Model(bound.model.input, bound.model.output)


def compare(bound, images, tolerance=1e-4):
    variables = bound.model.trainable_variables
    outputs, fused = gradients(bound.model, variables, images)
    expected_outputs, expected = gradients(as_layers(bound), variables, images)
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-4, atol=1e-5)
    least = 1e-4 * max(
        np.abs(each).max() for each in expected
    )  # The next norm cancels what a bias adds: nothing is left.
    for variable, new, old in zip(variables, fused, expected, strict=True):
        atol = tolerance * max(least, np.abs(old).max())
        np.testing.assert_allclose(new, old, rtol=tolerance, atol=atol, err_msg=variable.path)


def images_for(trunk: Trunk) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, *trunk.model.input.shape[1:])).astype("float32")


def test_four_kinds_of_convolution_are_fused_and_compute_the_same():
    trunk = odd_net()
    bound = bind(trunk, Task("shapes", ("a", "b"), trunk.preprocessing), FROZEN)
    assert sum(isinstance(layer, ConvNorm) for layer in fuse_norms(bound.model).layers) == 4
    compare(bound, images_for(trunk))


@pytest.mark.parametrize("gamma", [0.0, 1e-20, -1e-8, 1e-5, 1e-2, -3.0])
def test_scales_that_are_too_small_to_tell_the_input_are_trained_too(gamma):
    trunk = odd_net()
    bound = bind(trunk, Task("shapes", ("a", "b"), trunk.preprocessing), FROZEN)
    for key, variable in bound.patch_variables.items():
        if key.endswith("gamma"):
            values = np.array(variable)
            values[::2] = gamma
            variable.assign(values)
    compare(bound, images_for(trunk), 1e-3)


def test_layers_of_one_kind_share_a_trace_whatever_their_shapes():
    layers = keras.layers
    x = image = keras.Input((23, 23, 3))
    for channels in (4, 5, 6):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(channels, 3)(x)))
    trunk = Trunk(keras.Model(image, x, name="plain"), "plain", Preprocessing(23, "tf"))
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), FROZEN)
    compare(bound, images_for(trunk))
    fused = [layer for layer in fuse_norms(bound.model).layers if isinstance(layer, ConvNorm)]
    functions = {layer.traced(layer.input.shape) for layer in fused}
    assert len(fused) == 3 and len(functions) == 1
    assert functions.pop().experimental_get_tracing_count() == 1


def widening_net() -> Trunk:
    """Two widening 1 x 1 convolutions, of which one has large maps, and a convolution before which zeros are padded."""
    layers = keras.layers
    image = keras.Input((64, 64, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", use_bias=False)(image))
    x = layers.ReLU(6.0)(layers.BatchNormalization(name="wide")(layers.Conv2D(16, 1)(x)))
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, strides=2, use_bias=False)(x)))
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(layers.Conv2D(64, 1, use_bias=False)(x)))
    x = layers.ZeroPadding2D(1)(x)  # Not as padding="same" would.
    x = layers.BatchNormalization(name="last")(layers.Conv2D(4, 3, strides=2)(x))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.ReLU()(x)), name="widening")
    random_norms(model)
    return Trunk(model, "widening", Preprocessing(64, "tf"))


@pytest.mark.parametrize("statistics", ["batch", "frozen"])
def test_wide_maps_and_padded_zeros_are_fused_and_compute_the_same(statistics):
    trunk = widening_net()
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), TrainSpec.parse("scale_bias+last", statistics))
    fused = [layer for layer in fuse_norms(bound.model).layers if isinstance(layer, ConvNorm)]
    assert len(fused) == 5 and [bool(layer.padding) for layer in fused] == [False, False, True, False, False]
    functions = {fused[1].traced((None, side, side, 4)) for side in (64, 63)}
    assert len(functions) == (2 if statistics == "batch" else 1), "from the input where maps are large"
    images = images_for(trunk)
    moving = {key: v for key, v in bound.patch_variables.items() if "moving" in key}
    before = {key: np.array(v) for key, v in moving.items()}
    as_layers(bound)(images, training=True)
    expected = {key: np.array(v) for key, v in moving.items()}
    for key, variable in moving.items():
        variable.assign(before[key])
    bound.model(images, training=True)
    for key, variable in moving.items():
        np.testing.assert_allclose(variable, expected[key], rtol=1e-4, atol=1e-6, err_msg=key)
        assert np.array_equal(variable, before[key]) == (statistics == "frozen")
    compare(bound, images, 1e-3)
    for layer in bound.model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True  # As several devices do.
    compare(bound, images, 1e-3)


def test_layers_that_are_learnt_are_left_as_they_are(trunk, task, images):
    def fused(train, statistics):
        graph = fuse_norms(bind(trunk, task, TrainSpec.parse(train, statistics)).model)
        return sum(isinstance(layer, ConvNorm) for layer in graph.layers)

    assert fused("scale_bias+last", "frozen") == 2  # The third norm is behind a separable convolution.
    assert fused("scale_bias+depthwise+last", "frozen") == 1
    assert fused("scale_bias+last", "batch") == 2
    full = bind(trunk, task, TrainSpec.parse("full", "batch"))
    assert type(full.model) is type(keras.Model(trunk.model.input, trunk.model.output))
    compare(bind(trunk, task, TrainSpec.parse("scale_bias+depthwise+last", "frozen")), images)


def test_fit_runs_the_training_graph_and_learns_what_the_layers_would(trunk, task, images, labels):
    bound, other = bind(trunk, task, FROZEN), bind(trunk, task, FROZEN)
    train_steps(bound, images, labels, steps=3, eager=False)
    plain = as_layers(other)
    plain.compile(bound.model.optimizer.__class__.from_config(bound.model.optimizer.get_config()), task.loss())
    for _ in range(3):
        plain.train_on_batch(images, labels)
    assert isinstance(bound.model, FusedNormModel)
    assert any(isinstance(layer, ConvNorm) for layer in bound.model._fused_graph.layers)
    for key, variable in bound.patch_variables.items():
        np.testing.assert_allclose(variable, other.patch_variables[key], rtol=1e-4, atol=1e-5, err_msg=key)
    np.testing.assert_allclose(bound.model(images), other.model(images), rtol=1e-3, atol=1e-4)


def test_joined_tasks_are_tuned_where_each_has_a_map_for_itself():
    trunk = odd_net(29)
    tasks = [Task(name, ("a", "b"), trunk.preprocessing) for name in ("one", "two", "three")]
    joined = join(trunk, tasks, FROZEN, train_trunk=False)
    batches = {task.name: images_for(trunk)[: 5 - k] for k, task in enumerate(tasks)}
    plain = keras.Model(joined.model.input, joined.model.output)
    outputs, expected = joined.model(batches, training=True), plain(batches, training=True)
    for name in batches:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-4, atol=1e-5)
    fused = [layer for layer in joined.model._fused_graph._flatten_layers() if isinstance(layer, ConvNorm)]
    assert len({id(layer.convolution) for layer in fused}) == 4 and len(fused) == 12


def test_a_tuned_model_is_saved_and_loaded_as_others(trunk, task, images, labels, tmp_path):
    bound = bind(trunk, task, FROZEN)
    train_steps(bound, images, labels)
    bound.model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert np.array_equal(loaded(images), bound.model(images))


@pytest.mark.parametrize("train", ["scale_bias+last", "depthwise+last", "full"])
def test_inference_is_fused_whatever_is_trained_and_follows_the_values(train):
    trunk = widening_net()
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), train)
    assert sum(isinstance(layer, ConvNorm) for layer in fuse_norms(bound.features, training=False).layers) == 5
    images, forward = images_for(trunk), predictor(bound.features)
    for _ in range(2):
        expected = np.array(bound.features(images, training=False))
        np.testing.assert_allclose(forward(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        random_norms(bound.features)
