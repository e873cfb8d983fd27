"""Joined layers against a plain loop over ordinary Keras layers, with sizes that are different primes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from model_patch.layers import patch_layer
from model_patch.layers.joined import Joined, JoinedBatchNormalization, Merge, Split, join_layers
from tests.backends import gradients, tensorflow_only

BATCHES = (3, 5, 7)
HEIGHT, WIDTH, CHANNELS = 11, 13, 2

LAYERS = {
    "depthwise": (keras.layers.DepthwiseConv2D, {"kernel_size": 3, "strides": 2}, {"depthwise_kernel"}),
    "separable": (keras.layers.SeparableConv2D, {"filters": 17, "kernel_size": 3}, {"depthwise_kernel"}),
    "layer_norm": (keras.layers.LayerNormalization, {}, {"gamma", "beta"}),
    "group_norm": (keras.layers.GroupNormalization, {"groups": 2}, {"gamma", "beta"}),
    "conv": (keras.layers.Conv2D, {"filters": 17, "kernel_size": 3}, {"kernel", "bias"}),
    "batch_norm": (keras.layers.BatchNormalization, {"momentum": 0.7}, {"gamma", "beta"}),
    "batch_norm_all": (
        keras.layers.BatchNormalization,
        {"momentum": 0.7},
        {"gamma", "beta", "moving_mean", "moving_variance"},
    ),
    "batch_norm_statistics": (keras.layers.BatchNormalization, {}, {"moving_mean", "moving_variance"}),
    "batch_norm_beta": (keras.layers.BatchNormalization, {"scale": False}, {"beta"}),
    "batch_norm_no_center": (keras.layers.BatchNormalization, {"center": False}, {"gamma"}),
    "batch_norm_first": (
        keras.layers.BatchNormalization,
        {"axis": 1},
        {"gamma", "beta", "moving_mean", "moving_variance"},
    ),
}


def images(batches=BATCHES, shape=(HEIGHT, WIDTH, CHANNELS)):
    rng = np.random.default_rng(0)
    # Tasks differ in scale and place, so that statistics of the wrong ones would show.
    return [ops.convert_to_tensor(rng.normal(k, k + 1, (n, *shape)), "float32") for k, n in enumerate(batches)]


def uneven(layer, seed):
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def make(name: str):
    """A trunk's layer and three patched ones with values of their own, and three ordinary Keras layers equal to them."""
    layer_class, arguments, own = LAYERS[name]
    base = layer_class(name="base", **arguments)
    base.build((None, HEIGHT, WIDTH, CHANNELS))
    uneven(base, 0)
    base.trainable = False
    options = {"statistics": "batch"} if "batch_norm" in name else {}
    patched = [patch_layer(base, own, **options) for _ in BATCHES]
    ordinary = []
    for k, layer in enumerate(patched):
        if not layer.built:
            layer.build((None, HEIGHT, WIDTH, CHANNELS))
        for variable in layer.trainable_variables:
            variable.assign(np.random.default_rng(k + 1).uniform(0.5, 1.5, variable.shape))
        twin = layer_class(**arguments)
        twin.build((None, HEIGHT, WIDTH, CHANNELS))
        twin.set_weights([next(w for w in layer.weights if w.name == v.name) for v in twin.weights])
        ordinary.append(twin)
    return patched, ordinary


def merge_of(parts):
    merged, task = Merge()(parts)
    return merged, [task, *parts]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_statistics_are_those_of_a_loop_over_keras_layers(name, training):
    patched, ordinary = make(name)
    joined = join_layers(patched, "joined")
    assert type(joined) is (JoinedBatchNormalization if "batch_norm" in name else Joined)
    # A task whose statistics are the trunk's never trains with those of its batches.
    batch = training and LAYERS[name][2] >= {"moving_mean"}
    learnt = [layer.trainable_variables for layer in patched]
    twins = [
        [next(w for w in twin.weights if w.name == v.name) for v in own]
        for twin, own in zip(ordinary, learnt, strict=True)
    ]

    def run(parts):
        merged, merge = merge_of(parts)
        return Split()(joined(merged, merge, training=training), parts)

    def loop(parts):
        options = {"training": batch} if "batch_norm" in name else {}
        return [layer(x, **options) for layer, x in zip(ordinary, parts, strict=True)]

    ours, our_gradients = gradients(run, images(), [v for own in learnt for v in own])
    theirs, their_gradients = gradients(loop, images(), [v for own in twins for v in own])
    for mine, plain in zip([*ours, *our_gradients], [*theirs, *their_gradients], strict=True):
        assert mine.shape == plain.shape
        np.testing.assert_allclose(mine, plain, rtol=2e-4, atol=2e-4 * np.abs(plain).max())
    for layer, twin in zip(patched, ordinary, strict=True):
        for variable in layer.weights:
            twin_variable = next(w for w in twin.weights if w.name == variable.name)
            np.testing.assert_allclose(variable, twin_variable, rtol=1e-5, atol=1e-6, err_msg=variable.name)


