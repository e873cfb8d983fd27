import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError
from model_patch.detection.boxes import encode
from model_patch.detection.loss import MultiboxLoss

DEFAULTS = np.array(
    [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1], [0.2, 0.2, 0.4, 0.4]], "float32"
)


def truth(*boxes, padding=2):
    rows = [*boxes, *[[0, 0, 0, 0, -1]] * padding]
    return np.array([rows], "float32")


def predictions(logits, codes=None):
    codes = np.zeros((len(DEFAULTS), 4)) if codes is None else codes
    return np.concatenate([codes, logits], axis=-1)[None].astype("float32")


def cross_entropy(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


def test_softmax_loss_by_hand():
    """One box that is the second default box, of class 1; of 4 background boxes the 3 hardest count."""
    box = DEFAULTS[1]
    logits = np.array([[2, 0, 0], [0, 1, 3], [0, 1, 0], [1, 2, 0], [0, 0, 3]], "float64")
    codes = np.full((5, 4), 0.3)
    codes[1] = [0.5, -2.0, 0, 0]
    negatives = [cross_entropy(row, 0) for row in logits[[0, 2, 3, 4]]]
    localisation = 0.5 * 0.5**2 + (2 - 0.5)  # Only of the matched box: quadratic below 1, linear above.
    expected = cross_entropy(logits[1], 2) + sum(sorted(negatives)[1:]) + localisation
    loss = MultiboxLoss(DEFAULTS)(truth([*box, 1]), predictions(logits, codes))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_by_hand():
    logits = np.array([[2, 0], [1, 3], [1, 0], [2, 0], [0, 3]], "float64")
    targets = np.zeros((5, 2))
    targets[1, 1] = 1
    p = 1 / (1 + np.exp(-logits))
    expected = np.where(targets == 1, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p)).sum()
    loss = MultiboxLoss(DEFAULTS, "focal")(truth([*DEFAULTS[1], 1]), predictions(logits))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_divided_by_all_its_matches():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    one, three = truth([*DEFAULTS[1], 1]), truth(*([*box, 0] for box in DEFAULTS[:3]), padding=0)
    loss = MultiboxLoss(DEFAULTS)
    separate = [float(loss(each, predictions(logits))) for each in (one, three)]
    together = loss(np.concatenate([one, three]), np.repeat(predictions(logits), 2, axis=0))
    assert float(together) == pytest.approx((1 * separate[0] + 3 * separate[1]) / 4, rel=1e-5)


@pytest.mark.parametrize("confidence", ["softmax", "focal"])
def test_images_without_boxes_teach_background(confidence):
    bias = tf.Variable(tf.zeros(3))
    with tf.GradientTape() as tape:
        logits = tf.zeros((1, 5, 3)) + bias
        loss = MultiboxLoss(DEFAULTS, confidence)(truth(padding=3), tf.concat([tf.zeros((1, 5, 4)), logits], axis=-1))
    gradient = np.array(tape.gradient(loss, bias))
    assert np.isfinite(gradient).all() and gradient[2] > 0, "the classes should become less likely"
    if confidence == "softmax":
        assert gradient[0] < 0, "and background more"


@pytest.mark.parametrize("confidence", ["softmax", "focal"])
def test_gradients_are_finite_and_fall_to_zero_codes_error_at_the_true_boxes(confidence):
    boxes = np.array([[0.1, 0.1, 0.45, 0.6], [0.5, 0.5, 0.9, 1.0]], "float32")
    values = tf.Variable(tf.random.stateless_normal((1, 5, 7), (0, 1)))
    loss = MultiboxLoss(DEFAULTS, confidence)
    y = truth(*([*box, i] for i, box in enumerate(boxes)))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build([values])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss(y, values)
        gradient = tape.gradient(value, values)
        optimizer.apply([gradient], [values])
        return gradient

    for _ in range(300):
        assert np.isfinite(step()).all()
    np.testing.assert_allclose(values[0, 3, :4], encode(boxes[1], DEFAULTS[3]), atol=0.05)
    assert np.argmax(values[0, 3, 4:]) == (2 if confidence == "softmax" else 1)


def test_it_is_saved_with_a_compiled_model_and_unknown_confidences_are_refused():
    loss = MultiboxLoss(DEFAULTS, "focal")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    np.testing.assert_array_equal(again.default_boxes, DEFAULTS)
    assert again.confidence == "focal"
    with pytest.raises(ModelPatchError, match="unknown confidence 'sigmoid': expected one of focal, softmax"):
        MultiboxLoss(DEFAULTS, "sigmoid")
