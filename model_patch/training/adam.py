"""Adam for many small variables: one operation each."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="model_patch")
class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` that updates each variable by TensorFlow's own kernel.

    Keras writes out some 40 operations for each variable. A patch has hundreds of variables of a few hundred values:
    tracing and running those operations is a good part of a short training (docs/speed.md).

    For one replica, on TensorFlow; see `adam`.

    Args:
        learning_rate: a number or a schedule.
        **kwargs: `beta_1`, `beta_2`, `epsilon` and `name` of `keras.optimizers.Adam`.
    """

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        self.build(trainable_variables)
        step = ops.cast(self.iterations + 1, "float32")
        scalars = {
            "lr": ops.cast(self.learning_rate, "float32"),
            "beta1": self.beta_1,
            "beta2": self.beta_2,
            "beta1_power": ops.power(self.beta_1, step),
            "beta2_power": ops.power(self.beta_2, step),
            "epsilon": self.epsilon,
        }
        for gradient, variable, *moments in zip(
            grads, trainable_variables, self._momentums, self._velocities, strict=True
        ):
            if gradient is None:
                continue
            var, m, v = (each.value.handle for each in (variable, *moments))
            tf.raw_ops.ResourceApplyAdam(var=var, m=m, v=v, grad=ops.cast(gradient, "float32"), **scalars)
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))
        self.iterations.assign_add(1)


def adam(learning_rate) -> keras.optimizers.Adam:
    """Returns Adam: `FusedAdam` where it works, and else Keras' own, which sums gradients over replicas and runs on JAX.

    Args:
        learning_rate: a number or a schedule.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.distribute.has_strategy():
            return FusedAdam(learning_rate)
    return keras.optimizers.Adam(learning_rate)
