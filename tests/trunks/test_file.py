import json
import logging
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Patch, bind, bind_patch
from model_patch.graph.settings import dtype_policy
from model_patch.trunks import file, keras2, open_trunk
from model_patch.trunks.file import lambdas_allowed
from tests.conftest import SIZE, random_norms, same, small_net, snapshot
from tests.scripts.run_script import error_of, run_script

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
def test_files_of_keras_2_predict_as_keras_2_did(suffix):
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
    assert np.ptp(large.model(images), axis=0).max() > 0, "the prediction depends on the image"


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
        ("smal", "'classifier' has no layer 'smal': did you mean small?"),
        ("zzz", "'classifier' has no layer 'zzz': its last ones are small, dropout, predictions"),
        ("small/stem_b", "'small' has no layer 'stem_b': did you mean stem_bn"),
        ("dropout/stem", "the layer 'dropout' of 'classifier' is no nested model: end the path with it"),
        ("small/", "'small' has no layer '': its last ones are "),
    ],
)
def test_an_unknown_layer_is_refused_and_close_ones_are_named(folder, fragment, message):
    with pytest.raises(ModelPatchError, match=re.escape(message)):
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


def with_code(path: Path, function=lambda x: x * 2) -> keras.Model:
    """Saves a net with a Lambda layer in front; returns it."""
    image = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(image, small_net()(keras.layers.Lambda(function, name="code")(image)))
    model.save(path)
    return model


@pytest.mark.parametrize("suffix", FORMATS)
def test_lambda_layers_are_refused_and_run_only_where_that_is_allowed(tmp_path, images, task, suffix):
    model, spec = with_code(tmp_path / f"code.{suffix}"), f"file:{tmp_path}/code.{suffix}"
    refused = rf"code.{suffix} has a Lambda layer, which is Python code, and is not run: .* give --allow_lambda if you"
    with pytest.raises(ModelPatchError, match=refused):
        open_trunk(spec)
    with lambdas_allowed():
        trunk = open_trunk(spec)
    assert np.array_equal(trunk.model(images), model(images))
    bound = bind(trunk, task)
    bind_patch(trunk, Patch.load(saved(bound.patch(), tmp_path)))
    with pytest.raises(ModelPatchError, match=refused):
        open_trunk(spec)


def saved(patch: Patch, folder: Path) -> Path:
    patch.save(folder / "patch.safetensors")
    return folder / "patch.safetensors"


def rewritten(path: Path, changes: dict[str, str]) -> Path:
    """Copies a saved model into a folder `hostile`, with other words in its configuration."""
    text = json.dumps(file._config(path, path))
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.parent.joinpath("hostile").mkdir()
    return keras2.with_config(path, json.loads(text), path.parent / "hostile")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("way", ["an activation", "another name"])
def test_code_by_another_name_is_not_run_either(tmp_path, suffix, way):
    ran = tmp_path / "ran"

    def function(x, ran=str(ran)):
        __import__("pathlib").Path(ran).touch()
        return x

    function.__name__ = "<lambda>"
    with_code(tmp_path / f"code.{suffix}", function)
    ran.unlink()
    changes = {'"class_name": "Lambda"': '"class_name": "layers.Lambda"'}
    if suffix == "keras":
        changes['"module": "keras.layers"'] = '"module": "keras"'
    if way == "an activation":
        small_net().save(tmp_path / f"code.{suffix}")
        code = json.dumps(keras.saving.serialize_keras_object(function))
        changes = {'"activation": "relu"': f'"activation": {code}'}
    hostile = rewritten(tmp_path / f"code.{suffix}", changes)
    with pytest.raises(ModelPatchError, match=rf"hostile/code.{suffix} (has a function that is|cannot be loaded)"):
        open_trunk(f"file:{hostile}")
    assert not ran.exists()


