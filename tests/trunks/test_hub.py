import functools
import hashlib
import http.server
import re
import tarfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from configs import transfer as transfer_config
from model_patch import ModelPatchError, Task, bind, join
from model_patch.experiments.transfer import transfer
from model_patch.export import clean_saved_model
from model_patch.export.saved_model import export_saved_model
from model_patch.graph.settings import dtype_policy
from model_patch.trunks import hub, open_trunk
from tests.conftest import same, snapshot, train_steps
from tests.trunks import slim_nets
from tests.trunks.slim_nets import SlimNet

SIZE = 32


def from_unit(images):
    return images * 2 - 1


def write_module(path, net: SlimNet, size: int, called=SlimNet.features, trainings=(False,)) -> str:
    """Writes a net as TensorFlow Hub's reusable SavedModels are: called with images, and `training` where one likes.

    Args:
        called: what the module does with the net, images in [0, 1], and whether it is training.
        trainings: for which values of `training` the module can be called.
    """
    module = tf.train.Checkpoint()
    module.variables = net.variables_

    @tf.function
    def call(images, training=False):
        return called(net, images, training)

    for training in trainings:
        call.get_concrete_function(tf.TensorSpec((None, size, size, 3), name="images"), training=training)
    module.__call__ = call
    tf.saved_model.save(module, str(path))
    return str(path)


@pytest.fixture(scope="module")
def small():
    return SlimNet("MobilenetV1", slim_nets.mobilenet_v1(0.25), SIZE, scale=from_unit)


@pytest.fixture(scope="module")
def small_module(small, tmp_path_factory):
    return write_module(tmp_path_factory.mktemp("module") / "small", small, SIZE)


@pytest.fixture(scope="module")
def small_trunk(small_module):
    return open_trunk(f"hub:{small_module}")


@pytest.fixture(scope="module")
def unknown_module(tmp_path_factory):
    net = SlimNet("OwnNet", slim_nets.tiny, SIZE)
    return write_module(tmp_path_factory.mktemp("module") / "unknown", net, SIZE, trainings=(False, True))


@pytest.fixture
def unit_images():
    return np.random.default_rng(2).uniform(0, 1, (4, SIZE, SIZE, 3)).astype("float32")


