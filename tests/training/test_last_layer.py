import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from model_patch import Task, bind
from model_patch.training.last_layer import LEAST_SPREAD, WEIGHT_DECAYS, choose_weight_decay, learn_last_layer


def problem(images: int, channels: int = 13, classes: int = 3, noise: float = 1.0):
    """Features that tell classes apart up to noise, on scales that differ by channel."""
    random = np.random.default_rng(0)
    labels = np.arange(images) % classes
    features = random.normal(size=(classes, channels))[labels] + noise * random.normal(size=(images, channels))
    return (features * np.logspace(-2, 2, channels) + 5).astype("float32"), labels


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_last_layer_is_logistic_regression_whatever_the_features_scale(trunk, digits, scale):
    features, labels = problem(600, channels=int(bind(trunk, digits, "last").features.output.shape[-1]))
    bound = bind(trunk, Task("three", ("a", "b", "c"), digits.preprocessing), "last")
    learn_last_layer(bound, features[:500] * scale, labels[:500])
    kernel, bias = bound.head.get_weights()
    predicted = (features[500:] * scale) @ kernel + bias
    reference = LogisticRegression(max_iter=2000).fit(features[:500] / features.std(axis=0), labels[:500])
    expected = reference.score(features[500:] / features.std(axis=0), labels[500:])
    assert np.mean(predicted.argmax(axis=1) == labels[500:]) > expected - 0.05
    probabilities = np.exp(predicted) / np.exp(predicted).sum(axis=1, keepdims=True)
    assert -np.log(probabilities[np.arange(100), labels[500:]]).mean() < np.log(3)


def test_the_weight_decay_that_patches_keep_is_that_of_the_solution(trunk, digits):
    features, labels = problem(300, channels=int(bind(trunk, digits, "last").features.output.shape[-1]))
    bound = bind(trunk, Task("three", ("a", "b", "c"), digits.preprocessing), "last")
    decay = learn_last_layer(bound, features, labels)
    kernel, bias = (tf.Variable(each) for each in bound.head.get_weights())
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, features @ kernel + bias))
    gradient = tape.gradient(loss, kernel).numpy()
    assert np.linalg.norm(gradient + decay * kernel) < 0.2 * np.linalg.norm(gradient)


def test_features_that_hardly_differ_are_no_start_for_a_patch(trunk, digits):
    features, labels = problem(300, channels=int(bind(trunk, digits, "last").features.output.shape[-1]))
    bound = bind(trunk, Task("three", ("a", "b", "c"), digits.preprocessing), "last")
    before = bound.head.get_weights()
    features = 1 + 1e-5 * features / features.std(axis=0)
    assert learn_last_layer(bound, features, labels, least_spread=LEAST_SPREAD) is None
    assert all(np.array_equal(one, other) for one, other in zip(before, bound.head.get_weights(), strict=True))
    assert learn_last_layer(bound, features, labels) is not None
    logits = features @ bound.head.kernel.numpy() + bound.head.bias.numpy()
    assert np.mean(logits.argmax(axis=1) == labels) > 0.8  # Alone, it is learnt on any features.


def test_noise_asks_for_more_weight_decay_and_few_images_for_the_most():
    chosen = []
    for noise in (0.1, 10.0):
        features, labels = problem(300, noise=noise)
        features = (features - features.mean(axis=0)) / features.std(axis=0) / np.sqrt(13)
        chosen.append(choose_weight_decay(features, np.eye(3, dtype="float32")[labels]))
    assert chosen[0] < chosen[1]
    assert choose_weight_decay(features[:4], np.eye(3, dtype="float32")[labels[:4]]) == WEIGHT_DECAYS[0]
