"""Files that Keras 2 itself writes, here tf_keras, open as trunks whose outputs are those of Keras 2."""

import functools
import itertools
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from model_patch import ModelPatchError, Task, bind
from model_patch.trunks import open_trunk
from tests.conftest import SIZE

keras2 = pytest.importorskip("tf_keras")
layers = keras2.layers
FORMATS = ("keras", "h5")


def graph(call, size: int = SIZE, **options):
    """Returns a functional model of one image."""
    image = layers.Input((size, size, 3))
    return keras2.Model(image, call(image), **options)


def backbone(slash: str = "_", name: str = "backbone"):
    """Returns a small net; with `slash="/"` its layers are named as in Keras 2's DenseNet, and `name` may have one, too."""

    def call(x):
        for n in range(2):
            x = layers.Conv2D(8, 3, padding="same", name=f"conv{n}{slash}conv")(x)
            x = layers.ReLU()(layers.BatchNormalization(name=f"conv{n}{slash}bn")(x))
            y = layers.DepthwiseConv2D(3, padding="same", name=f"conv{n}{slash}depthwise")(x)
            x = layers.Add()([x, layers.BatchNormalization(scale=False, name=f"conv{n}_depthwise{slash}bn")(y)])
        return x

    return graph(call, name=name)


def top():
    return [layers.GlobalAveragePooling2D(), layers.Dense(3)]


def in_sequential(net):
    return keras2.Sequential([net, *top()])


def in_functional(net):
    size = net.input_shape[1]
    return graph(lambda image: functools.reduce(lambda x, layer: layer(x), top(), net(image, training=False)), size)


def frozen(net, number: int | None = None):
    """Freezes a net's first layers, or all: HDF5 files list frozen variables in another order."""
    for layer in net.layers[:number]:
        layer.trainable = False
    net.trainable = number is not None
    return net


def in_nested_sequentials():
    first = keras2.Sequential([layers.Rescaling(1 / 127.5, -1, input_shape=(SIZE, SIZE, 3))], name="first/scale")
    return keras2.Sequential([first, backbone("/"), keras2.Sequential(top(), name="top")])


def with_shared_layers():
    relu = layers.ReLU(name="shared/relu")
    inner = graph(lambda x: relu(layers.Conv2D(4, 3)(relu(layers.Conv2D(4, 3, name="first/conv")(x)))), name="in/ner")
    return graph(lambda x: layers.Add()([inner(x), inner(layers.Conv2D(3, 3, padding="same")(x))]))


def with_many_classes():
    """Layers whose arguments Keras 3 reads otherwise, among them several axes."""

    def call(x):
        x = layers.PReLU()(layers.Conv2DTranspose(4, 3)(backbone("/")(x)))
        x = layers.SpatialDropout2D(0.1)(layers.SeparableConv2D(4, 3)(layers.GroupNormalization(2)(x)))
        x = layers.LayerNormalization(axis=[1, 2])(layers.Softmax(axis=[1, 2])(x))
        return layers.LSTM(3)(layers.Reshape((-1, 4))(layers.AveragePooling2D(8)(x)))

    return graph(call)


def in_mixed_precision():
    keras2.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        return in_sequential(backbone())
    finally:
        keras2.mixed_precision.set_global_policy("float32")


def compiled():
    model = in_sequential(backbone("/"))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def of_a_dict():
    image = layers.Input((SIZE, SIZE, 3), name="image")
    return keras2.Model({"image": image}, [backbone("/")(image)])


SMALL = {
    "alone": backbone,
    "names with a slash": lambda: backbone("/"),
    "in a Sequential": lambda: in_sequential(backbone("/", "back/bone")),
    "in a functional model": lambda: in_functional(backbone("/", "back/bone")),
    "frozen, in a Sequential": lambda: in_sequential(frozen(backbone())),
    "frozen in part, in a functional model": lambda: in_functional(frozen(backbone("/"), 6)),
    "in nested Sequentials": in_nested_sequentials,
    "shared layers and graphs": with_shared_layers,
    "many classes of layers": with_many_classes,
    "in mixed precision": in_mixed_precision,
    "compiled": compiled,
    "of a dict, to a list": of_a_dict,
}


