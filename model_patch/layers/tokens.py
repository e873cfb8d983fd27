"""Pooling of tokens, the output of transformers, to features."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="model_patch")
class PoolTokens(keras.layers.Layer):
    """Pools tokens to features.

    Args:
        pooling: `class`: the first token; `mean`: the mean of the patches' tokens, those after the prefix; `class+mean`: both
            concatenated, in this order (Oquab et al. 2023, linear evaluation of DINOv2).
        prefix_tokens: number of tokens before those of the patches.
        **kwargs: options of `keras.layers.Layer`.

    Input shape: `(batch, tokens, channels)`. Output shape: `(batch, channels)`, or `(batch, 2 * channels)` for `class+mean`.
    """

    def __init__(self, pooling: str, prefix_tokens: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.pooling = pooling
        self.prefix_tokens = prefix_tokens

    def call(self, inputs):
        parts = {"class": lambda: inputs[:, 0], "mean": lambda: ops.mean(inputs[:, self.prefix_tokens :], axis=1)}
        return ops.concatenate([parts[name]() for name in self.pooling.split("+")], axis=-1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[2] * len(self.pooling.split("+")))

    def get_config(self):
        return {**super().get_config(), "pooling": self.pooling, "prefix_tokens": self.prefix_tokens}
