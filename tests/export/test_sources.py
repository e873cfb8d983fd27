"""Trunks of every source join, predict in a bank, fold and run in LiteRT."""

from pathlib import Path

import keras
import numpy as np
import pytest

from model_patch import Bank, ModelPatchError, Preprocessing, Task, Trunk, bind, join
from model_patch.export import check, export
from model_patch.fold import fold
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, random_norms
from tests.graph.test_inline import Net
from tests.trunks import slim_nets, test_kerashub
from tests.trunks.slim_nets import SlimNet
from tests.trunks.test_hub import write_module
from tests.trunks.test_slim import values_of, write_checkpoint

KERASHUB = {
    test_kerashub.resnet: 0,
    test_kerashub.mobilenet: 0,
    test_kerashub.efficientnet: 0,
    test_kerashub.densenet: 6,
    test_kerashub.vgg: 0,
    test_kerashub.xception: 0,
}

FIXTURES = Path(__file__).parent.parent / "fixtures"


def bundled(folder):
    return open_trunk("bundled")


def file_of_keras_2(folder):
    return open_trunk(f"file:{FIXTURES / 'keras2_classifier.h5'}")


def slim(scope, net, size):
    def make(folder):
        slim_net = SlimNet(scope, net, size)
        return open_trunk(f"slim:{write_checkpoint(values_of(slim_net), folder / 'model.ckpt')}", size)

    return make


def hub(folder):
    net = SlimNet("MobilenetV2", slim_nets.mobilenet_v2(0.35), 64, scale=lambda images: images)
    return open_trunk(f"hub:{write_module(folder / 'module', net, 64)}")


def kerashub(backbone):
    def make(folder):
        keras_hub = pytest.importorskip("keras_hub", reason="KerasHub is optional: pip install model_patch[kerashub]")
        from model_patch.trunks.kerashub import trunk_of

        net = backbone(keras_hub)
        random_norms(net)
        return trunk_of(net, backbone.__name__, Preprocessing(64, "tf"))

    return make


def subclassed(folder):
    net = Net()
    net(np.zeros((1, SIZE, SIZE, 3), "float32"))
    random_norms(net)
    return Trunk(net, "test", Preprocessing(SIZE, "tf"))


@pytest.mark.parametrize(
    ("make", "kept"),
    # Norms that are not folded, or become affine layers: the layer norms of the shortcuts, and those before a convolution.
    [
        pytest.param(bundled, 0, id="bundled", marks=pytest.mark.slow),
        pytest.param(file_of_keras_2, 0, id="file"),
        pytest.param(slim("MobilenetV1", slim_nets.mobilenet_v1(0.25), 75), 0, id="slim V1", marks=pytest.mark.soak),
        pytest.param(slim("MobilenetV3", slim_nets.mobilenet_v3_small(), 64), 0, id="slim V3", marks=pytest.mark.soak),
        pytest.param(hub, 0, id="hub", marks=pytest.mark.slow),
        pytest.param(subclassed, 3, id="subclassed"),
        pytest.param(slim("InceptionV3", slim_nets.inception_v3, 75), 0, id="slim Inception", marks=pytest.mark.soak),
        pytest.param(slim("resnet_v1_50", slim_nets.resnet_50(1), 64), 0, id="slim ResNet V1", marks=pytest.mark.soak),
        pytest.param(slim("resnet_v2_50", slim_nets.resnet_50(2), 64), 17, id="slim ResNet V2", marks=pytest.mark.soak),
        pytest.param(
            slim("efficientnet-b0", slim_nets.efficientnet_b0(1), 64), 0, id="slim B0", marks=pytest.mark.soak
        ),
        pytest.param(
            slim("efficientnetv2-b0", slim_nets.efficientnet_b0(2), 64), 0, id="slim V2 B0", marks=pytest.mark.soak
        ),
        *(
            pytest.param(kerashub(backbone), kept, id=f"KerasHub {backbone.__name__}", marks=mark)
            for (backbone, kept), mark in zip(
                KERASHUB.items(), (pytest.mark.slow,) * 2 + (pytest.mark.soak,) * 4, strict=True
            )
        ),
    ],
)
def test_tasks_learn_together_predict_in_a_bank_fold_and_run_in_litert(make, kept, tmp_path):
    trunk = make(tmp_path)
    tasks = [Task(name, ("a", "b"), trunk.preprocessing) for name in ("one", "two")]
    joined = join(trunk, tasks, train_trunk=False)
    joined.model.compile("adam", loss=joined.losses(), run_eagerly=True)  # Tracing takes longer than the step.
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *trunk.model.input.shape[1:])).astype("float32")
    images = trunk.preprocessing.scale(pixels)
    joined.model.train_on_batch(dict.fromkeys(joined.tasks, images), {name: np.array([0, 1]) for name in joined.tasks})

    bank = Bank(trunk, "scale_bias", capacity=2, classes=2)
    for bound in joined.tasks.values():
        bank.add(bound)
    expected = [joined.tasks[name].model(images)[i] for i, name in enumerate(("two", "one"))]
    near = 1e-4 * max(
        1.0, np.abs(expected).max()
    )  # Differences grow with the logits, which are large in random deep nets.
    np.testing.assert_allclose(bank(images, ["two", "one"]), expected, atol=near)

    bound = joined.tasks["two"]
    folded = fold(bound)
    assert len(folded.left) == kept
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.model._flatten_layers())
    for format in ("litert", "litert_set"):
        export(format, [bound], tmp_path / format)
        assert check(format, [bound], tmp_path / format)["two"] <= near


def test_a_trunk_that_runs_as_it_is_is_refused_by_what_needs_its_layers(tmp_path):
    module = write_module(tmp_path / "unknown", SlimNet("OwnNet", slim_nets.tiny, SIZE), SIZE)
    trunk = open_trunk(f"hub:{module}")
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing))
    for format, what in {"signatures": "one net", "litert": "a fold", "litert_set": "one net"}.items():
        with pytest.raises(
            ModelPatchError, match=f"{what}.* needs the layers of the trunk hub:.*runs as a single layer"
        ):
            export(format, [bound], tmp_path / format)
        assert not (tmp_path / format).exists()
