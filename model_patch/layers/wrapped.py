"""Layers around another layer, which are called as that one is."""

import functools

import keras


class Wrapped(keras.layers.Layer):
    """Base of layers around another one, with its name, its variables and the signature of its `call`.

    Args:
        layer: a built layer; the object itself is used, and may belong to other models, too.
        **kwargs: options of `keras.layers.Layer`.
    """

    def __init__(self, layer: keras.Layer, **kwargs):
        # Keras reads the signature of `call`: from it, it knows masks, and arguments that are no tensors.
        @functools.wraps(layer.call)
        def call(*args, **options):
            return self.around(*args, **options)

        object.__setattr__(self, "call", call)
        super().__init__(**{"name": layer.name, "dtype": layer.dtype_policy, "trainable": False} | kwargs)
        self.layer = layer
        self.supports_masking = layer.supports_masking
        self.built = True

    def around(self, *args, **options):
        """Computes what the layer does; arguments as the layer's `call`."""
        raise NotImplementedError

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_spec(self, *args, training=None, **options):
        return self.layer.compute_output_spec(*args, **{key: v for key, v in options.items() if v is not None})

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"layer": keras.saving.deserialize_keras_object(config["layer"])})


@keras.saving.register_keras_serializable(package="model_patch")
class Frozen(Wrapped):
    """A trunk's layer in inference mode, also while a task trains.

    `trainable=False` alone stops gradients. It stops neither noise nor a layer that writes to its own variables in
    training, as `SpectralNormalization` does. Arguments, call and output as the layer's.
    """

    def around(self, *args, **options):
        return self.layer(*args, **options | {"training": False})
