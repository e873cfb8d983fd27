"""What a detector is trained on: codes and classes of the default boxes that match, and background for the others."""

import keras
import numpy as np
from keras import ops

from model_patch.detection import CONFIDENCES
from model_patch.detection.boxes import BACKGROUND, encode, match
from model_patch.errors import unknown
from model_patch.layers.replicas import mean_over_replicas

NEGATIVES_PER_POSITIVE = 3
MIN_NEGATIVES = 3
"""Background boxes that count: at most three per matched box, those with the largest loss, and at least this many in an
image, so that images without boxes teach something, too."""

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0

FOCAL_PRIOR = 0.01
"""Probability of each class that a net begins with under the focal loss, so that the many background boxes do not drown the
others in its first steps (Lin et al. 2017, section 3.3)."""


@keras.saving.register_keras_serializable(package="model_patch")
class MultiboxLoss(keras.losses.Loss):
    """The loss of SSD (Liu et al. 2016, equation 1): that of the classes plus smooth L1 of the box codes.

    Sums over default boxes; the mean over a batch is the sum over its images, divided by the number of default boxes that
    match a true box in all of them.

    Args:
        default_boxes: `(defaults, 4)`, see `DefaultBoxes.corners`.
        confidence: one of `model_patch.detection.CONFIDENCES`.
        **kwargs: options of `keras.losses.Loss`.

    True values: float32 `(batch, most, 5)`, true boxes and their classes, from 0; the class is negative in rows that are
    only padding. Predictions: float32 `(batch, defaults, 4 + logits)`: box codes, then the logits, that of background
    first where there is one.

    Raises:
        ModelPatchError: the confidence is unknown.
    """

    def __init__(self, default_boxes, confidence="softmax", name="multibox", **kwargs):
        super().__init__(name=name, **kwargs)
        if confidence not in CONFIDENCES:
            raise unknown("confidence", confidence, CONFIDENCES)
        self.default_boxes = np.asarray(default_boxes, "float32")
        self.confidence = confidence

    def call(self, y_true, y_pred):
        boxes, classes = y_true[..., :4], ops.cast(y_true[..., 4], "int32")
        codes, logits = y_pred[..., :4], y_pred[..., 4:]
        matched = match(boxes, classes >= 0, self.default_boxes)
        positive = matched != BACKGROUND
        index = ops.maximum(matched, 0)
        true_boxes = ops.take_along_axis(boxes, index[..., None], axis=1)
        # Where nothing matches, the box may be padding, whose logarithm is not finite: its code is not looked at.
        true_boxes = ops.where(positive[..., None], true_boxes, self.default_boxes)
        labels = ops.where(positive, ops.take_along_axis(classes, index, axis=1), BACKGROUND)
        localisation = ops.sum(_smooth_l1(codes - encode(true_boxes, self.default_boxes)), axis=-1)
        class_loss = _softmax_loss if self.confidence == "softmax" else _focal_loss
        positive = ops.cast(positive, "float32")
        per_image = ops.sum(localisation * positive + class_loss(labels, positive, logits), axis=-1)
        # Keras takes the mean over the images; what the loss is divided by is the number of matches per image, in all of
        # the batch, whichever part of it is computed here.
        matches = mean_over_replicas(ops.mean(ops.sum(positive, axis=-1)))
        return per_image / ops.maximum(matches, 1.0)

    def get_config(self):
        return {**super().get_config(), "default_boxes": self.default_boxes.tolist(), "confidence": self.confidence}


def _smooth_l1(x):
    size = ops.abs(x)
    return ops.where(size < 1.0, 0.5 * ops.square(x), size - 0.5)


def _softmax_loss(labels, positive, logits):
    """Returns the cross-entropy `(batch, defaults)` of the matched boxes and of the hardest background ones."""
    loss = ops.sparse_categorical_crossentropy(labels - BACKGROUND, logits, from_logits=True)
    number = ops.maximum(NEGATIVES_PER_POSITIVE * ops.sum(positive, axis=-1, keepdims=True), MIN_NEGATIVES)
    difficulty = ops.where(positive > 0, -1.0, ops.stop_gradient(loss))
    rank = ops.argsort(ops.argsort(-difficulty, axis=-1), axis=-1)  # 0 for the hardest.
    negative = ops.logical_and(positive == 0, ops.cast(rank, "float32") < number)
    return loss * ops.maximum(positive, ops.cast(negative, "float32"))


def _focal_loss(labels, positive, logits):
    """Returns the focal loss `(batch, defaults)` of all boxes, summed over the classes."""
    truth = ops.one_hot(labels, logits.shape[-1])  # All zeros for background, whose label is negative.
    loss = ops.binary_crossentropy(truth, logits, from_logits=True)
    probability = ops.sigmoid(logits)
    wrong = truth * (1.0 - probability) + (1.0 - truth) * probability
    alpha = truth * FOCAL_ALPHA + (1.0 - truth) * (1.0 - FOCAL_ALPHA)
    return ops.sum(alpha * wrong**FOCAL_GAMMA * loss, axis=-1)
