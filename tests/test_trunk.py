import keras
import numpy as np
import pytest

from model_patch import Bank, ModelPatchError, Preprocessing, Task, Trunk, bind, fold, join
from model_patch.export import export
from tests.conftest import SIZE, same, small_net, snapshot, train_steps


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
    loaded = Trunk(keras.models.load_model(tmp_path / "trunk.keras"), "renamed", Preprocessing(SIZE, "torch"))
    assert loaded.fingerprint(reversed(keys)) == trunk.fingerprint(keys)
    assert Trunk(small_net(size=64), "larger", Preprocessing(64, "tf")).fingerprint(keys) == trunk.fingerprint(keys)
    assert trunk.fingerprint(keys[1:]) != trunk.fingerprint(keys)
    assert Trunk(small_net(seed=1), "other", Preprocessing(SIZE, "tf")).fingerprint(keys) != trunk.fingerprint(keys)


def test_two_inputs_are_refused():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    with pytest.raises(ModelPatchError, match="'pair' takes .None, 8, 8, 3., .None, 8, 8, 3.: expected one image"):
        Trunk(keras.Model([a, b], keras.layers.Add()([a, b])), "pair", Preprocessing(8, "tf"))


def test_a_net_for_images_of_any_size_is_made_one_for_those_of_the_preprocessing(images):
    image = keras.Input((None, None, 3))
    norm = keras.layers.BatchNormalization(name="norm")
    net = keras.Model(image, keras.layers.GlobalAveragePooling2D()(norm(image)))
    trunk = Trunk(net, "any", Preprocessing(SIZE, "tf"))
    assert trunk.model.input_shape == (None, SIZE, SIZE, 3) and trunk.layers()["norm"] is norm
    assert np.array_equal(trunk.model(images), net(images))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(lambda x: [x], lambda x: x), (lambda x: x, lambda x: [x]), (lambda x: {"image": x}, lambda x: {"features": x})],
)
@pytest.mark.parametrize("is_nested", [False, True], ids=["alone", "nested"])
def test_models_of_lists_and_dicts_of_one_tensor_are_trunks(images, inputs, outputs, is_nested):
    """`small_net` itself is made with tensors; here it is wrapped, and the wrapper nested for images of any size."""
    image = keras.Input((None, None, 3), name="image") if is_nested else keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, name="conv")(image))
    model = keras.Model(inputs(image), outputs(x), name="inner")
    expected = keras.Model(image, x)
    if is_nested:
        outer = keras.Input((SIZE, SIZE, 3), name="outer")
        model = keras.Model(outer, keras.layers.ReLU()(keras.tree.flatten(model(inputs(outer)))[0]))
        expected = keras.Sequential([expected, keras.layers.ReLU()])
    trunk = Trunk(model, "wrapped", Preprocessing(SIZE, "tf"))
    np.testing.assert_allclose(trunk.model(images), expected(images), atol=1e-6)
    task = Task("a", ("x", "y"), trunk.preprocessing)
    bound = bind(trunk, task)
    train_steps(bound, images, np.arange(12) % 2, 1)
    assert fold(bound).difference < 1e-4
    Bank(trunk, "scale_bias", capacity=1, classes=2).add(bound)


def net(shape, features=lambda x: x, **options) -> keras.Model:
    image = keras.Input(shape, **options)
    x = keras.layers.Rescaling(1 / 255)(image)
    return keras.Model(image, features(keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: net((SIZE, SIZE, 1)), r"takes \(None, 32, 32, 1\): expected one image"),
        (lambda: net((None, None, 6)), r"takes \(None, None, None, 6\): expected one image"),
        (
            lambda: keras.Sequential([keras.Input((4, 4, 4, 3)), keras.layers.Flatten()]),
            r"takes \(None, 4, 4, 4, 3\): ",
        ),
        (lambda: net((3, SIZE, SIZE)), r"takes \(None, 3, 32, 32\): expected one image"),
        (lambda: net((64, 64, 3)), "takes images of 64 x 64 px and its preprocessing makes them 32 x 32: build"),
        (lambda: net((SIZE, 24, 3)), "takes images of 32 x 24 px and its preprocessing"),
        (lambda: net((None, 24, 3)), "takes images of None x 24 px and its preprocessing"),
        (
            lambda: net((SIZE, SIZE, 3), keras.layers.Reshape((2, 2, -1, 4))),
            r"gives float32 \(None, 2, 2, .*\): expected feat",
        ),
        (
            lambda: net((SIZE, SIZE, 3), lambda x: keras.ops.sum(x, (1, 2, 3))),
            r"gives float32 \(None,\): expected feat",
        ),
        (lambda: net((SIZE, SIZE, 3), lambda x: keras.ops.argmax(x, (1))), r"gives int32 .*: expected feat"),
        (lambda: net((SIZE, SIZE, 3), lambda x: [x, x]), r"gives float32 .*, float32 .*: expected feat"),
    ],
)
def test_what_is_no_net_from_images_of_the_preprocessing_to_features_is_refused(model, message):
    with pytest.raises(ModelPatchError, match=f"the trunk 'own' {message}") as raised:
        Trunk(model(), "own", Preprocessing(SIZE, "tf"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (SIZE, SIZE, 3), "dtype": "uint8"},
        {"shape": (SIZE, SIZE, 3), "batch_size": 4},
        {"shape": (SIZE, None, 3)},
        {"shape": (None, None, None)},
    ],
    ids=["integers", "batches of four", "one open side", "open channels"],
)
def test_whatever_is_accepted_works_to_the_end(options, images, labels, tmp_path):
    build = net if options["shape"][-1] else lambda **kwargs: open_channels()
    trunk = Trunk(build(**options), "own", Preprocessing(SIZE, "none"))
    assert trunk.model.input_shape == (None, SIZE, SIZE, 3) and trunk.model.input.dtype == "float32"
    bounds = [bind(trunk, Task(name, ("x", "y", "z"), trunk.preprocessing)) for name in "ab"]
    train_steps(bounds[0], images, labels, 1)
    join(trunk, [bound.task for bound in bounds])
    fold(bounds[0])
    Bank(trunk, capacity=1, classes=3).add(bounds[1])
    if keras.backend.backend() == "tensorflow":
        export("saved_model", bounds[:1], tmp_path / "out")


def open_channels() -> keras.Model:
    image = keras.Input((None, None, None))
    return keras.Model(image, net((None, None, 3))(keras.layers.RandomFlip()(image)))
