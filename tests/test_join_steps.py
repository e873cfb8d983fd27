"""A training step of joined tasks is that of ordinary Keras models, one for each task."""

import keras
import numpy as np
import pytest

from model_patch import Preprocessing, Trunk
from model_patch.join import join
from model_patch.kinds import TrainSpec
from model_patch.layers import variables
from tests.conftest import SIZE, random_norms, same, small_net, snapshot
from tests.test_join import RATE, batch, step, tasks


class Affine(keras.layers.BatchNormalization):
    """Batch norm whose statistics stay: an affine map with a gamma and a beta to learn."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False)


def net_with_scales(norm=keras.layers.BatchNormalization) -> keras.Model:
    """The small net with a gamma in each batch norm, so that an ordinary Keras model can learn what a patch learns."""

    def copy(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            return norm.from_config(config | {"scale": True, "momentum": 0.9})
        return type(layer).from_config(config)

    net = keras.models.clone_model(small_net(), clone_function=copy)
    random_norms(net)
    return net


def ordinary(bound, statistics: str) -> tuple[keras.Model, keras.Model]:
    """An ordinary Keras net with the values of a bound task, and its part without the last layer."""
    net = net_with_scales(Affine if statistics == "frozen" else keras.layers.BatchNormalization)
    net.set_weights(bound.trunk.model.get_weights())
    head = keras.layers.Dense(len(bound.task.labels), name="head")
    model = keras.Model(net.input, head(net.output))
    head.set_weights(bound.head.get_weights())
    return model, net


def steps_alone(joined, statistics: str, learns, images, labels):
    """One step of each task as an ordinary model; returns the losses, and the values of net and head, by task."""
    losses, after = {}, {}
    for name, bound in joined.tasks.items():
        model, net = ordinary(bound, statistics)
        for layer in net.layers:
            layer.trainable = learns(layer)
        model.compile(keras.optimizers.SGD(RATE), bound.task.loss(), run_eagerly=True)
        losses[name] = model.train_on_batch(images[name], labels[name])
        values = {key: v for layer in net.layers for key, v in variables(layer.name, layer).items()}
        after[name] = snapshot(values | {f"head.{v.name}": v for v in model.get_layer("head").weights})
    return losses, after


@pytest.mark.parametrize("statistics", ["batch", "frozen"])
@pytest.mark.parametrize("train_trunk", [False, True])
def test_a_step_is_that_of_a_loop_over_ordinary_models(statistics, train_trunk):
    trunk = Trunk(net_with_scales(), "test", Preprocessing(SIZE, "tf"))
    joined = join(trunk, tasks(), TrainSpec.parse("scale_bias+last", statistics), train_trunk=train_trunk)
    before, (images, labels) = snapshot(trunk.variables()), batch()

    def learns(layer):
        return train_trunk or isinstance(layer, keras.layers.BatchNormalization)

    losses, alone = steps_alone(joined, statistics, learns, images, labels)
    logs = step(joined, images, labels, eager=statistics == "batch" or train_trunk)
    assert logs["loss"] == pytest.approx(sum(losses.values()), rel=1e-5)
    for name, bound in joined.tasks.items():
        owned = bound.patch_variables | bound.head_variables
        assert len(owned) == 12 + 2
        for key, variable in owned.items():
            np.testing.assert_allclose(variable, alone[name][key], rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}")
    after = snapshot(trunk.variables())
    assert same(before, after) != train_trunk
    for key in after.keys() - bound.patch_variables.keys() if train_trunk else ():
        # The trunk moves by the sum of what the tasks alone would move it by.
        moves = sum(values[key] - before[key] for values in alone.values())
        np.testing.assert_allclose(after[key], before[key] + moves, rtol=1e-4, atol=1e-5, err_msg=key)


def test_depthwise_kernels_learn_as_in_ordinary_models():
    trunk = Trunk(net_with_scales(), "test", Preprocessing(SIZE, "tf"))
    joined = join(trunk, tasks(), TrainSpec.parse("depthwise+last", "frozen"))
    images, labels = batch()
    _, alone = steps_alone(joined, "frozen", lambda layer: "depthwise" in layer.name, images, labels)
    step(joined, images, labels)
    for name, bound in joined.tasks.items():
        key = "depthwise/depthwise_kernel"
        assert not np.array_equal(bound.patch_variables[key], trunk.variables()[key])
        np.testing.assert_allclose(bound.patch_variables[key], alone[name][key], rtol=1e-4, atol=1e-6)
