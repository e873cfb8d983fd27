"""Layers in which K tasks meet: their batches run as one, and part where each task has a layer of its own."""

import itertools
from collections.abc import Mapping, Sequence

import keras
from keras import ops

from model_patch.graph.keras_private import takes_training
from model_patch.layers.batch_normalization import PatchedBatchNormalization
from model_patch.layers.replicas import mean_over_replicas


@keras.saving.register_keras_serializable(package="model_patch")
class Merge(keras.layers.Layer):
    """Concatenates the batches of K tasks, in the order of the tasks.

    Input shape: a list of K tensors `(batch of the task, ...)`, equal but for the batch; batches may differ and change.

    Returns: the merged batch `(sum of the batches, ...)`, and int32 `(sum of the batches,)`, the task of each example,
    in 0..K-1.
    """

    def call(self, inputs):
        tasks = [ops.full((ops.shape(batch)[0],), k, "int32") for k, batch in enumerate(inputs)]
        return ops.concatenate(inputs, axis=0), ops.concatenate(tasks, axis=0)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((None, *inputs[0].shape[1:]), inputs[0].dtype), keras.KerasTensor((None,), "int32")


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
class Part(Split):
    """`Split` as a layer of a joined graph, in which batches are among what is handed to every joined layer."""

    _mp_takes_extra = True

    def call(self, inputs, merge):
        return split(inputs, merge[1:])

    def compute_output_shape(self, inputs_shape, merge_shape):
        return super().compute_output_shape(inputs_shape, merge_shape[1:])


@keras.saving.register_keras_serializable(package="model_patch")
class MergeParts(keras.layers.Layer):
    """Concatenates K tensors `(batch of the task, ...)` to `(sum of the batches, ...)`.

    Keras names layers after their class, and nets have layers named `concatenate` themselves.
    """

    def call(self, inputs):
        return ops.concatenate(inputs, axis=0)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((None, *inputs[0].shape[1:]), inputs[0].dtype)