def test_training_moves_each_tasks_statistics_by_its_own_images_alone():
    after = []
    for other in (0.0, 1e6):
        patched, _ = make("batch_norm_all")
        joined = join_layers(patched, "joined")
        first, *others = images()
        before = np.array(patched[0].moving_mean)
        joined(*merge_of([first, *(x + other for x in others)]), training=True)
        assert not np.array_equal(before, patched[0].moving_mean)
        after.append([np.array(w) for w in patched[0].weights])
    assert all(np.array_equal(a, b) for a, b in zip(*after, strict=True))


@tensorflow_only
def test_batches_may_change_in_size_within_one_compiled_function():
    patched, ordinary = make("batch_norm_all")
    joined = join_layers(patched, "joined")
    spec = [tf.TensorSpec((None, HEIGHT, WIDTH, CHANNELS))] * 3

    @tf.function(input_signature=[spec])
    def run(parts):
        merged, merge = merge_of(parts)
        return Split()(joined(merged, merge, training=False), parts)

    for batches in (BATCHES, (1, 2, 19)):
        parts = images(batches)
        for mine, layer, x in zip(run(parts), ordinary, parts, strict=True):
            np.testing.assert_allclose(mine, layer(x), rtol=1e-5, atol=1e-5)
    assert run.experimental_get_tracing_count() == 1


def test_features_without_space_are_normalised_too():
    base = keras.layers.BatchNormalization()
    base.build((None, 17))
    patched = [patch_layer(base, {"gamma", "moving_mean", "moving_variance"}, statistics="batch") for _ in BATCHES]
    parts = images(shape=(17,))
    joined = join_layers(patched, "joined")
    outputs = Split()(joined(*merge_of(parts), training=True), parts)
    for y in outputs:
        np.testing.assert_allclose(np.mean(y, 0), 0, atol=1e-5)


def test_half_precision_keeps_its_statistics_in_float32():
    base = keras.layers.BatchNormalization(dtype="mixed_bfloat16")
    base.build((None, HEIGHT, WIDTH, CHANNELS))
    own = {"gamma", "beta", "moving_mean", "moving_variance"}
    patched = [patch_layer(base, own, statistics="batch") for _ in BATCHES]
    joined = JoinedBatchNormalization(patched, dtype="mixed_bfloat16")
    parts = [ops.cast(x, "bfloat16") for x in images()]
    merged, task = Merge(dtype="bfloat16")(parts)
    y = joined(merged, [task, *parts], training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert patched[2].moving_mean.dtype == "float32"
    np.testing.assert_allclose(np.array(patched[2].moving_mean) / 0.01, np.mean(images()[2], (0, 1, 2)), rtol=0.02)


@pytest.mark.parametrize("name", ["depthwise", "batch_norm_all"])
def test_a_model_with_joined_layers_is_saved_and_loaded_whole(name, tmp_path):
    patched, _ = make(name)
    inputs = [keras.Input((HEIGHT, WIDTH, CHANNELS)) for _ in BATCHES]
    merged, task = Merge()(inputs)
    outputs = Split()(join_layers(patched, "joined")(merged, [task, *inputs]), inputs)
    model = keras.Model(inputs, outputs)
    model.save(tmp_path / "joined.keras")
    loaded = keras.models.load_model(tmp_path / "joined.keras")
    for mine, again in zip(model(images()), loaded(images()), strict=True):
        assert np.array_equal(mine, again)
