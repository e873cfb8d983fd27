import sys

import numpy as np
import pytest

from model_patch import ModelPatchError, Patch, Preprocessing, Task, bind, bind_patch
from model_patch.trunks import open_trunk
from tests.conftest import random_norms, same, snapshot, train_steps

SIZE = 64


def test_without_kerashub_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)  # As where it is not installed.
    with pytest.raises(ModelPatchError, match=r"'kerashub:x' needs KerasHub .*pip install 'model_patch\[kerashub\]'"):
        open_trunk("kerashub:x")


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub", reason="KerasHub is optional: pip install model_patch[kerashub]")


def resnet(hub, **options):
    return hub.models.ResNetBackbone([64], [7], [64, 64], [1, 2], [1, 2], "basic_block", **options)


def mobilenet(hub):
    return hub.models.MobileNetBackbone(
        stackwise_expansion=[[24], [40, 40]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[16], [24, 24]],
        stackwise_kernel_size=[[3], [5, 5]],
        stackwise_num_strides=[[2], [2, 1]],
        stackwise_se_ratio=[[None], [0.25, 0.25]],
        stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [2, 2]],
        output_num_filters=None,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=32,
        squeeze_and_excite=0.5,
    )


def efficientnet(hub):
    return hub.models.EfficientNetBackbone(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[32, 16],
        stackwise_output_filters=[16, 24],
        stackwise_expansion_ratios=[1, 6],
        stackwise_strides=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["v1", "v1"],
        stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False],
    )


def densenet(hub):
    return hub.models.DenseNetBackbone([2, 2], compression_ratio=0.5, growth_rate=4)


def vgg(hub):
    return hub.models.VGGBackbone([1, 1], [8, 12])


def xception(hub):
    return hub.models.XceptionBackbone([[8, 12], [12, 12]], [True, False])


@pytest.mark.parametrize(
    "make",
    [
        resnet,
        vgg,
        *(pytest.param(make, marks=pytest.mark.slow) for make in (mobilenet, efficientnet, densenet, xception)),
    ],
)
def test_a_backbone_learns_a_task(hub, make):
    from model_patch.trunks.kerashub import trunk_of

    backbone = make(hub)
    random_norms(backbone)
    trunk = trunk_of(backbone, make.__name__, Preprocessing(SIZE, "unit"))
    images = np.random.default_rng(0).uniform(0, 1, (4, SIZE, SIZE, 3)).astype("float32")
    np.testing.assert_allclose(trunk.model(images), backbone(images), atol=1e-4)
    norms = [layer for layer in backbone._flatten_layers() if type(layer).__name__ == "BatchNormalization"]
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last")
    expected = 2 * sum(norm.moving_mean.shape[0] for norm in norms)
    assert bound.counts().patch == expected or (make is vgg and bound.counts().patch == 2 * (8 + 12))
    frozen = snapshot(trunk.variables())
    train_steps(bound, images, np.array([0, 1, 0, 1]), steps=1)
    assert same(frozen, snapshot(trunk.variables()))


def test_a_preset_in_a_folder_opens_with_its_own_size_and_scaling_and_its_patch_comes_back(hub, tmp_path):
    backbone = resnet(hub, image_shape=(SIZE, SIZE, 3))
    random_norms(backbone)
    backbone.save_to_preset(str(tmp_path / "preset"))
    converter = hub.layers.ResNetImageConverter(image_size=(SIZE, SIZE), scale=1 / 127.5, offset=-1)
    converter.save_to_preset(str(tmp_path / "preset"))
    trunk = open_trunk(f"kerashub:{tmp_path}/preset")
    assert trunk.preprocessing == Preprocessing(SIZE, "tf")
    images = np.random.default_rng(0).uniform(0, 1, (4, SIZE, SIZE, 3)).astype("float32")
    np.testing.assert_allclose(trunk.model(images), backbone(images), atol=1e-4)
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last")
    train_steps(bound, images, np.array([0, 1, 0, 1]), steps=1)
    bound.patch().save(tmp_path / "task.safetensors")
    again = bind_patch(open_trunk(f"kerashub:{tmp_path}/preset"), Patch.load(tmp_path / "task.safetensors"))
    np.testing.assert_allclose(again.model(images), bound.model(images), atol=1e-5)
    assert open_trunk(f"kerashub:{tmp_path}/preset", 32).model.input_shape == (None, 32, 32, 3)


@pytest.mark.parametrize(
    ("preset", "fetch"),
    [
        ("vit_base_patch16_224_imagenet", "kagglehub.model_download('keras/vit/keras/vit_base_patch16_224_imagenet/"),
        ("kaggle://keras/vit/keras/some", "kagglehub.model_download('keras/vit/keras/some')"),
        ("hf://keras/some", "huggingface_hub.snapshot_download('keras/some')"),
    ],
)
def test_offline_the_error_says_what_to_fetch_and_where_to_put_it(hub, tmp_path, monkeypatch, preset, fetch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # Nobody listens there.
    if preset.startswith("hf://"):  # It would wait and try again.
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelPatchError) as raised:
        open_trunk(f"kerashub:{preset}")
    message = str(raised.value)
    assert message.startswith(f"KerasHub cannot open the preset {preset} (") and "\n" not in message
    assert f"without network, fetch it elsewhere with {fetch}" in message
    assert message.endswith("copy the folder to any place here, and give kerashub:FOLDER")


def test_what_cannot_be_opened_is_refused_in_one_sentence(hub, tmp_path):
    resnet(hub).save_to_preset(str(tmp_path / "bare"))
    for text, message in (
        (
            f"kerashub:{tmp_path}/nowhere",
            "KerasHub cannot open the preset .*nowhere .*: expected the name of a preset, ",
        ),
        (f"kerashub:{tmp_path}/bare", r"does not say how pixels are scaled: give \?preprocessing=tf|torch|"),
        (f"kerashub:{tmp_path}/bare?weights=some", "is not understood: expected kerashub:PRESET"),
        (f"kerashub:{tmp_path}/bare?size=1", "unknown option 'size'"),
    ):
        with pytest.raises(ModelPatchError, match=message) as raised:
            open_trunk(text)
        assert "\n" not in str(raised.value)
    assert open_trunk(f"kerashub:{tmp_path}/bare?preprocessing=unit", 32).preprocessing == Preprocessing(32, "unit")