def save_and_open(make, suffix: str, folder: Path, size: int):
    """Returns the trunk out of a file that Keras 2 wrote, images, and what Keras 2 gives for them."""
    keras2.utils.set_random_seed(0)
    model, rng = make(), np.random.default_rng(0)
    for variable in model.weights:
        if any(part in variable.name for part in ("gamma", "beta", "bias", "moving")):
            variable.assign(rng.uniform(0.3, 1.0, variable.shape))
    model.save(folder / f"net.{suffix}")
    images = rng.uniform(-1, 1, (2, size, size, 3)).astype("float32")
    return open_trunk(f"file:{folder}/net.{suffix}"), images, model(images, training=False).numpy()


def check_outputs(trunk, images, expected, tolerance: float):
    given = np.asarray(trunk.model(images, training=False))
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(given, expected, atol=tolerance * max(1.0, np.abs(expected).max()))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("what", SMALL)
def test_every_form_that_keras_2_writes_gives_the_outputs_of_keras_2(tmp_path, what, suffix):
    trunk, images, expected = save_and_open(SMALL[what], suffix, tmp_path, SIZE)
    check_outputs(trunk, images, expected.astype("float32"), 2e-2 if "mixed" in what else 1e-5)
    paths = trunk.layers()
    assert len(paths) == len({*paths}) and bind(trunk, Task("a", ("x", "y"), trunk.preprocessing)).patch_variables


def test_names_that_differ_in_the_slash_alone_stay_two_names(tmp_path):
    def call(x):
        x = layers.Conv2D(4, 3, name="a/b")(x)
        return layers.BatchNormalization(name="a_b")(x)

    trunk, images, expected = save_and_open(lambda: in_sequential(graph(call, name="net")), "h5", tmp_path, SIZE)
    check_outputs(trunk, images, expected, 1e-5)
    assert [*trunk.layers()][:2] == ["net/a_b", "net/a_b_"]


def test_graphs_of_the_class_model_as_tensorflow_before_2_3_wrote_them(tmp_path):
    save_and_open(lambda: in_functional(backbone()), "h5", tmp_path, SIZE)
    expected = open_trunk(f"file:{tmp_path}/net.h5")
    with h5py.File(tmp_path / "net.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"].replace('"Functional"', '"Model"'))
        file.attrs["model_config"] = json.dumps(config)
    images = np.random.default_rng(0).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype("float32")
    check_outputs(open_trunk(f"file:{tmp_path}/net.h5"), images, np.asarray(expected.model(images)), 1e-6)


NETS = {
    "MobileNetV2": (96, {"alpha": 0.35}),
    "EfficientNetB0": (64, {}),
    "ResNet50": (64, {}),
    "DenseNet121": (64, {}),
    "InceptionV3": (80, {}),
}


@functools.cache
def application(name: str):
    size, options = NETS[name]
    net = getattr(keras2.applications, name)
    return net(include_top=False, weights=None, input_shape=(size, size, 3), **options)


FORMS = {"alone": lambda net: net, "sequential": in_sequential, "functional": in_functional}
LONG = {
    ("MobileNetV2", "functional", "h5"),
    ("EfficientNetB0", "sequential", "keras"),
}
"""What `make test-slow` opens; every net in every form is opened by `make soak`."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "form", "suffix"),
    [
        pytest.param(*each, marks=pytest.mark.slow if each in LONG else pytest.mark.soak)
        for each in itertools.product(NETS, FORMS, FORMATS)
    ],
)
def test_nets_of_keras_2s_applications_give_the_outputs_of_keras_2(tmp_path, name, form, suffix):
    size, _ = NETS[name]
    check_outputs(*save_and_open(lambda: FORMS[form](application(name)), suffix, tmp_path, size), 1e-5)


@pytest.mark.parametrize(
    ("function", "name"), [(lambda x: x * 2.0, "TFOpLambda"), (lambda x: x[:, ::2], "SlicingOpLambda")]
)
@pytest.mark.parametrize("format", FORMATS)
def test_functions_in_a_graph_are_refused_by_name(function, name, format, tmp_path):
    graph(lambda x: function(layers.Conv2D(4, 3)(x))).save(tmp_path / f"net.{format}")
    with pytest.raises(
        ModelPatchError, match=f"net.{format} has a {name} layer, .*: build the model in Keras 3 and load"
    ):
        open_trunk(f"file:{tmp_path}/net.{format}")
