import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch.training.adam import FusedAdam, RelativeAdam, adam, keys, sizes

SHAPES = [(3,), (2, 5), (), (1, 1, 4, 2), (7,)] * 8


def variables():
    random = np.random.default_rng(0)
    return [keras.Variable(random.normal(size=shape).astype("float32")) for shape in SHAPES]


def stepped(optimizer, steps: int = 6, missing: int | None = None):
    """Takes steps in a compiled function, as `fit` does; returns the values, and the operations that a step is made of."""
    learnt, random = variables(), np.random.default_rng(1)

    @tf.function
    def step(*gradients):
        optimizer.apply([None if i == missing else g for i, g in enumerate(gradients)], learnt)

    optimizer.build(learnt)
    for _ in range(steps):
        gradients = [tf.constant(random.normal(size=shape).astype("float32")) for shape in SHAPES]
        step(*gradients)
    return [np.array(v) for v in learnt], len(step.get_concrete_function(*gradients).graph.get_operations())


@pytest.mark.parametrize("rate", [0.01, keras.optimizers.schedules.CosineDecay(0.1, 5)])
def test_values_are_those_of_adam(rate):
    (fused, few), (plain, many) = stepped(adam(rate)), stepped(keras.optimizers.Adam(rate))
    assert type(adam(rate)) is FusedAdam and few < many / 3
    for one, other, first in zip(fused, plain, variables(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert not np.allclose(one, first)


def test_a_variable_without_a_gradient_stays():
    values, _ = stepped(FusedAdam(0.1), missing=1)
    assert np.array_equal(values[1], variables()[1]) and not np.array_equal(values[0], variables()[0])


def test_constraints_hold_and_its_configuration_comes_back():
    weight = keras.Variable(np.ones(3, "float32"))
    weight.constraint = keras.constraints.NonNeg()
    optimizer = FusedAdam.from_config(FusedAdam(10.0, beta_1=0.5).get_config())
    optimizer.build([weight])
    optimizer.apply([np.ones(3, "float32")], [weight])
    assert np.array_equal(weight, np.zeros(3)) and optimizer.beta_1 == 0.5 and int(optimizer.iterations) == 1


def test_several_replicas_get_keras_own():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert type(adam(0.1)) is keras.optimizers.Adam


def test_a_relative_rate_is_in_each_variables_own_size():
    start = {"kernel": np.full((3, 2), 4.0), "bias": np.zeros(2), "gamma": np.array([3.0, -3.0]), "beta": np.zeros(2)}
    for make in (lambda: adam(0.01, relative=True), lambda: RelativeAdam(0.01, relative=True)):
        with keras.name_scope("layer"):
            learnt = {name: keras.Variable(value.astype("float32"), name=name) for name, value in start.items()}
        optimizer = make()
        optimizer.build(list(learnt.values()))
        optimizer.apply([np.full(v.shape, 1e-2, "float32") for v in learnt.values()], list(learnt.values()))
        moved = {name: np.abs(np.array(v) - start[name]).mean() for name, v in learnt.items()}
        assert moved == pytest.approx({"kernel": 0.04, "bias": 0.04, "gamma": 0.03, "beta": 0.03}, rel=1e-3)
    assert type(optimizer).from_config(optimizer.get_config()).relative


def test_variables_of_joined_tasks_with_one_name_are_told_apart():
    with keras.name_scope("norm"):
        values = {"gamma": (1.0, 3.0), "beta": (0.0, 0.0)}
        variables = [keras.Variable(np.full(3, values[name][i]), name=name) for i in (0, 1) for name in values]
    assert keys(variables) == ["norm/gamma", "norm/beta", "norm/gamma#2", "norm/beta#2"]
    assert sizes(variables) == [1.0, 1.0, 3.0, 3.0]
    optimizer = adam(0.0, relative=True, decays={"norm/gamma#2": np.full(1, 0.5)})
    optimizer.build(variables)
    assert [decay is not None for decay in optimizer._decay_of] == [False, False, True, False]


@pytest.mark.parametrize("kind", [FusedAdam, RelativeAdam])
def test_weight_decay_is_a_penalty_on_the_loss(kind):
    decay = np.array([[0.0], [0.5], [2.0]], "float32")
    kernels = [keras.Variable(np.full((3, 2), 2.0, "float32")) for _ in range(2)]
    decayed, plain = kind(0.1, decays={kernels[0].path: decay}), kind(0.1)
    decayed = kind.from_config(decayed.get_config())
    for optimizer, kernel, penalty in ((decayed, kernels[0], 0.0), (plain, kernels[1], 1.0)):
        optimizer.build([kernel])
        for step in range(3):
            gradient = np.full((3, 2), 0.1 * step, "float32") + penalty * decay * kernel.numpy()
            optimizer.apply([tf.constant(gradient)], [kernel])
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-5)
    assert not np.allclose(kernels[0][1:], 2.0)
