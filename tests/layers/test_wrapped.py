"""Layers of a trunk that compute otherwise in training, or keep a state: tasks run them in inference mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from model_patch import Bank, ModelPatchError, Preprocessing, Task, Trunk, bind, bind_patch, fold, join
from model_patch.errors import TrainingError
from model_patch.training.loop import run_epochs
from model_patch.training.recipe import Recipe
from tests.backends import tensorflow_only
from tests.conftest import SIZE, same, snapshot

PREPROCESSING = Preprocessing(SIZE, "tf")
TASK = Task("a", ("x", "y", "z"), PREPROCESSING)


class RunningMean(layers.Layer):
    """Subtracts a mean that it keeps of its inputs, frozen or not."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="mean")

    def call(self, x, training=None):
        if training:
            self.mean.assign(0.5 * self.mean + 0.5 * keras.ops.mean(x, axis=(0, 1, 2)))
        return x - self.mean


class StubbornNorm(layers.BatchNormalization):
    """A batch norm that `trainable=False` does not stop."""

    def call(self, x, training=None, mask=None):
        if training:
            self.moving_mean.assign(self.moving_mean + 1.0)
        return super().call(x, training=False, mask=mask)


class Counter(layers.Layer):
    """Counts its calls, in inference too."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        self.count.assign(self.count + 1.0)
        return x + 0.0 * self.count


class TensorFlowCounter(layers.Layer):
    """Counts in a variable of TensorFlow's, which Keras knows nothing of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, x):
        return x + 0.0 * self.count.assign_add(1.0)


