"""Batch normalisation with a task's own scale, bias and statistics."""

import keras
from keras import ops

from model_patch.errors import unknown
from model_patch.layers.patched import Patched, patches

STATISTICS = ("batch", "frozen")


@patches(keras.layers.BatchNormalization)
class PatchedBatchNormalization(Patched, keras.layers.BatchNormalization):
    """Batch normalisation in which a task owns any of gamma, beta and the moving statistics.

    With `statistics="batch"`, training computes

        y = gamma * (x - mean(x)) / sqrt(var(x) + epsilon) + beta

    over the batch and moves the layer's own statistics, `moving = momentum * moving + (1 - momentum) * batch`. With
    `statistics="frozen"`, and in inference always,

        y = gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta,

    an affine map per channel whose gamma and beta can be trained while the statistics are frozen. Statistics that
    the task does not own are the trunk's, and are never moved, whatever the mode. `trainable=False` means inference
    mode, as in Keras.

    Args:
        statistics: `"batch"` or `"frozen"`, see above.
        own: names of the variables that the task owns, among `gamma`, `beta`, `moving_mean`, `moving_variance`.
        **kwargs: the arguments of `keras.layers.BatchNormalization`.

    Input shape: any, with the channels on `axis`. Output shape: the same; dtype the compute dtype, statistics float32.

    Raises:
        ModelPatchError: `statistics` is not one of the two.

    Reference: Mudrakarta et al. 2019, the scale-and-bias patch; Ioffe and Szegedy 2015 for batch normalisation.
    """

    def __init__(self, *args, statistics="batch", **kwargs):
        super().__init__(*args, **kwargs)
        if statistics not in STATISTICS:
            raise unknown("statistics", statistics, STATISTICS)
        self.statistics = statistics

    def normalises_by_batch(self, training: bool | None) -> bool:
        """Whether the statistics of the batch are used, and move the layer's own."""
        return bool(training) and self.trainable and self.statistics == "batch" and "moving_mean" in self.own

    def call(self, inputs, training=None, mask=None):
        by_batch = self.normalises_by_batch(training)
        if by_batch and mask is None and self._can_be_fused(inputs):
            return self._fused(inputs)
        return super().call(inputs, training=by_batch, mask=mask)

    def _can_be_fused(self, inputs) -> bool:
        is_images = len(inputs.shape) == 4 and self.axis in (-1, 3)
        return keras.backend.backend() == "tensorflow" and is_images and not (self.synchronized or self.renorm)

    def _fused(self, inputs):
        """Computes a training step by the batch as one operation of TensorFlow's; Keras composes it of many.

        That makes the step of a whole net a third faster on CPUs. With frozen statistics Keras' form is the faster one: four
        steps of 8 images (MobileNetV2 1.0, 96 px, two cores) take 183 ms, and as this operation 290 ms.
        """
        import tensorflow as tf

        x = ops.cast(inputs, "float32")
        channels = x.shape[-1]
        gamma = ops.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels)
        beta = ops.convert_to_tensor(self.beta) if self.center else tf.zeros(channels)
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=self.epsilon)
        # Keras keeps the variance of the batch itself, the operation gives the unbiased estimate.
        count = tf.cast(tf.size(x) // channels, "float32")
        self.move(mean, variance * (count - 1) / count)
        return ops.cast(y, self.compute_dtype)

    def move(self, mean, variance):
        """Moves the layer's own statistics towards those of a batch."""
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + new * (1.0 - self.momentum))

    def get_config(self):
        return {**super().get_config(), "statistics": self.statistics}