@pytest.mark.slow
def test_the_flag_of_scripts_allows_it(tmp_path, task):
    with_code(tmp_path / "code.keras")
    with lambdas_allowed():
        patch = saved(bind(open_trunk(f"file:{tmp_path}/code.keras"), task).patch(), tmp_path)
    verify = ("patch", "verify", str(patch), f"--trunk=file:{tmp_path}/code.keras")
    assert "is Python code, and is not run" in error_of(run_script(*verify))
    ran = run_script(*verify, "--allow_lambda")
    assert ran.returncode == 0 and "whole, and belongs to" in ran.stdout, ran.stderr[-2000:]
    assert "has a Lambda layer, which is Python code: it is run" in ran.stderr


@keras.saving.register_keras_serializable(package="tests")
class _Own(keras.layers.Layer):
    def call(self, x):
        return x


def test_a_layer_of_somebodys_own_is_refused_by_name(tmp_path):
    image = keras.Input((8, 8, 3))
    keras.Model(image, _Own()(image)).save(tmp_path / "own.keras")
    registered = keras.saving.get_custom_objects()
    known = dict(registered)
    registered.clear()  # As in a process in which the layer is not defined.
    try:
        with pytest.raises(ModelPatchError, match=r"own.keras cannot be loaded as a Keras model: .*'_Own'"):
            open_trunk(f"file:{tmp_path}/own.keras")
    finally:
        registered.update(known)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_net_for_other_than_three_channels_is_refused(tmp_path, channels):
    image = keras.Input((8, 8, channels))
    keras.Model(image, keras.layers.Conv2D(2, 3)(image)).save(tmp_path / "net.keras")
    with pytest.raises(ModelPatchError, match=rf"net.keras' takes \(None, 8, 8, {channels}\): expected one image"):
        open_trunk(f"file:{tmp_path}/net.keras")


def test_a_layer_that_is_used_twice_cannot_be_cut_at(tmp_path):
    image = keras.Input((8, 8, 3))
    twice = keras.layers.Conv2D(3, 1, name="twice")
    keras.Model(image, keras.layers.Conv2D(2, 1)(twice(twice(image)))).save(tmp_path / "net.keras")
    with pytest.raises(ModelPatchError, match=r"the layer 'twice' of '.*' has 2 outputs: take one that is used once"):
        open_trunk(f"file:{tmp_path}/net.keras#twice")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("saved_in", ["float32", "mixed_float16", "float16"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_trunk_computes_in_the_precision_of_the_process_whatever_it_was_saved_in(
    tmp_path, images, suffix, saved_in, policy
):
    with dtype_policy(saved_in):
        net = small_net()
        net.save(tmp_path / f"net.{suffix}")
    with dtype_policy(policy):
        trunk = open_trunk(f"file:{tmp_path}/net.{suffix}")
    assert {layer.dtype_policy.name for layer in trunk.layers().values()} == {policy}
    assert {str(variable.dtype) for variable in trunk.variables().values()} == {"float32"}
    np.testing.assert_allclose(
        np.asarray(trunk.model(images), "float32"), np.asarray(net(images), "float32"), atol=0.05
    )


def test_layers_inside_layers_change_their_precision_too_and_chosen_float32_stays(tmp_path):
    image = keras.Input((8, 8, 3))
    x = keras.layers.TimeDistributed(keras.layers.Conv1D(4, 3, name="inner"))(image)
    x = keras.layers.Reshape((8, 6, 4))(keras.layers.MultiHeadAttention(2, 2, attention_axes=(1, 2))(x, x))
    x = keras.layers.Conv2D(4, 3, dtype="mixed_float16", name="half")(x)
    keras.Model(image, keras.layers.BatchNormalization(dtype="float32", name="chosen")(x)).save(tmp_path / "net.keras")
    with dtype_policy("mixed_bfloat16"):
        layers = open_trunk(f"file:{tmp_path}/net.keras").layers()
    assert layers["half"].compute_dtype == "bfloat16" and layers["chosen"].compute_dtype == "float32"