@pytest.mark.parametrize(
    ("scope", "net", "size", "scale", "mode"),
    [
        pytest.param("MobilenetV2", slim_nets.mobilenet_v2(0.35), 64, from_unit, "tf", marks=pytest.mark.slow),
        pytest.param(
            "MobilenetV2", slim_nets.mobilenet_v2(0.35), 64, lambda images: images, "unit", marks=pytest.mark.soak
        ),
        pytest.param("MobilenetV3", slim_nets.mobilenet_v3_small(), 64, from_unit, "none", marks=pytest.mark.soak),
        pytest.param("InceptionV3", slim_nets.inception_v3, 75, from_unit, "tf", marks=pytest.mark.soak),
        # Keras' net scales by itself, and otherwise.
        ("MobilenetV3", slim_nets.mobilenet_v3_small(minimalistic=True), 32, lambda images: images, "unit"),
    ],
)
def test_a_module_of_a_known_net_is_that_keras_net(scope, net, size, scale, mode, tmp_path):
    slim = SlimNet(scope, net, size, scale=scale)
    folder = write_module(tmp_path / "module", slim, size)
    trunk = open_trunk(f"hub:{folder}")
    assert (trunk.preprocessing.image_size, trunk.preprocessing.mode) == (size, mode)
    images = np.random.default_rng(5).uniform(0, 255, (3, size, size, 3)).astype("float32")
    expected = hub.load_module(hub.resolve(folder))(images / 255, training=False).numpy()
    features = trunk.model(trunk.preprocessing.scale(images))
    np.testing.assert_allclose(features, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    assert sum("moving_mean" in key for key in trunk.variables()) == sum("moving_mean" in name for name in slim.by_name)


def test_another_image_size_gives_the_same_net_at_that_size(small_module, small):
    trunk = open_trunk(f"hub:{small_module}", 64)
    assert trunk.model.input_shape == (None, 64, 64, 3) and trunk.preprocessing.image_size == 64
    images = np.random.default_rng(5).uniform(0, 1, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(trunk.model(images * 2 - 1), small.features(images, False), atol=1e-4)


@pytest.mark.parametrize(
    ("old", "value", "message"),
    [
        (
            "MobilenetV1/Conv2d_0/weights",
            ("MobilenetV1/Conv2d_0/filters", None),
            "missing: MobilenetV1/Conv2d_0/weights; unexpected: MobilenetV1/Conv2d_0/filters",
        ),
        (
            "MobilenetV1/Conv2d_1_depthwise/depthwise_weights",
            ("MobilenetV1/Conv2d_1_depthwise/depthwise_weights", np.zeros((5, 5, 8, 1), "float32")),
            "of another shape: MobilenetV1/Conv2d_1_depthwise/depthwise_weights (5, 5, 8, 1) instead of (3, 3, 8, 1)",
        ),
    ],
)
def test_a_module_with_a_variable_renamed_or_of_another_shape_is_refused_by_its_name(
    small, old, value, message, tmp_path
):
    by_name = dict(small.by_name)
    variable, (name, array) = by_name.pop(old), value
    by_name[name] = tf.Variable(variable if array is None else array, name=name)
    net = SimpleNamespace(variables_=list(by_name.values()))
    # Its function does not matter: variables are looked at first.
    folder = write_module(tmp_path / "module", net, SIZE, lambda net, images, training: tf.reduce_mean(images, [1, 2]))
    with pytest.raises(
        ModelPatchError, match=re.escape(f"the module {folder} are not those of MobilenetV1: {message}")
    ):
        open_trunk(f"hub:{folder}")


def zeros_of(channels: int):
    """What a module may do with its images, which is traced faster than a net."""
    return lambda net, images, training: tf.zeros((tf.shape(images)[0], channels))


def test_a_module_that_computes_otherwise_is_refused(small, tmp_path):
    module = write_module(tmp_path / "zeros", small, SIZE, zeros_of(256))
    with pytest.raises(
        ModelPatchError, match=r"zeros has the variables of MobilenetV1 but computes otherwise .*as_is=true"
    ):
        open_trunk(f"hub:{module}")


def test_a_classifier_is_refused(small, tmp_path):
    module = write_module(tmp_path / "top", small, SIZE, zeros_of(9))
    with pytest.raises(
        ModelPatchError, match=r"top gives \(9,\) where MobilenetV1 gives \(256,\) features: expected a feat"
    ):
        open_trunk(f"hub:{module}")


def test_a_module_of_an_unknown_net_runs_as_it_is_and_tasks_are_learnt_on_it_in_turn(
    unknown_module, task, unit_images, labels
):
    trunk = open_trunk(f"hub:{unknown_module}")
    assert (trunk.preprocessing.image_size, trunk.preprocessing.mode) == (SIZE, "unit")
    module = hub.load_module(hub.resolve(unknown_module))
    expected = module(unit_images, training=False)
    np.testing.assert_allclose(trunk.model(unit_images), expected, atol=1e-5)

    first, second = (bind(trunk, task, train) for train in ("scale_bias+last", "depthwise+last"))
    assert (first.counts().patch, second.counts().patch) == (2 * 2 * 8, 3 * 3 * 8)
    frozen = snapshot(trunk.variables())
    train_steps(first, unit_images, labels[:4])
    patch, predictions = snapshot(first.patch_variables), np.array(first.model(unit_images))
    train_steps(second, unit_images, labels[:4])
    assert all(not np.array_equal(value, frozen[key]) for key, value in patch.items())
    assert all(not np.array_equal(value, frozen[key]) for key, value in snapshot(second.patch_variables).items())
    assert same(patch, snapshot(first.patch_variables)) and same(frozen, snapshot(trunk.variables()))
    assert np.array_equal(predictions, first.model(unit_images)) and not np.allclose(
        predictions, second.model(unit_images)
    )
    np.testing.assert_allclose(trunk.model(unit_images), expected, atol=1e-5)


def test_gradients_are_those_of_the_module(unknown_module, task, unit_images):
    bound = bind(open_trunk(f"hub:{unknown_module}"), task, "scale_bias+depthwise+bias+last")
    module = hub.load_module(hub.resolve(unknown_module))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(bound.features(tf.constant(unit_images), training=True) ** 2)
    own = {v.path.rpartition("/")[2]: v for v in bound.features.trainable_variables}
    gradients = dict(zip(own, tape.gradient(loss, [v.value for v in own.values()]), strict=True))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module(tf.constant(unit_images), training=False) ** 2)
    variables = {v.name.removesuffix(":0").replace("/", "."): v for v in module.variables}
    expected = dict(zip(variables, tape.gradient(loss, [*variables.values()]), strict=True))
    assert len(gradients) == 6 and np.abs(gradients["OwnNet.first.BatchNorm.gamma"]).min() > 0
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-4)


def test_a_patch_of_a_module_that_runs_as_it_is_comes_back(unknown_module, task, unit_images, labels, tmp_path):
    from model_patch import Patch, bind_patch

    bound = bind(open_trunk(f"hub:{unknown_module}"), task, "scale_bias+last")
    train_steps(bound, unit_images, labels[:4])
    bound.patch().save(tmp_path / "task.safetensors")
    again = bind_patch(open_trunk(f"hub:{unknown_module}"), Patch.load(tmp_path / "task.safetensors"))
    np.testing.assert_allclose(again.model(unit_images), bound.model(unit_images), atol=1e-5)


@pytest.mark.parametrize("train", ["full", "statistics"])
def test_what_cannot_be_learnt_on_a_module_that_runs_as_it_is_is_refused(unknown_module, task, train):
    trunk = open_trunk(f"hub:{unknown_module}")
    message = f"{train} cannot be trained on a trunk that runs as a single layer, nor norm_statistics=batch: expected scale_bias, "
    with pytest.raises(ModelPatchError, match=message):
        bind(trunk, task, train)


