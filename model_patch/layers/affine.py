"""What is left of batch normalisation in inference: a scale and a bias per channel."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="model_patch")
class Affine(keras.layers.Layer):
    """Scales and shifts each channel.

        y = scale * x + bias

    Args:
        axis: of the channels.
        **kwargs: of `keras.layers.Layer`.

    Input shape: any, with the channels on `axis`. Output shape: the same. `scale` and `bias` are `(channels,)`.
    """

    def __init__(self, axis: int = -1, **kwargs):
        super().__init__(**kwargs)
        self.axis = axis

    def build(self, input_shape):
        channels = (input_shape[self.axis],)
        self.scale = self.add_weight(name="scale", shape=channels, initializer="ones")
        self.bias = self.add_weight(name="bias", shape=channels, initializer="zeros")

    def call(self, inputs):
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        return inputs * ops.reshape(self.scale, shape) + ops.reshape(self.bias, shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}
