import re

import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError
from model_patch.trunks import open_trunk
from model_patch.trunks.architectures import INCEPTION_V3
from model_patch.trunks.saving import save_trunk
from tests.trunks import slim_nets
from tests.trunks.slim_nets import SlimNet

SMALL = ("MobilenetV1", slim_nets.mobilenet_v1(0.25), 32)

LAST_LAYERS = {"MobilenetV1": "Conv2d_13_pointwise", "MobilenetV2": "layer_19"}
"""What the names of an SSD's further layers begin with."""


def write_checkpoint(values: dict, path, version=tf.compat.v1.train.SaverDef.V2) -> str:
    """Writes arrays by name as TensorFlow 1 does; returns the checkpoint's path."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        names = [tf.compat.v1.get_variable(name, initializer=value) for name, value in values.items()]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(names, write_version=version)
        return saver.save(session, str(path), write_meta_graph=False)


def values_of(net: SlimNet) -> dict:
    return {name: variable.numpy() for name, variable in net.by_name.items()}


def as_detector(values: dict) -> dict:
    """Returns a net's values as a checkpoint of the Object Detection API holds them, with some of an SSD's further layers."""
    scope = next(iter(values)).partition("/")[0]
    last = f"FeatureExtractor/{scope}/{LAST_LAYERS[scope]}"
    further = {
        # Of SSD, SSDLite and FPN.
        f"{last}_2_Conv2d_2_3x3_s2_512/weights": (3, 3, 4, 4),
        f"{last}_2_Conv2d_2_3x3_s2_512/BatchNorm/gamma": (4,),
        f"{last}_1_Conv2d_2_1x1_256/weights": (1, 1, 4, 4),
        f"{last}_2_Conv2d_2_3x3_s2_512_depthwise/depthwise_weights": (3, 3, 4, 1),
        f"FeatureExtractor/{scope}/fpn/bottom_up_Conv2d_14/weights": (3, 3, 4, 4),
        "BoxPredictor_0/BoxEncodingPredictor/biases": (3,),
        "BoxPredictor_0/ClassPredictor_depthwise/depthwise_weights": (3, 3, 4, 1),
        "WeightSharedConvolutionalBoxPredictor/BoxPredictionTower/conv2d_0/weights": (3, 3, 4, 4),
        "WeightSharedConvolutionalBoxPredictor_1/BoxPredictionTower/conv2d_0/BatchNorm/beta": (4,),
    }
    own = {f"FeatureExtractor/{name}": value for name, value in values.items()}
    return own | {name: np.zeros(shape, "float32") for name, shape in further.items()}


def assert_same_features(trunk, net, image_size, scaled):
    images = np.random.default_rng(0).uniform(0, 255, (2, image_size, image_size, 3)).astype("float32")
    expected = net.features(scaled(images), False).numpy()
    features = np.array(trunk.model(trunk.preprocessing.scale(images), training=False))
    assert expected.std() > 0.01
    np.testing.assert_allclose(features, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def to_one(images):
    return images / 127.5 - 1


def less_mean(images):
    return images - np.array([123.68, 116.779, 103.939], "float32")


def as_imagenet(images):
    return (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


# Odd sizes, too: slim and Keras then differ in what they pad where.
@pytest.mark.parametrize(
    ("scope", "net", "size", "scaled"),
    [
        ("MobilenetV1", slim_nets.mobilenet_v1(0.25), 75, to_one),
        pytest.param("MobilenetV2", slim_nets.mobilenet_v2(0.35), 64, to_one, marks=pytest.mark.soak),
        pytest.param("MobilenetV2", slim_nets.mobilenet_v2(0.5), 75, to_one, marks=pytest.mark.slow),
        pytest.param("MobilenetV2", slim_nets.mobilenet_v2(1.3), 32, to_one, marks=pytest.mark.soak),
        pytest.param("MobilenetV3", slim_nets.mobilenet_v3_small(), 64, to_one, marks=pytest.mark.slow),
        pytest.param(
            "MobilenetV3", slim_nets.mobilenet_v3_small(minimalistic=True), 75, to_one, marks=pytest.mark.soak
        ),
        pytest.param("InceptionV3", slim_nets.inception_v3, 75, to_one, marks=pytest.mark.slow),
        pytest.param("resnet_v1_50", slim_nets.resnet_50(1), 64, less_mean, marks=pytest.mark.slow),
        pytest.param("resnet_v2_50", slim_nets.resnet_50(2), 75, to_one, marks=pytest.mark.soak),
        pytest.param("efficientnet-b0", slim_nets.efficientnet_b0(1), 64, as_imagenet, marks=pytest.mark.slow),
        pytest.param("efficientnetv2-b0", slim_nets.efficientnet_b0(2), 64, as_imagenet, marks=pytest.mark.soak),
    ],
)
def test_features_are_those_of_slims_net(scope, net, size, scaled, tmp_path):
    slim = SlimNet(scope, net, size)
    path = write_checkpoint(values_of(slim), tmp_path / "model.ckpt")
    trunk = open_trunk(f"slim:{path}", size)
    assert trunk.name == f"slim:{path}" and trunk.preprocessing.image_size == size
    assert_same_features(trunk, slim, size, scaled)


@pytest.fixture(scope="module")
def small():
    return SlimNet(*SMALL)


@pytest.mark.parametrize(
    ("scope", "net"),
    [
        pytest.param("MobilenetV1", slim_nets.mobilenet_v1(0.25), marks=pytest.mark.slow),
        ("MobilenetV3", slim_nets.mobilenet_v3_small()),
    ],
)
def test_such_a_trunk_is_saved_whole_and_opened_again(scope, net, tmp_path):
    trunk = open_trunk(f"slim:{write_checkpoint(values_of(SlimNet(scope, net, 32)), tmp_path / 'model.ckpt')}", 32)
    again = open_trunk(save_trunk(trunk, tmp_path / "trunk"))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(again.model(images), trunk.model(images), atol=1e-5)
    keys = [*trunk.variables()]
    assert again.preprocessing == trunk.preprocessing and again.fingerprint(keys) == trunk.fingerprint(keys)


def test_what_belongs_to_optimizers_and_heads_is_passed_over_and_averages_are_taken(small, tmp_path):
    values = values_of(small)
    extra = {f"{name}/RMSProp": value * 0 for name, value in values.items()}
    extra |= {f"{name}/ExponentialMovingAverage": value for name, value in values.items() if "moving" not in name}
    extra |= {
        "MobilenetV1/Logits/Conv2d_1c_1x1/weights": np.zeros((1, 1, 256, 5), "float32"),
        "global_step": np.int64(7),
    }
    last_step = {name: value + 1 if "moving" not in name else value for name, value in values.items()}
    path = write_checkpoint(last_step | extra, tmp_path / "model.ckpt-7")
    assert_same_features(open_trunk(f"slim:{path}", 32), small, 32, to_one)


def test_a_detectors_checkpoint_gives_its_trunk(small, tmp_path):
    path = write_checkpoint(as_detector(values_of(small)), tmp_path / "model.ckpt")
    assert_same_features(open_trunk(f"slim:{path}", 32), small, 32, to_one)


@pytest.mark.parametrize("version", [tf.compat.v1.train.SaverDef.V1, tf.compat.v1.train.SaverDef.V2])
def test_checkpoints_old_and_new_are_found_by_what_people_write(small, version, tmp_path):
    path = write_checkpoint(values_of(small), tmp_path / "model.ckpt", version)
    written = [path, tmp_path] + ([f"{path}.index"] if version == tf.compat.v1.train.SaverDef.V2 else [])
    fingerprints = set()
    for place in written:
        trunk = open_trunk(f"slim:{place}", 32)
        fingerprints.add(trunk.fingerprint(trunk.variables()))
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v | {"MobilenetV1/Conv2d_0/scales": v.pop("MobilenetV1/Conv2d_0/weights")},
            "missing: MobilenetV1/Conv2d_0/weights; unexpected: MobilenetV1/Conv2d_0/scales",
        ),
        pytest.param(
            lambda v: v.pop("MobilenetV1/Conv2d_13_pointwise/BatchNorm/gamma"),
            "missing: MobilenetV1/Conv2d_13_pointwise/BatchNorm/gamma",
            marks=pytest.mark.slow,
        ),
        (
            lambda v: v | {"MobilenetV1/Conv2d_0/weights": np.zeros((5, 5, 3, 8), "float32")},
            "of another shape: MobilenetV1/Conv2d_0/weights (5, 5, 3, 8) instead of (3, 3, 3, 8)",
        ),
        pytest.param(
            lambda v: v | {"encoder/weights": np.zeros(3, "float32")},
            "unexpected: encoder/weights",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_variables_that_are_not_those_of_the_net_are_named(small, change, message, tmp_path):
    values = values_of(small)
    changed = change(values)
    path = write_checkpoint(changed if isinstance(changed, dict) else values, tmp_path / "model.ckpt")
    with pytest.raises(ModelPatchError, match=re.escape(f"{path} are not those of MobilenetV1: {message}")):
        open_trunk(f"slim:{path}", 32)


def test_what_is_no_checkpoint_of_a_known_net_is_refused_in_one_sentence(tmp_path):
    other = write_checkpoint({"alexnet_v2/conv1/weights": np.zeros(3, "float32")}, tmp_path / "other" / "model.ckpt")
    whole = write_checkpoint({"a": np.arange(30000.0)}, tmp_path / "damaged.ckpt")
    (tmp_path / "damaged.ckpt.index").write_bytes(b"x" * 40)
    for text, message in (
        (f"slim:{tmp_path}/nothing.ckpt", "no checkpoint is at .*nothing.ckpt: expected slim:PATH"),
        (f"slim:{other}", "holds no variables of a net that is known: expected one of MobilenetV1, MobilenetV2, "),
        (f"slim:{whole}", "damaged.ckpt is damaged, or is not a TensorFlow checkpoint"),
        (f"slim:{other}#Conv", "has a part after '#'"),
        (f"slim:{other}?alpha=1", "unknown option 'alpha'"),
    ):
        with pytest.raises(ModelPatchError, match=message) as raised:
            open_trunk(text, 32)
        assert "\n" not in str(raised.value)


def test_inceptions_table_has_every_convolution_once():
    assert len(INCEPTION_V3) == len(set(INCEPTION_V3)) == 94
