"""RMS normalisation with a task's own scale and a bias."""

import keras

from model_patch.layers.patched import Patched, patches


@patches(keras.layers.RMSNormalization)
class PatchedRMSNormalization(Patched, keras.layers.RMSNormalization):
    """RMS normalisation in which a task owns the scale, and a bias that the trunk's layer does not have.

        y = scale * x / sqrt(mean(x^2) + epsilon) + beta

    Args:
        own: names of the variables that the task owns, among `scale` and `beta`. Without `beta` there is no bias.
        **kwargs: the arguments of `keras.layers.RMSNormalization`.

    Input shape: any. Output shape: the same.
    """

    def build(self, input_shape):
        super().build(input_shape)
        if "beta" in self.own:
            self.beta = self.add_weight(name="beta", shape=self.scale.shape, initializer="zeros")

    def call(self, x):
        y = super().call(x)
        if "beta" not in self.own:
            return y
        shape = [1] * len(x.shape)
        for axis in self.axis:
            shape[axis] = x.shape[axis]
        return y + keras.ops.cast(keras.ops.reshape(self.beta, shape), y.dtype)