class PerTask(keras.layers.Layer):
    """Base of layers that are made of K layers of one kind, one per task.

    Args:
        layers: the K layers; the objects themselves are used, and may belong to other models, too.
    """

    def __init__(self, layers: Sequence[keras.Layer], **kwargs):
        super().__init__(**kwargs)
        self.layers = list(layers)

    def each(self, parts, training: bool | None, options: Mapping) -> list:
        """Calls every layer with its task's part, a tuple of positional arguments."""
        if any(map(takes_training, self.layers)):
            options = {**options, "training": training}
        return [layer(*part, **options) for layer, part in zip(self.layers, parts, strict=True)]

    def get_config(self):
        return {**super().get_config(), "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers]}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"layers": [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]})


@keras.saving.register_keras_serializable(package="model_patch", name="Apart")  # The name in files of 0.1.
class SeparateLayers(PerTask):
    """K layers, each for the batch of its task, which stay apart.

    Arguments as `PerTask`. Input: a list of K tuples, the positional arguments of each layer's call. Returns: a list of
    what the K layers return.
    """

    def build(self, inputs_shape):
        self.built = True

    def call(self, inputs, training=None, mask=None, **options):
        return self.each(inputs, training, options)

    def compute_output_spec(self, inputs, training=None, mask=None, **options):
        return [layer.compute_output_spec(*part, **options) for layer, part in zip(self.layers, inputs, strict=True)]


@keras.saving.register_keras_serializable(package="model_patch")
class Joined(PerTask):
    """K layers, each for its task's part of a merged batch.

        y = concat(layers[0](x_0), ..., layers[K-1](x_{K-1})),   x = concat(x_0, ..., x_{K-1})

    What a layer learns, and the statistics that it keeps, depend on its own task's images alone.

    Arguments as `PerTask`.

    Call arguments:
        *arguments: what the layers take: tensors `(sum of the batches, ...)`, or lists of such. After them `merge`, the
            list of what `Merge` says of each example, int32 `(sum of the batches,)`, and the K batches that it merged, of
            which only the first dimension is looked at.

    Output shape: that of the layers; the batch is the sum of the batches.
    """

    _mp_takes_extra = True

    def build(self, *shapes):
        self.built = True  # The layers build themselves when they are called.

    # Keras hands batch norm a mask of None. Images have none, so there is never one to split.
    def call(self, *arguments, training=None, mask=None, **options):
        *inputs, (_, *batches) = arguments
        split_inputs = keras.tree.map_structure(lambda each: tuple(split(each, batches)), inputs)
        parts = [
            keras.tree.map_structure_up_to(inputs, lambda each, k=k: each[k], split_inputs) for k in range(len(batches))
        ]
        outputs = self.each(parts, training, options)
        return keras.tree.map_structure(lambda *each: ops.concatenate(each, axis=0), *outputs)

    def compute_output_spec(self, *arguments, training=None, mask=None, **options):
        outputs = self.layers[0].compute_output_spec(*arguments[:-1], **options)
        return keras.tree.map_structure(lambda x: keras.KerasTensor((None, *x.shape[1:]), x.dtype), outputs)


@keras.saving.register_keras_serializable(package="model_patch")
class JoinedBatchNormalization(Joined):
    """K batch normalisations as one operation on the whole merged batch, without taking it apart.

    An example of task k is normalised by the K-th mean, variance, gamma and beta:

        y = x * scale[k] + bias[k],   scale = gamma / sqrt(variance + epsilon),   bias = beta - mean * scale

    with tables `(tasks, channels)` of which each example takes its row. Which mean and variance these are, and when
    the moving ones move, is as `PatchedBatchNormalization` says, task by task: those of the task's own part of the batch
    in training with `statistics="batch"`, over all replicas where the layers are `synchronized`; and else the moving ones.

    Arguments and shapes as `Joined`; all layers are `PatchedBatchNormalization` of one configuration.
    """

    def build(self, inputs_shape, merge_shape):
        for layer in self.layers:
            if not layer.built:
                layer.build(inputs_shape)

    def call(self, inputs, merge, training=None, mask=None):
        task, *batches = merge
        first = self.layers[0]
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        axis = first.axis % len(x.shape)
        if first.normalises_by_batch(training):
            mean, variance = self._moments(x, task, batches, axis)
        else:
            mean = self._table("moving_mean", x.dtype)
            variance = self._table("moving_variance", x.dtype)
        scale = ops.rsqrt(variance + first.epsilon)
        if first.scale:
            scale = scale * self._table("gamma", x.dtype)
        bias = self._table("beta", x.dtype) - mean * scale if first.center else -mean * scale
        size = (len(self.layers), x.shape[axis])
        table = ops.concatenate([ops.broadcast_to(scale, size), ops.broadcast_to(bias, size)], axis=-1)
        scale, bias = ops.split(ops.take(table, task, axis=0), 2, axis=-1)  # (batch, channels) each
        shape = _per_example(x, axis)
        return ops.cast(x * ops.reshape(scale, shape) + ops.reshape(bias, shape), self.compute_dtype)

    def _table(self, name: str, dtype: str):
        """Returns a variable of all layers, `(tasks, channels)`, or `(1, channels)` where they have it in common."""
        variables = [getattr(layer, name) for layer in self.layers]
        common = all(variable is variables[0] for variable in variables)
        return ops.stack([ops.cast(variable, dtype) for variable in (variables[:1] if common else variables)])

    def _moments(self, x, task, batches, axis: int):
        """Returns the means and the variances `(tasks, channels)` of the parts of x, and moves the moving ones."""
        inner = [i for i in range(1, len(x.shape)) if i != axis]

        def by_task(values):  # From (batch, channels).
            means = ops.stack([ops.mean(part, axis=0) for part in split(values, batches)])
            return mean_over_replicas(means) if self.layers[0].synchronized else means

        mean = by_task(ops.mean(x, axis=inner))
        # The derivative of a variance with respect to its mean is 0.
        centre = ops.reshape(ops.take(ops.stop_gradient(mean), task, axis=0), _per_example(x, axis))
        variance = by_task(ops.mean(ops.square(x - centre), axis=inner))
        for k, layer in enumerate(self.layers):
            for moving, new in ((layer.moving_mean, mean[k]), (layer.moving_variance, variance[k])):
                moving.assign(moving * layer.momentum + ops.cast(new, moving.dtype) * (1.0 - layer.momentum))
        return mean, variance


def _per_example(x, axis: int) -> list[int]:
    """Returns the shape that broadcasts `(batch, channels)` to x, whose channels are on `axis`."""
    return [-1 if i == 0 else x.shape[i] if i == axis else 1 for i in range(len(x.shape))]


def join_layers(layers: Sequence[keras.Layer], name: str) -> Joined:
    """Returns the joined form of K layers of one kind."""
    at_once = all(type(each) is PatchedBatchNormalization and not each.renorm for each in layers)
    return (JoinedBatchNormalization if at_once else Joined)(layers, name=name)


def split(merged, batches):
    """Splits a merged batch: tensor `(sum of the batches, ...)` into K of `(batch of the task, ...)`.

    Args:
        merged: the tensor.
        batches: K tensors whose first dimensions are the sizes.
    """
    if len(batches) == 1:
        return [merged]
    sizes = [ops.shape(batch)[0] for batch in batches]
    if all(isinstance(size, int) for size in sizes):
        return ops.split(merged, list(itertools.accumulate(sizes))[:-1])
    # Only TensorFlow has batches whose size is known no sooner than they come. Its own split has one concatenation as
    # gradient, where slices by keras.ops would have K tensors as large as the whole.
    import tensorflow as tf

    return tf.split(merged, sizes)
