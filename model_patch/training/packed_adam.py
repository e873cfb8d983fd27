"""Adam for many small variables."""

import math
from collections.abc import Sequence

import keras
from keras import ops

MOST_VALUES = 2**22
"""With more values than this to learn, each variable is updated by itself: then arithmetic is what costs, not the operations."""


@keras.saving.register_keras_serializable(package="model_patch")
class PackedAdam(keras.optimizers.Adam):
    """Adam whose moments are one vector each for all variables, computed at once.

        m += (1 - beta_1) (g - m),   v += (1 - beta_2) (g^2 - v),   w -= rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    value by value as `keras.optimizers.Adam`, which writes out some 40 operations for each variable. A patch has hundreds of
    variables of a few hundred values: tracing and running those operations is a good part of a short training.

    For one replica, on TensorFlow; see `adam`.

    Args:
        learning_rate: a number or a schedule.
        **kwargs: `beta_1`, `beta_2`, `epsilon` and `name` of `keras.optimizers.Adam`.
    """

    def build(self, variables):
        if self.built:
            return
        self.packed = sum(math.prod(v.shape) for v in variables) <= MOST_VALUES
        if not self.packed:
            super().build(variables)
            return
        keras.optimizers.Optimizer.build(self, variables)
        size = (sum(math.prod(v.shape) for v in variables),)
        self.momentum, self.velocity = (self.add_variable(size, dtype="float32", name=n) for n in ("m", "v"))

    def apply(self, grads: Sequence, trainable_variables: Sequence[keras.Variable] | None = None):
        if trainable_variables is not None and not self.built:
            self.build(list(trainable_variables))
        if not self.packed or trainable_variables is None:
            super().apply(grads, trainable_variables)
            return
        import tensorflow as tf

        variables = list(trainable_variables)
        flat = [
            ops.zeros(math.prod(v.shape)) if g is None else ops.reshape(ops.cast(g, "float32"), (-1,))
            for g, v in zip(grads, variables, strict=True)
        ]
        gradient = ops.concatenate(flat)
        step = ops.cast(self.iterations + 1, "float32")
        powers = [ops.power(ops.cast(beta, "float32"), step) for beta in (self.beta_1, self.beta_2)]
        alpha = ops.cast(self.learning_rate, "float32") * ops.sqrt(1 - powers[1]) / (1 - powers[0])
        self.assign_add(self.momentum, (gradient - self.momentum) * (1 - self.beta_1))
        self.assign_add(self.velocity, (ops.square(gradient) - self.velocity) * (1 - self.beta_2))
        change = self.momentum * alpha / (ops.sqrt(self.velocity) + self.epsilon)
        sizes = [math.prod(v.shape) for v in variables]
        for variable, part in zip(variables, tf.split(change, sizes), strict=True):
            self.assign_sub(variable, ops.cast(ops.reshape(part, variable.shape), variable.dtype))
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))
        self.iterations.assign_add(1)


def adam(learning_rate) -> keras.optimizers.Adam:
    """Returns Adam: `PackedAdam` where it can be, and else Keras' own, which sums gradients over replicas and runs on JAX.

    Args:
        learning_rate: a number or a schedule.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.distribute.has_strategy():
            return PackedAdam(learning_rate)
    return keras.optimizers.Adam(learning_rate)