def test_a_join_needs_layers(unknown_module, task):
    with pytest.raises(
        ModelPatchError, match=r"a join needs the layers of the trunk hub:.*unknown, which runs as a single layer"
    ):
        join(open_trunk(f"hub:{unknown_module}"), [task])


def test_a_task_on_a_module_that_runs_as_it_is_is_exported(
    unknown_module, task, unit_images, labels, tmp_path, one_clean_process
):
    trunk = open_trunk(f"hub:{unknown_module}")
    bound = bind(trunk, Task("shapes", task.labels, trunk.preprocessing), "scale_bias+last")
    train_steps(bound, unit_images, labels[:4])
    export_saved_model(bound, tmp_path / "task")
    predictions = np.array(bound.model(unit_images))
    bind(trunk, task, "depthwise+last").model(unit_images)  # The module now holds values of another task.
    with one_clean_process(clean_saved_model.__file__) as run:
        (found,) = run([(tmp_path / "task", unit_images * 255, ())])
    np.testing.assert_allclose(found["logits"], predictions, atol=1e-5)


def test_a_module_that_runs_as_it_is_says_that_mixed_precision_does_not_apply_and_trains(
    unknown_module, task, unit_images, labels, caplog
):
    expected = bind(open_trunk(f"hub:{unknown_module}"), task).model(unit_images)
    assert not caplog.messages
    with dtype_policy("mixed_bfloat16"):
        bound = bind(open_trunk(f"hub:{unknown_module}"), task)
        np.testing.assert_allclose(bound.model(unit_images), expected, atol=1e-6)
        train_steps(bound, unit_images, labels[:4])
    (said,) = caplog.messages
    assert said.endswith("runs as a single layer, which computes in float32: mixed_bfloat16 does not apply to it")


def test_a_module_in_the_cache_is_used_and_one_that_cannot_be_downloaded_is_named(
    small_module, small_trunk, tmp_path, monkeypatch
):
    handle = "http://127.0.0.1:9/small/feature_vector/1"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    with pytest.raises(ModelPatchError) as raised:
        open_trunk(f"hub:{handle}")
    assert str(raised.value).startswith(f"the module {handle} is not in the cache {tmp_path} (TFHUB_CACHE_DIR)")
    (tmp_path / hashlib.sha1(handle.encode()).hexdigest()).symlink_to(small_module)
    trunk = open_trunk(f"hub:{handle}")
    assert trunk.name == f"hub:{handle}"
    assert trunk.fingerprint(trunk.variables()) == small_trunk.fingerprint(small_trunk.variables())


def test_a_module_is_downloaded_once(small_module, small_trunk, tmp_path, monkeypatch):
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    with tarfile.open(served / "small.tar.gz", "w:gz") as archive:
        archive.add(small_module, ".")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(cache))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    handle = f"http://127.0.0.1:{server.server_port}/small.tar.gz"
    try:
        downloaded = hub.resolve(handle)
    finally:
        server.shutdown()
        server.server_close()
    cached = open_trunk(f"hub:{handle}")
    assert hub.resolve(handle) == downloaded
    assert cached.fingerprint(cached.variables()) == small_trunk.fingerprint(small_trunk.variables())


def test_what_cannot_be_opened_is_refused_in_one_sentence(small_module, unknown_module, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "saved_model.pb").write_bytes(b"nonsense")
    other = tf.Module()
    other.a = tf.Variable(1.0)
    tf.saved_model.save(other, str(tmp_path / "other"))
    for text, message in (
        (f"hub:{tmp_path}/nowhere", "nowhere is not a folder with a SavedModel: it has no saved_model.pb"),
        (f"hub:{damaged}", "damaged cannot be loaded as a SavedModel: "),
        (f"hub:{tmp_path}/other", "other is a SavedModel that cannot be called, or has no variables"),
        (f"hub:{small_module}?alpha=1", "unknown option 'alpha'"),
        (f"hub:{small_module}?image_size=big", "image_size=big in .* is not a number of pixels"),
        (f"hub:{small_module}?preprocessing=caffe", "preprocessing=caffe in .* is not the module's, which is tf"),
        (f"hub:{unknown_module}?preprocessing=rgb", "unknown preprocessing 'rgb'"),
        (
            f"hub:{unknown_module}?image_size=64",
            "the module .*unknown runs as a single layer and takes images of 32 px: 64 are given",
        ),
        (f"hub:{small_module}?as_is=yes", "as_is=yes in .* is neither true nor false"),
        (f"hub:{small_module}#Conv", "has a part after '#'"),
    ):
        with pytest.raises(ModelPatchError, match=message) as raised:
            open_trunk(text)
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_comparison_runs_on_a_module(small_module, tmp_path):
    config = transfer_config.get_config()
    config.update(trunk=f"hub:{small_module}", data="digits", train=("last", "scale_bias+last"), epochs=1)
    config.update(max_train_images=64, max_test_images=32, batch_size=32)
    transfer(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "patches").iterdir()} == {
        "last-seed0.safetensors",
        "scale_bias+last-seed0.safetensors",
    }
