import logging
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, random_norms, same, small_net, snapshot

FIXTURES = Path(__file__).parent.parent / "fixtures"
FORMATS = ("keras", "h5")


def _classifier() -> keras.Model:
    """A classifier around `small_net`, which is nested in it as `small`."""
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Dropout(0.3, name="dropout")(small_net()(image))
    return keras.Model(image, keras.layers.Dense(4, activation="softmax", name="predictions")(x), name="classifier")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one classifier, around a nested net, in both formats of Keras 3."""
    folder = tmp_path_factory.mktemp("saved")
    for suffix in FORMATS:
        _classifier().save(folder / f"classifier.{suffix}")
    return folder


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_nested_model_is_the_trunk_that_it_was_saved_from(folder, suffix, images):
    trunk = open_trunk(f"file:{folder}/classifier.{suffix}#small")
    assert list(trunk.variables())[:2] == ["stem/kernel", "stem_bn/gamma"]
    assert trunk.preprocessing.image_size == SIZE and trunk.preprocessing.mode == "tf"
    assert np.array_equal(trunk.model(images), small_net()(images))
    assert not np.allclose(trunk.model(images), small_net(seed=1)(images))


def test_a_layer_cuts_the_graph_at_its_output_inside_nested_models_too(folder, images):
    cut = open_trunk(f"file:{folder}/classifier.keras#small/add")
    expected = keras.Model((net := small_net()).input, net.get_layer("add").output)
    assert np.array_equal(cut.model(images), expected(images))
    assert "separable/bias" not in cut.variables()
    outer = open_trunk(f"file:{folder}/classifier.keras#dropout")
    assert np.array_equal(outer.model(images), small_net()(images))
    assert "small/stem/kernel" in outer.variables() and "predictions/kernel" not in outer.variables()


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_of_keras_2_answer_as_keras_2_did(suffix):
    expected = np.load(FIXTURES / "keras2_expected.npz")
    backbone = open_trunk(f"file:{FIXTURES}/keras2_classifier.{suffix}#backbone")
    classifier = open_trunk(f"file:{FIXTURES}/keras2_classifier.{suffix}")
    assert np.ptp(expected["features"]) > 0.1 and np.ptp(expected["probabilities"]) > 0.1
    np.testing.assert_allclose(backbone.model(expected["images"]), expected["features"], atol=1e-5)
    np.testing.assert_allclose(classifier.model(expected["images"]), expected["probabilities"], atol=1e-6)
    assert "depthwise/depthwise_kernel" in backbone.variables() and "separable/pointwise_kernel" in backbone.variables()


def test_reading_a_file_of_keras_2_leaves_it_as_it_was(tmp_path):
    for suffix in FORMATS:
        before = (FIXTURES / f"keras2_classifier.{suffix}").read_bytes()
        (tmp_path / f"copy.{suffix}").write_bytes(before)
        open_trunk(f"file:{tmp_path}/copy.{suffix}#backbone")
        assert (tmp_path / f"copy.{suffix}").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.h5", "copy.keras"]


@pytest.mark.parametrize("text", ["{}/keras2_classifier.h5", "{}/keras2_classifier.keras#backbone"])
def test_another_image_size_rebuilds_the_graph_with_the_same_weights(text):
    own, large = (open_trunk(f"file:{text.format(FIXTURES)}", size) for size in (None, 48))
    assert own.model.input_shape == (None, 32, 32, 3) and large.model.input_shape == (None, 48, 48, 3)
    assert large.preprocessing.image_size == 48
    assert same(snapshot(own.variables()), snapshot(large.variables()))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 48, 48, 3)).astype("float32")
    assert np.ptp(large.model(images), axis=0).max() > 0, "the answer depends on the image"


def test_the_resized_trunk_computes_what_a_net_of_that_size_does(folder):
    trunk = open_trunk(f"file:{folder}/classifier.keras#small", 48)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 48, 48, 3)).astype("float32")
    assert np.array_equal(trunk.model(images), small_net(size=48)(images))


def test_the_argument_wins_over_the_option(folder):
    assert open_trunk(f"file:{folder}/classifier.keras?image_size=40#small").preprocessing.image_size == 40
    assert open_trunk(f"file:{folder}/classifier.keras?image_size=40#small", 48).preprocessing.image_size == 48


def test_a_net_with_a_layer_for_one_size_only_is_refused_at_another(tmp_path):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(image))
    keras.Model(image, keras.layers.Dense(5, name="fixed")(x)).save(tmp_path / "flat.keras")
    assert open_trunk(f"file:{tmp_path}/flat.keras").preprocessing.image_size == 8
    with pytest.raises(ModelPatchError, match=r"flat.keras' was saved for 8 px and cannot be used at 16: "):
        open_trunk(f"file:{tmp_path}/flat.keras", 16)


def test_a_net_for_any_size_is_opened_at_224_and_a_net_for_oblong_images_needs_a_size(tmp_path):
    for name, shape in (("any", (None, None, 3)), ("oblong", (24, 16, 3))):
        image = keras.Input(shape)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(image))
        keras.Model(image, x).save(tmp_path / f"{name}.keras")
    assert open_trunk(f"file:{tmp_path}/any.keras").model.input_shape == (None, 224, 224, 3)
    assert open_trunk(f"file:{tmp_path}/oblong.keras", 20).model.input_shape == (None, 20, 20, 3)
    with pytest.raises(ModelPatchError, match=r"oblong.keras' takes images of 24 x 16: give image_size"):
        open_trunk(f"file:{tmp_path}/oblong.keras")


@pytest.mark.parametrize(
    ("begin", "mode"),
    [
        ([], "tf"),
        ([keras.layers.Rescaling(1 / 255)], "none"),
        ([keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 127.5, -1)], "none"),
        ([keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 1.0])], "none"),
        ([lambda x: x / 127.5, lambda x: x - 1.0], "none"),
        ([keras.layers.Conv2D(3, 1), keras.layers.Rescaling(2.0)], "tf"),
    ],
)
def test_a_net_that_begins_by_scaling_its_images_gets_them_unscaled(tmp_path, begin, mode):
    x = image = keras.Input((8, 8, 3))
    for step in begin:
        x = step(x)
    inner = keras.Model(image, x, name="begin") if begin else None
    outer = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(2, 3)(inner(outer) if inner else outer)
    keras.Model(outer, keras.layers.GlobalAveragePooling2D()(x)).save(tmp_path / "net.keras")
    assert open_trunk(f"file:{tmp_path}/net.keras").preprocessing.mode == mode
    assert open_trunk(f"file:{tmp_path}/net.keras?preprocessing=caffe").preprocessing.mode == "caffe"


def test_a_whole_classifier_is_opened_with_a_warning_that_names_the_layer_before(folder, caplog):
    with caplog.at_level(logging.WARNING):
        trunk = open_trunk(f"file:{folder}/classifier.keras")
        assert trunk.model.output_shape == (None, 4)
        assert "classifier.keras is a whole classifier" in caplog.text and "#small takes the features" in caplog.text
        caplog.clear()
        open_trunk(f"file:{folder}/classifier.keras#small")
        assert caplog.text == ""


def test_sequential_models_are_trunks_too(tmp_path, images):
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
        ]
    )
    random_norms(model)
    model.save(tmp_path / "line.keras")
    trunk = open_trunk(f"file:{tmp_path}/line.keras")
    assert list(trunk.variables())[:3] == ["conv/kernel", "conv/bias", "bn/gamma"]
    assert np.array_equal(trunk.model(images), model(images))


@pytest.mark.parametrize(
    ("fragment", "message"),
    [
        ("smal", "has no layer 'smal' in 'classifier': did you mean small?"),
        ("zzz", "has no layer 'zzz' in 'classifier': its last ones are small, dropout, predictions"),
        ("small/stem_b", "has no layer 'stem_b' in 'small': did you mean stem_bn"),
        ("dropout/stem", "has the layer 'dropout', but it is not a nested model: end the path with it"),
        ("small/", "has no layer '' in 'small': its last ones are "),
    ],
)
def test_an_unknown_layer_is_refused_and_close_ones_are_named(folder, fragment, message):
    with pytest.raises(ModelPatchError, match=re.escape(f"{folder}/classifier.keras {message}")):
        open_trunk(f"file:{folder}/classifier.keras#{fragment}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("preprocessing=imagenet", "unknown preprocessing 'imagenet': expected one of caffe, none, tf, torch, unit"),
        ("image_size=big", "image_size=big in 'file:"),
        ("size=32", "unknown option 'size' in 'file:"),
    ],
)
def test_wrong_options_are_refused(folder, options, message):
    with pytest.raises(ModelPatchError, match=re.escape(message)):
        open_trunk(f"file:{folder}/classifier.keras?{options}#small")


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_that_are_no_whole_model_are_refused(folder, tmp_path, suffix):
    whole = (folder / f"classifier.{suffix}").read_bytes()
    for name, contents in (("half", whole[: len(whole) // 2]), ("text", b"not a model"), ("empty", b"")):
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(contents)
        with pytest.raises(
            ModelPatchError, match=rf"{name}.{suffix} is damaged, or is not a saved Keras model: "
        ) as raised:
            open_trunk(f"file:{path}")
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelPatchError, match=rf"the trunk file {tmp_path}/gone.{suffix} does not exist"):
        open_trunk(f"file:{tmp_path}/gone.{suffix}")


def test_a_zip_with_a_damaged_part_is_refused(folder, tmp_path):
    with zipfile.ZipFile(folder / "classifier.keras") as old, zipfile.ZipFile(tmp_path / "part.keras", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x89HDF" if name.endswith(".h5") else old.read(name))
    with pytest.raises(ModelPatchError, match=r"part.keras cannot be loaded as a Keras model: "):
        open_trunk(f"file:{tmp_path}/part.keras")


def test_other_files_and_folders_are_refused(tmp_path):
    (tmp_path / "net.pb").write_bytes(b"")
    with pytest.raises(ModelPatchError, match=r"net.pb is no saved Keras model: expected a file ending in .keras, .h5"):
        open_trunk(f"file:{tmp_path}/net.pb")
    with pytest.raises(ModelPatchError, match=f"{tmp_path} is a folder: expected file:PATH"):
        open_trunk(f"file:{tmp_path}")
    small_net().save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(ModelPatchError, match=r"net.weights.h5 holds weights without a model: open it as keras:NAME"):
        open_trunk(f"file:{tmp_path}/net.weights.h5")


@pytest.mark.parametrize("suffix", FORMATS)
def test_lambda_layers_are_refused_and_not_run(tmp_path, suffix):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Lambda(lambda x: x * 2, name="double")(image)
    keras.Model(image, keras.layers.Conv2D(2, 3)(x)).save(tmp_path / f"code.{suffix}")
    with pytest.raises(
        ModelPatchError, match=rf"code.{suffix} has a Lambda layer, which is Python code, and is not run"
    ):
        open_trunk(f"file:{tmp_path}/code.{suffix}")


@keras.saving.register_keras_serializable(package="tests")
class _Own(keras.layers.Layer):
    def call(self, x):
        return x


def test_a_layer_of_somebodys_own_is_refused_by_name(tmp_path):
    image = keras.Input((8, 8, 3))
    keras.Model(image, _Own()(image)).save(tmp_path / "own.keras")
    registered = keras.saving.get_custom_objects()
    known = dict(registered)
    registered.clear()  # As in a process in which nobody defined the layer.
    try:
        with pytest.raises(ModelPatchError, match=r"own.keras cannot be loaded as a Keras model: .*'_Own'"):
            open_trunk(f"file:{tmp_path}/own.keras")
    finally:
        registered.update(known)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_net_for_other_than_three_channels_is_refused(tmp_path, channels):
    image = keras.Input((8, 8, channels))
    keras.Model(image, keras.layers.Conv2D(2, 3)(image)).save(tmp_path / "net.keras")
    with pytest.raises(ModelPatchError, match=rf"net.keras' takes \(None, 8, 8, {channels}\): a trunk takes one image"):
        open_trunk(f"file:{tmp_path}/net.keras")


def test_a_layer_that_is_used_twice_cannot_be_cut_at(tmp_path):
    image = keras.Input((8, 8, 3))
    twice = keras.layers.Conv2D(3, 1, name="twice")
    keras.Model(image, keras.layers.Conv2D(2, 1)(twice(twice(image)))).save(tmp_path / "net.keras")
    with pytest.raises(
        ModelPatchError, match=r"net.keras uses the layer 'twice' 2 times: cut at a layer that is used once"
    ):
        open_trunk(f"file:{tmp_path}/net.keras#twice")
