"""Banked layers against a plain loop over ordinary Keras layers, one example at a time, with sizes that are different primes."""

import keras
import numpy as np
import pytest
from keras import ops

from model_patch.bank.layers import (
    FROM_HWBC,
    TO_HWBC,
    BankedAffine,
    BankedDepthwise,
    BankedSeparable,
    BatchFirst,
    GlobalMean,
    Product,
)
from model_patch.bank.tables import PatchTable

BATCH, HEIGHT, WIDTH, CHANNELS, FILTERS, TASKS = 7, 11, 13, 3, 5, 17


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def images(random):
    return random.normal(size=(BATCH, HEIGHT, WIDTH, CHANNELS)).astype("float32")


@pytest.fixture
def rows(random):
    return random.integers(0, TASKS, BATCH).astype("int32")


def hwbc(images):
    return ops.transpose(images, TO_HWBC)


def batch_first(images):
    return ops.convert_to_numpy(ops.transpose(images, FROM_HWBC))


def filled(layer, random):
    """Returns a table of `TASKS` random patches for a layer, and the vectors of each."""
    table = PatchTable([layer], TASKS)
    vectors = [[random.normal(size=width).astype("float32") for width in layer.widths] for _ in range(TASKS)]
    for row, own in enumerate(vectors):
        table.write(row, [own])
    return table, vectors


@pytest.mark.parametrize("in_hwbc", [True, False])
def test_affine_is_a_batch_norm_per_example(images, rows, random, in_hwbc):
    layer = BankedAffine(CHANNELS, activation=keras.layers.ReLU(), hwbc=in_hwbc)
    table, vectors = filled(layer, random)
    out = layer(hwbc(images) if in_hwbc else images, table(rows))
    out = batch_first(out) if in_hwbc else ops.convert_to_numpy(out)
    for image, row, got in zip(images, rows, out, strict=True):
        norm = keras.layers.BatchNormalization(epsilon=0.0)
        norm.build((None, HEIGHT, WIDTH, CHANNELS))
        norm.set_weights([*vectors[row], np.zeros(CHANNELS), np.ones(CHANNELS)])
        expected = ops.relu(norm(image[None], training=False))[0]
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_affine_with_a_core_is_a_convolution_with_a_bias_per_example(images, rows, random):
    core = keras.layers.Conv2D(FILTERS, 3, strides=2, use_bias=False)
    core(images)
    layer = BankedAffine(FILTERS, BatchFirst(core), ops.tanh, hwbc=True)
    table, vectors = filled(layer, random)
    out = batch_first(layer(hwbc(images), table(rows)))
    for image, row, got in zip(images, rows, out, strict=True):
        scale, bias = vectors[row]
        np.testing.assert_allclose(got, ops.tanh(core(image[None])[0] * scale + bias), atol=1e-5)


@pytest.mark.parametrize("own_kernel", [True, False])
@pytest.mark.parametrize("in_hwbc", [True, False])
@pytest.mark.parametrize(
    ("strides", "padding", "dilation"), [(1, "same", 1), (2, "valid", 1), (2, "same", 1), (1, "same", 2)]
)
def test_depthwise_has_a_kernel_per_example(images, rows, random, own_kernel, in_hwbc, strides, padding, dilation):
    shared = keras.Variable(random.normal(size=(3, 5, CHANNELS, 1)), dtype="float32")
    options = {"strides": (strides, strides), "padding": padding, "dilation_rate": (dilation, dilation)}
    layer = BankedDepthwise(CHANNELS, None if own_kernel else shared, (3, 5), **options, hwbc=in_hwbc)
    table, vectors = filled(layer, random)
    out = layer(hwbc(images) if in_hwbc else images, table(rows))
    spec = layer.compute_output_spec(keras.KerasTensor(hwbc(images).shape if in_hwbc else images.shape), None)
    assert tuple(spec.shape) == tuple(out.shape)
    out = batch_first(out) if in_hwbc else ops.convert_to_numpy(out)
    for image, row, got in zip(images, rows, out, strict=True):
        bias, *rest = vectors[row]
        kernel = np.reshape(rest, (3, 5, CHANNELS, 1)) if own_kernel else shared * rest[0][:, None]
        plain = keras.layers.DepthwiseConv2D((3, 5), **options)
        plain.build((None, HEIGHT, WIDTH, CHANNELS))
        plain.set_weights([ops.convert_to_numpy(kernel), bias])
        np.testing.assert_allclose(got, plain(image[None])[0], atol=1e-5)


def test_separable_has_a_depthwise_kernel_and_a_bias_per_example(images, rows, random):
    core = keras.layers.Conv2D(FILTERS, 1, use_bias=False)
    core.build((None, HEIGHT, WIDTH, CHANNELS))
    depthwise = BankedDepthwise(CHANNELS, None, (3, 3))
    layer = BankedSeparable(depthwise, BankedAffine(FILTERS, core, ops.relu, hwbc=True))
    table, vectors = filled(layer, random)
    out = batch_first(layer(hwbc(images), table(rows)))
    for image, row, got in zip(images, rows, out, strict=True):
        inner_bias, *taps, scale, bias = vectors[row]
        plain = keras.layers.SeparableConv2D(FILTERS, 3, activation="relu")
        plain.build((None, HEIGHT, WIDTH, CHANNELS))
        pointwise = ops.convert_to_numpy(core.kernel)
        plain.set_weights(
            [np.reshape(taps, (3, 3, CHANNELS, 1)), pointwise * scale, inner_bias @ pointwise[0, 0] * scale + bias]
        )
        np.testing.assert_allclose(got, plain(image[None])[0], atol=1e-4)


def test_pooling_and_products_in_hwbc_are_those_of_keras(images):
    for keepdims in (False, True):
        pooled = GlobalMean(keepdims)(hwbc(images))
        expected = keras.layers.GlobalAveragePooling2D(keepdims=keepdims)(images)
        np.testing.assert_allclose(batch_first(pooled) if keepdims else pooled, expected, atol=1e-6)
    gate = images[:, :1, :1]
    out = Product()([hwbc(gate), hwbc(images)])
    np.testing.assert_allclose(batch_first(out), keras.layers.Multiply()([gate, images]), atol=1e-6)
