"""Layers in which K tasks meet: their batches run as one, and part where each task has a layer of its own."""

import itertools
from collections.abc import Sequence

import keras


@keras.saving.register_keras_serializable(package="model_patch")
class Merge(keras.layers.Layer):
    """Puts the batches of K tasks behind one another, in the order of the tasks.

    Input shape: a list of K tensors `(batch of the task, ...)`, equal but for the batch; batches may differ and change.
    Output shape: `(sum of the batches, ...)`.
    """

    def call(self, inputs):
        return keras.ops.concatenate(inputs, axis=0)

    def compute_output_shape(self, input_shape):
        return (None, *input_shape[0][1:])


@keras.saving.register_keras_serializable(package="model_patch")
class Split(keras.layers.Layer):
    """Inverse of `Merge`.

    Call arguments:
        inputs: tensor `(sum of the batches, ...)`.
        batches: list of K tensors `(batch of the task, ...)`: only their first dimension is looked at.

    Returns: a list of K tensors `(batch of the task, ...)`.
    """

    def call(self, inputs, batches):
        return split(inputs, batches)

    def compute_output_shape(self, inputs_shape, batches_shape):
        return [(batch[0], *inputs_shape[1:]) for batch in batches_shape]


@keras.saving.register_keras_serializable(package="model_patch")
class Joined(keras.layers.Layer):
    """K layers of one kind, one per task, each for its task's part of a merged batch.

        y = concat(layers[0](x_0), ..., layers[K-1](x_{K-1})),   x = concat(x_0, ..., x_{K-1})

    What a layer learns, and the statistics that it keeps, depend on its own task's images alone.

    Args:
        layers: the K layers; the objects themselves are used, and may belong to other models, too.

    Call arguments:
        inputs: tensor `(sum of the batches, ...)`, or a list of such.
        batches: list of K tensors `(batch of the task, ...)`: only their first dimension is looked at.

    Output shape: that of the layers; the batch is the sum of the batches.
    """

    takes_extra = True

    def __init__(self, layers: Sequence[keras.Layer], **kwargs):
        super().__init__(**kwargs)
        self.layers = list(layers)

    def build(self, inputs_shape, batches_shape):
        for layer in self.layers:
            if not layer.built:
                layer.build(inputs_shape)

    def call(self, inputs, batches, training=None):
        parts = zip(*(split(each, batches) for each in keras.tree.flatten(inputs)), strict=True)
        one = not isinstance(inputs, list | tuple)
        options = {"training": training} if any(layer._call_has_training_arg for layer in self.layers) else {}
        outputs = [
            layer(part[0] if one else list(part), **options) for layer, part in zip(self.layers, parts, strict=True)
        ]
        return keras.ops.concatenate(outputs, axis=0)

    def compute_output_shape(self, inputs_shape, batches_shape):
        return (None, *self.layers[0].compute_output_shape(inputs_shape)[1:])

    def get_config(self):
        return {**super().get_config(), "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers]}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"layers": [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]})


def split(merged, batches):
    """Splits a merged batch: tensor `(sum of the batches, ...)` into K of `(batch of the task, ...)`.

    Args:
        merged: the tensor.
        batches: K tensors whose first dimensions are the sizes.
    """
    sizes = [keras.ops.shape(batch)[0] for batch in batches]
    if all(isinstance(size, int) for size in sizes):
        return keras.ops.split(merged, list(itertools.accumulate(sizes))[:-1])
    # Only TensorFlow has batches whose size is known no sooner than they come. Its own split has one concatenation as
    # gradient, where slices by keras.ops would have K tensors as large as the whole.
    import tensorflow as tf

    return tf.split(merged, sizes)
