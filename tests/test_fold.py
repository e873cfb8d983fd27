import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind, join
from model_patch.detection.task import DetectionTask
from model_patch.fold import fold
from model_patch.graph.rewrite import walk
from model_patch.layers.affine import Affine
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, random_norms, same, small_net, snapshot, train_steps

TASK = Task("shapes", ("circle", "square", "star"), Preprocessing(SIZE, "tf"))


def norms(model) -> list[str]:
    return [path for path, layer in walk(model) if isinstance(layer, keras.layers.BatchNormalization)]


def affines(model) -> list[str]:
    return [path for path, layer in walk(model) if isinstance(layer, Affine)]


def folded_net(layers, shape=(9, 11, 5)):
    """Folds a net given as a function from image to features, with uneven norms; returns the net and its fold."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(layers(image)))
    random_norms(model)
    return fold(bind(Trunk(model, "test", TASK.preprocessing), TASK, "last"))


@pytest.mark.parametrize(
    ("name", "size", "affine"),
    # Norms that follow no convolution alone: none; before the first convolution of 58 dense layers and 3 transitions, of
    # which none can take it, as an activation stands between; and after the last.
    [
        ("MobileNetV2", 32, 0),
        pytest.param("InceptionV3", 75, 0, marks=pytest.mark.slow),
        pytest.param("ResNet50", 32, 0, marks=pytest.mark.slow),
        pytest.param("DenseNet121", 32, 62, marks=pytest.mark.slow),
    ],
)
def test_nets_with_uneven_statistics_predict_the_same_to_a_ten_thousandth(name, size, affine):
    trunk = open_trunk(f"keras:{name}?weights=none", size)
    random_norms(trunk.model)
    bound = bind(trunk, Task("shapes", TASK.labels, trunk.preprocessing))
    random_norms(bound.model, seed=1)
    folded = fold(bound)
    assert folded.difference <= 1e-4
    assert norms(folded.model) == []
    assert len(affines(folded.model)) == affine == len(folded.left)


@pytest.mark.parametrize("train", ["scale_bias+last", "depthwise+last", "bias+last", "full", "last"])
def test_a_learnt_task_is_folded_and_stays_as_it_is(trunk, task, images, labels, train):
    bound = bind(trunk, task, train)
    train_steps(bound, images, labels)
    before = snapshot(trunk.variables() | bound.patch_variables | bound.head_variables)
    expected = np.array(bound.model(images, training=False))
    folded = fold(bound, images)
    assert same(before, snapshot(trunk.variables() | bound.patch_variables | bound.head_variables))
    np.testing.assert_allclose(folded.model(images), expected, atol=1e-5)
    assert folded.left == {} and norms(folded.model) == []
    # It is a copy of these values: what is learnt later is not in it. And it is of Keras' own layers alone.
    train_steps(bound, images, labels)
    np.testing.assert_allclose(folded.model(images), expected, atol=1e-5)
    assert not folded.model.trainable_variables
    assert all(type(layer).__module__.startswith("keras.") for _, layer in walk(folded.model))


def test_a_task_of_a_joined_model_is_folded(trunk, task, images, labels):
    other = Task("two", ("a", "b"), task.preprocessing)
    joined = join(trunk, [task, other], train_trunk=True)
    joined.model.compile("sgd", loss=joined.losses(), run_eagerly=True)
    inputs = {"shapes": images, "two": images}
    joined.model.fit(inputs, {"shapes": labels, "two": labels % 2}, batch_size=12, verbose=0)
    expected = joined.model.predict(inputs, verbose=0)
    for name, bound in joined.tasks.items():
        folded = fold(bound)
        assert folded.difference <= 1e-5 and norms(folded.model) == []
        np.testing.assert_allclose(folded.model(images), expected[name], atol=1e-5)


def test_scales_of_convolutions_without_norms_are_folded(images, labels):
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="first")(image)
    model = keras.Model(image, keras.layers.Conv2D(5, 3, name="second")(x))
    bound = bind(Trunk(model, "test", TASK.preprocessing), TASK)
    train_steps(bound, images, labels)
    folded = fold(bound, images)
    assert folded.difference < 1e-5
    assert [type(layer) for layer in folded.model.layers[1:3]] == [keras.layers.Conv2D] * 2


def test_a_detector_is_folded_but_for_the_norms_inside_its_head(trunk):
    task = DetectionTask.on(trunk, "boxes", ("dot",), layers=("stem_relu", "separable"), width=0.1)
    bound = bind(trunk, task)
    random_norms(bound.model)
    folded = fold(bound)
    assert norms(folded.model) == [] and folded.left.keys() == {"head"} and folded.difference < 1e-5
    assert "inside the layer" in folded.left["head"]


layers = keras.layers


@pytest.mark.parametrize(
    "linear",
    [
        layers.Conv2D(6, 3, name="conv"),
        layers.Conv2D(6, 3, padding="same", strides=2, groups=3, use_bias=False, name="conv"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="conv"),
        layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2, name="conv"),
        layers.Conv2DTranspose(5, 3, strides=2, name="conv"),
        layers.Dense(7, name="conv"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_norm_goes_into_the_layer_before_it(linear):
    folded = folded_net(lambda x: layers.ReLU()(layers.BatchNormalization(name="norm")(linear(x))))
    assert folded.left == {} and norms(folded.model) == [] and folded.difference < 1e-5


@pytest.mark.parametrize(
    "linear",
    [
        layers.Conv2D(6, 3, activation="relu", name="conv"),
        layers.Conv2D(6, 1, padding="same", strides=2, name="conv"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="conv"),
        layers.SeparableConv2D(5, 3, depth_multiplier=2, use_bias=False, name="conv"),
        layers.Dense(7, name="conv"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_norm_without_a_layer_before_it_goes_into_the_next_that_does_not_pad(linear):
    folded = folded_net(lambda x: linear(layers.BatchNormalization(name="norm")(layers.ReLU()(x))))
    assert folded.left == {} and norms(folded.model) == [] and folded.difference < 1e-5


def shared_norm(x):
    norm = layers.BatchNormalization(name="norm")
    return norm(layers.Conv2D(3, 3, name="conv")(norm(x)))


def read_twice(x):
    x = layers.Conv2D(4, 3, name="conv")(x)
    return layers.Add()([x, layers.BatchNormalization(name="norm")(x)])


def shared_convolution(x):
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    return layers.BatchNormalization(name="norm")(conv(conv(x)))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (
            lambda x: layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, activation="relu", name="conv")(x)),
            "conv before it has an activation",
        ),
        (
            lambda x: layers.Conv2D(4, 3, padding="same", name="conv")(layers.BatchNormalization(name="norm")(x)),
            "not to a convolution alone",
        ),
        (
            lambda x: layers.Conv2D(6, 3, groups=3, name="conv")(layers.BatchNormalization(name="norm")(x)),
            "not to a convolution alone",
        ),
        (lambda x: layers.BatchNormalization(1, name="norm")(layers.Conv2D(4, 3, name="conv")(x)), "another axis"),
        (shared_norm, "it is used more than once"),
        (read_twice, "conv before it gives is read by others"),
        (shared_convolution, "conv next to it is used more than once"),
    ],
)
def test_a_norm_that_cannot_go_anywhere_becomes_an_affine_layer_with_the_reason(net, reason):
    folded = folded_net(net)
    assert affines(folded.model) == ["norm"] and norms(folded.model) == [] and folded.difference < 1e-5
    assert "an affine layer" in folded.left["norm"] and reason in folded.left["norm"]


class Doubling(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (layers.LayerNormalization(name="norm"), "LayerNormalization depends on its input"),
        (layers.GroupNormalization(2, name="norm"), "GroupNormalization depends on its input"),
        (Doubling(name="norm"), "Doubling may compute otherwise"),
    ],
)
def test_a_norm_of_another_kind_stays_as_it_is(norm, reason):
    folded = folded_net(lambda x: norm(layers.Conv2D(4, 3, name="conv")(x)))
    assert reason in folded.left["norm"] and folded.difference < 1e-5
    assert type(dict(walk(folded.model))["norm"]) is type(norm)


def test_norms_of_nested_models_are_folded(images):
    inner = small_net()
    image = keras.Input((SIZE, SIZE, 3))
    bound = bind(Trunk(keras.Model(image, inner(image)), "test", TASK.preprocessing), TASK)
    folded = fold(bound, images)
    assert norms(folded.model) == [] and folded.difference < 1e-5


@pytest.mark.parametrize("file", ["folded.keras", "folded.h5"])
def test_a_net_saved_by_keras_predicts_the_same(trunk, task, images, tmp_path, file):
    folded = fold(bind(trunk, task))
    folded.model.save(tmp_path / file)
    np.testing.assert_allclose(keras.models.load_model(tmp_path / file)(images), folded.model(images))


def test_where_rounding_is_large_the_layer_is_named(trunk, task):
    # The bound task takes small differences of large numbers here, which the folded net does not.
    layers = trunk.layers()
    layers["separable"].bias.assign([1e6] * 12)
    layers["separable_bn"].moving_mean.assign([1e6] * 12)
    with pytest.raises(ModelPatchError, match="'shapes' folded differs by .* most in 'separable_bn', by"):
        fold(bind(trunk, task))


def test_values_that_give_no_number_are_refused_with_the_layer(trunk, task):
    trunk.layers()["stem_bn"].moving_variance.assign([-1.0] * 8)
    with pytest.raises(ModelPatchError, match="'stem_bn' cannot be folded"):
        fold(bind(trunk, task))