class Block(layers.Layer):
    """Layers with dropout between them, whose call says nothing of training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.noise, self.second = layers.Dense(8, "gelu"), layers.GaussianNoise(0.5), layers.Dense(8)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 8))

    def call(self, x):
        return x + self.second(self.noise(self.first(x)))

    def compute_output_shape(self, shape):
        return shape


class Unseeded(layers.Layer):
    """Noise from the random generator that the whole process shares."""

    def call(self, x, training=None):
        return keras.random.dropout(x, 0.5) if training else x * 2.0


def in_sequence(layer):
    def apply(x):
        x = layers.Reshape((-1, 8))(x)
        return layer(x)

    return apply


def attention(x):
    x = layers.Reshape((-1, 8))(x)
    return layers.MultiHeadAttention(2, 4, dropout=0.5)(x, value=x, use_causal_mask=True)


def make(block) -> keras.Model:
    keras.utils.set_random_seed(0)
    block = block()
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 4, strides=8, name="conv")(image))
    return keras.Model(image, layers.Dense(6, name="project")(layers.Flatten()(block(x))))


STATES = {
    "spectral": lambda: layers.SpectralNormalization(layers.Conv2D(8, 3, name="a"), power_iterations=2, name="b"),
    "running_mean": lambda: RunningMean(name="a"),
    "stubborn_norm": lambda: StubbornNorm(name="a"),
    "inside": lambda: layers.TimeDistributed(
        layers.SpectralNormalization(layers.Dense(5, name="a"), name="b"), name="c"
    ),
}
NOISE = {
    "block": Block,
    "unseeded": Unseeded,
    "attention": lambda: attention,
    "brightness": lambda: layers.RandomBrightness(0.5, value_range=(-9, 9)),
    "contrast": lambda: layers.RandomContrast(0.5, value_range=(-9, 9)),
    "gru": lambda: in_sequence(layers.GRU(5, dropout=0.3, recurrent_dropout=0.3)),
    "wrapped": lambda: in_sequence(layers.TimeDistributed(layers.AlphaDropout(0.5))),
}


def trunk_of(block) -> Trunk:
    return Trunk(make(block), "t", PREPROCESSING)


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_freezing_does_not_stop_stays_the_trunks(state, images, labels):
    trunk = trunk_of(STATES[state])
    assert len(trunk.writing) == 1
    before = snapshot(trunk.variables())
    for train in ("last", "scale_bias+last", "full"):
        first, second = bind(trunk, TASK, train), bind(trunk, TASK, train)
        predictions = np.array(first.model(images, training=False))
        second.model.compile(keras.optimizers.SGD(0.05), second.task.loss(), run_eagerly=True)  # Tracing takes longer.
        second.model.train_on_batch(images, labels)
        assert same(before, snapshot(trunk.variables())), train
        assert np.array_equal(predictions, first.model(images, training=False)), train
        again = bind_patch(trunk_of(STATES[state]), second.patch())
        np.testing.assert_allclose(again.model(images), second.model(images, training=False), atol=1e-5)
    joined = join(trunk, [TASK, Task("b", ("x", "y"), PREPROCESSING)], "scale_bias+last")
    joined.model.compile("sgd", joined.losses(), run_eagerly=True)
    joined.model.train_on_batch({"a": images, "b": images[:4]}, {"a": labels, "b": labels[:4] % 2})
    assert same(before, snapshot(trunk.variables()))


# A layer that draws without a seed is none on JAX.
@pytest.mark.parametrize("noise", [pytest.param(name, marks=[tensorflow_only][: name == "unseeded"]) for name in NOISE])
def test_features_of_last_are_the_trunks_in_training_too(noise, images, tmp_path):
    trunk = trunk_of(NOISE[noise])
    expected = np.array(trunk.model(images, training=False))
    bound = bind(trunk, TASK, "last")
    for training in (True, False):
        assert np.array_equal(bound.features(images, training=training), expected)
    learnt = bind(trunk, TASK, "scale_bias+last").features
    assert np.array_equal(learnt(images, training=False), expected)
    assert not np.array_equal(learnt(images, training=True), expected)  # There it is still noise.
    predictions = bound.model(images, training=False)
    bank = Bank(trunk, capacity=2, classes=3)
    bank.add(bound)
    np.testing.assert_allclose(bank(images, ["a"] * len(images)), predictions, atol=1e-5)
    np.testing.assert_allclose(fold(bound).model(images, training=False), predictions, atol=1e-5)
    full = bind(trunk, TASK, "full")
    np.testing.assert_allclose(full.features(images, training=False), expected, atol=1e-6)
    if noise != "block":  # Keras cannot load one with layers that `build` alone makes known.
        bound.model.save(tmp_path / "bound.keras")


@pytest.mark.parametrize(
    ("layer", "variable"),
    [
        (Counter(name="counter"), "counter/count"),
        # On JAX Keras itself refuses it: a stateful layer needs a known batch size there.
        pytest.param(in_sequence(layers.LSTM(4, stateful=True, name="lstm")), "rnn_state", marks=tensorflow_only),
    ],
)
def test_a_layer_that_writes_in_inference_is_no_trunks(layer, variable):
    image = keras.Input(batch_shape=(4, SIZE, SIZE, 3))
    net = keras.Model(image, layer(layers.Conv2D(8, 8, strides=8)(image)))
    with pytest.raises(ModelPatchError, match=rf"of the trunk 't' writes to .*{variable}.* whenever it is called"):
        Trunk(net, "t", PREPROCESSING)


@tensorflow_only
def test_variables_that_keras_does_not_know_are_found_too():
    with pytest.raises(ModelPatchError, match="TensorFlowCounter.* whenever it is called"):
        trunk_of(TensorFlowCounter)


@tensorflow_only
def test_a_trunk_that_training_changed_is_an_error_that_names_the_variables(trunk, task, images, labels):
    class Meddler(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = trunk.variables()["stem/kernel"]
            kernel.assign(kernel * 1.001)

    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(12)
    bound = bind(trunk, task)
    with pytest.raises(TrainingError, match="training changed the frozen trunk test, in stem/kernel"):
        run_epochs(bound, bound.model, lambda epochs: data, 12, Recipe(epochs=1, batch_size=12), callbacks=[Meddler()])
