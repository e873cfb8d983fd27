import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from tests.conftest import SIZE, random_norms, same, snapshot, train_steps

PREPROCESSING = Preprocessing(SIZE, "tf")


class Block(keras.layers.Layer):
    """A residual block, as people write them: names left out, and the same in every block."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.shortcut = keras.Sequential([keras.layers.Conv2D(filters, 1), keras.layers.LayerNormalization()])
        self.drop = keras.layers.Dropout(0.5)

    def build(self, input_shape):
        for layer in (self.conv, self.shortcut):
            layer.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))

    def call(self, x, training=None):
        y = self.drop(self.norm(self.conv(x), training=training), training=training)
        return keras.ops.relu(y + self.shortcut(x))


class Net(keras.Model):
    def __init__(self, backbone=None):
        super().__init__(name="net")
        self.stem = keras.layers.Conv2D(6, 3, strides=4)
        self.blocks = [Block(6), Block(8)]
        self.named = {"last": Block(8)}
        self.backbone = backbone

    def call(self, x, training=None):
        x = self.stem(x)
        for block in [*self.blocks, self.named["last"]]:
            x = block(x, training=training)
        return keras.ops.mean(x, axis=(1, 2))


@pytest.fixture
def net(images):
    keras.utils.set_random_seed(0)
    model = Net()
    model(images)
    random_norms(model)
    return model


def test_a_subclassed_model_is_a_trunk_with_layers_named_by_their_places(net, images, labels):
    before, names = [np.array(w) for w in net.weights], [layer.name for layer in net._flatten_layers()]
    trunk = Trunk(net, "subclassed", PREPROCESSING)
    np.testing.assert_allclose(trunk.model(images), net(images, training=False), atol=1e-5)
    assert trunk.num_parameters() == sum(w.size for w in before)
    assert {"stem/kernel", "blocks.0.norm/gamma", "blocks.1.shortcut/1/beta", "named.last.conv/kernel"} <= set(
        trunk.variables()
    )
    bound = bind(trunk, Task("two", ("a", "b", "c"), PREPROCESSING), "scale_bias+last")
    assert len(bound.patch_variables) == 3 * (4 + 2), "with the statistics of the batch norms"
    frozen = snapshot(trunk.variables())
    train_steps(bound, images, labels)
    assert same(frozen, snapshot(trunk.variables()))
    assert all(np.array_equal(w, v) for w, v in zip(before, net.weights, strict=True)), "the net is only copied"
    assert names == [layer.name for layer in net._flatten_layers()] and net.trainable_weights


def test_an_opened_net_is_saved_without_the_classes_it_was_made_of(net, images, tmp_path):
    trunk = Trunk(net, "subclassed", PREPROCESSING)
    trunk.model.save(tmp_path / "trunk.keras")
    with zipfile.ZipFile(tmp_path / "trunk.keras") as file:
        layers = json.loads(file.read("config.json"))["config"]["layers"]
    assert {layer["module"].partition(".")[0] for layer in layers} == {"keras"}
    np.testing.assert_allclose(
        keras.models.load_model(tmp_path / "trunk.keras")(images), trunk.model(images), atol=1e-5
    )


def test_keys_do_not_depend_on_what_was_built_before(net, images):
    keys = list(Trunk(net, "first", PREPROCESSING).variables())
    keras.layers.Conv2D(1, 1)
    again = Net()
    assert list(Trunk(again, "second", PREPROCESSING).variables()) == keys, "built only now"


def test_blocks_inside_a_graph_are_opened(images, labels):
    image = keras.Input((SIZE, SIZE, 3))
    x = Block(5, name="first")(image)
    inner_image = keras.Input(x.shape[1:])
    inner = keras.Model(inner_image, Block(5, name="second")(inner_image), name="inner")
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(inner(x)))
    random_norms(model)
    trunk = Trunk(model, "blocks", PREPROCESSING)
    np.testing.assert_allclose(trunk.model(images), model(images), atol=1e-5)
    assert {"first.norm/gamma", "inner/second.norm/gamma", "first.shortcut/0/kernel"} <= set(trunk.variables())
    train_steps(bind(trunk, Task("two", ("a", "b", "c"), PREPROCESSING)), images, labels)


def test_dropout_inside_is_on_in_training_and_off_in_inference(net, images):
    bound = bind(Trunk(net, "subclassed", PREPROCESSING), Task("two", ("a", "b"), PREPROCESSING))
    assert np.array_equal(bound.features(images), bound.features(images, training=False))
    assert not np.allclose(bound.features(images, training=True), bound.features(images, training=True))


def test_a_graph_of_plain_layers_is_used_itself(trunk):
    assert Trunk(trunk.model, "again", PREPROCESSING).model is trunk.model


class UsesTensorFlow(keras.Model):
    def __init__(self):
        super().__init__(name="tf_net")
        self.norm = keras.layers.BatchNormalization()

    def call(self, x):
        return tf.reduce_mean(self.norm(x), [1, 2])


class OwnVariable(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.norm = keras.layers.BatchNormalization()
        self.scales = [self.add_weight(shape=(3,), name="scale")]

    def call(self, x):
        return keras.ops.mean(self.norm(x) * self.scales[0], axis=(1, 2))


class BakesBatch(keras.Model):
    def __init__(self):
        super().__init__(name="baked")
        self.norm = keras.layers.BatchNormalization()

    def call(self, x):
        x = self.norm(x)
        return keras.ops.mean(x, axis=(1, 2)) * (1.0 if x.shape[0] else 2.0)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            UsesTensorFlow,
            "the UsesTensorFlow 'tf_net' holds layers to patch, and what it calls cannot be followed .*keras.ops",
        ),
        (
            OwnVariable,
            r"the OwnVariable 'own' holds layers to patch and variables of its own \(scale\): put those into a lay",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_and_says_how_to_go_on(net, message):
    with pytest.raises(ModelPatchError, match=message) as raised:
        Trunk(net(), "refused", PREPROCESSING)
    assert "\n" not in str(raised.value)
