"""Small transformers that give tokens, for the tests of several modules."""

import keras
import numpy as np

SIZE = 16


@keras.saving.register_keras_serializable(package="tests")
class Prefix(keras.layers.Layer):
    """Puts learnt tokens before those of the patches, and adds positions to all."""

    def __init__(self, count=1, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def build(self, shape):
        self.tokens = self.add_weight(shape=(1, self.count, shape[2]), initializer="random_normal", name="tokens")
        positions = (1, self.count + shape[1], shape[2])
        self.positions = self.add_weight(shape=positions, initializer="random_normal", name="positions")

    def call(self, x):
        tokens = keras.ops.broadcast_to(self.tokens, (keras.ops.shape(x)[0], *self.tokens.shape[1:]))
        return keras.ops.concatenate([tokens, x], axis=1) + self.positions

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + self.count, shape[2])

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable(package="tests")
class LayerScale(keras.layers.Layer):
    """A scale per channel, in a variable without a name, as in `keras.applications`' ConvNeXt."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gamma

    def compute_output_shape(self, shape):
        return shape


def small_vit(prefix: int = 1, *, size: int = SIZE, patch: int = 8, dim: int = 12, heads: int = 2, depth: int = 2):
    """A transformer before its head, with every layer that patches know in such nets; its values are uneven."""
    layers = keras.layers
    x = images = keras.Input((size, size, 3))
    x = layers.Conv2D(dim, patch, patch, name="patches")(x)
    x = layers.Reshape((-1, dim), name="as_tokens")(x)
    x = Prefix(prefix, name="prefix")(x) if prefix else x
    for i in range(depth):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block_{i}_norm1")(x)
        y = layers.MultiHeadAttention(heads, dim // heads, name=f"block_{i}_attention")(y, y)
        x = layers.Add(name=f"block_{i}_add1")([x, LayerScale(name=f"block_{i}_scale")(y)])
        norm = layers.LayerNormalization if i else layers.RMSNormalization
        y = norm(name=f"block_{i}_norm2")(x)
        y = layers.Dense(2 * dim, activation="gelu", name=f"block_{i}_expand")(y)
        x = layers.Add(name=f"block_{i}_add2")([x, layers.Dense(dim, name=f"block_{i}_project")(y)])
    model = keras.Model(images, layers.LayerNormalization(name="norm")(x), name="vit")
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def windowed_vit(norm_inside: bool, *, dim: int = 8, window: int = 2) -> keras.Model:
    """A block of attention within shifted windows, as in Swin: windows are a batch; with or without a norm among them."""
    layers, ops, side = keras.layers, keras.ops, SIZE // 4
    images = keras.Input((SIZE, SIZE, 3))
    maps = layers.Conv2D(dim, 4, 4, name="patches")(images)
    x = ops.roll(layers.LayerNormalization(name="before")(maps), (-1, -1), (1, 2))
    x = ops.reshape(x, (-1, side // window, window, side // window, window, dim))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, window**2, dim))
    x = layers.LayerNormalization(name="inside")(x) if norm_inside else x
    x = layers.MultiHeadAttention(2, dim // 2, name="attention")(x, x)
    x = ops.reshape(x, (-1, side // window, side // window, window, window, dim))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, side, side, dim))
    x = layers.Add(name="add")([maps, ops.roll(x, (1, 1), (1, 2))])
    return keras.Model(images, layers.LayerNormalization(name="after")(x), name="windows")
