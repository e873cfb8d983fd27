"""Variables that a net computes with outside its layers, as layers."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="model_patch")
class Weight(keras.layers.Layer):
    """Gives a variable of its own, whatever it is called with.

    Args:
        shape: shape of the variable.
        **kwargs: options of `keras.layers.Layer`.

    Output shape: `shape`, without a batch.
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.weight_shape = tuple(shape)

    def build(self, input_shape):
        self.value = self.add_weight(name="value", shape=self.weight_shape)

    def call(self, inputs):
        return ops.convert_to_tensor(self.value)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(self.weight_shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "shape": list(self.weight_shape)}


@keras.saving.register_keras_serializable(package="model_patch")
class RepeatForBatch(keras.layers.Layer):
    """Repeats `(1, ...)` along the first axis, as often as a second tensor has examples."""

    def call(self, inputs, batch):
        return ops.broadcast_to(inputs, (ops.shape(batch)[0], *inputs.shape[1:]))

    def compute_output_spec(self, inputs, batch):
        return keras.KerasTensor((batch.shape[0], *inputs.shape[1:]), inputs.dtype)
