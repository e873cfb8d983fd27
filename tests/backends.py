"""What tests need of the backend that Keras runs on: TensorFlow by default, JAX with `make test-jax`."""

import keras
import pytest

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="looks at what TensorFlow makes of the code"
)


def gradients(function, parts, variables):
    """Returns what a function makes of a list of tensors, and gradients of an uneven sum of it by them and by variables."""

    def loss_of(parts):
        outputs = function(parts)
        total = sum(keras.ops.sum(keras.ops.cast(y, "float32") ** 3 * (k + 1)) for k, y in enumerate(outputs))
        return total, outputs

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(parts)
            loss, outputs = loss_of(parts)
        return outputs, tape.gradient(loss, [*parts, *(v.value for v in variables)])

    import jax

    def stateless(parts, values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss_of(parts)[0]

    by_parts, by_values = jax.grad(stateless, (0, 1))(parts, [v.value for v in variables])
    return function(parts), [*by_parts, *by_values]  # Called once with its effects, as TensorFlow calls it.
