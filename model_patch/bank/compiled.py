"""Models as compiled functions that batches of any size share."""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Sequence

import keras

from model_patch.errors import ModelPatchError

PART = 16
"""Images that a part of a batch has at least, where CPUs compute parts of a batch at once; measured, see docs/serving.md."""


def compiled(model: keras.Model, variables: Sequence[keras.Variable] = (), max_parts: int | None = None) -> Callable:
    """Returns a model as a compiled function, on TensorFlow one for all batch sizes.

    Args:
        model: whose inputs all have a batch axis.
        variables: those whose values are handed in; all others have the values that they hold at the time.
        max_parts: in how many parts a batch may be computed at once.

    Returns:
        A function of a list of the model's inputs, and of a list of values of `variables`, tensors.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return _jitted(model, variables)
    if backend == "tensorflow":
        return _in_parts(model, variables, max_parts)
    return lambda inputs, values: _call(model, inputs, variables, values)


def _call(model: keras.Model, inputs: Sequence, variables: Sequence[keras.Variable], values: Sequence):
    """Calls a model with other values in some of its variables."""
    given = list(zip(variables, values, strict=True))
    with keras.StatelessScope(state_mapping=given) if given else contextlib.nullcontext():
        return model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)


def _jitted(model: keras.Model, variables: Sequence[keras.Variable]) -> Callable:
    import jax

    # A compiled function would remember what the others held at first.
    given = {id(variable) for variable in variables}
    others = [variable for variable in model.variables if id(variable) not in given]
    run = jax.jit(lambda inputs, values, held: _call(model, inputs, [*variables, *others], [*values, *held]))
    return lambda inputs, values: run(inputs, values, [variable.value for variable in others])


def _in_parts(model: keras.Model, variables: Sequence[keras.Variable], max_parts: int | None) -> Callable:
    import tensorflow as tf

    inputs = [tf.TensorSpec(x.shape, x.dtype, x.name) for x in model.inputs]
    values = [tf.TensorSpec(v.shape, v.dtype) for v in variables]

    def in_parts(count: int):
        @tf.function(input_signature=[*inputs, *values], autograph=False)
        def run(*tensors):
            batch, given = tensors[: len(inputs)], tensors[len(inputs) :]
            # Side by side, what waits for memory (scales and biases) in one part overlaps with multiplication in another.
            bounds = [tf.shape(batch[0])[0] * i // count for i in range(count + 1)]
            parts = [[x[a:b] for x in batch] for a, b in itertools.pairwise(bounds)]
            return tf.concat([_call(model, part, variables, given) for part in parts], axis=0)

        return run

    functions = {count: in_parts(count) for count in _numbers_of_parts() if count <= (max_parts or count)}
    traced: dict = {}
    tracing = threading.Lock()

    def run(given, values):
        tensors = [tf.convert_to_tensor(x, spec.dtype) for x, spec in zip(given, inputs, strict=True)]
        for tensor, spec in zip(tensors, inputs, strict=True):
            if not spec.shape.is_compatible_with(tensor.shape):
                raise ModelPatchError(f"{spec.name} are {tuple(tensor.shape)}: expected {tuple(spec.shape)}")
        size = len(tensors[0])
        count = max(n for n in functions if n == 1 or n * PART <= size)
        if count not in traced:
            with tracing:
                traced[count] = traced.get(count) or functions[count].get_concrete_function()
        if size >= PART:
            return traced[count](*tensors, *values)
        # A call checks all values one by one, which takes 5 % of the time of an image; but this runs less of it at once.
        arguments = [*tensors, *values, *traced[count].captured_inputs]
        (outputs,) = tf.raw_ops.StatefulPartitionedCall(args=arguments, Tout=[model.output.dtype], f=traced[count])
        return outputs

    return run


def _numbers_of_parts() -> tuple[int, ...]:
    """Returns in how many parts batches may be computed at once: one, and on CPUs two.

    Where an operation has one thread only (`tf.config.threading.set_intra_op_parallelism_threads(1)`), parts are all that
    can keep the cores at work: then two for each core, eight at most, as each is a graph of its own.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return (1,)
    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        return (1, 2)
    return tuple(2**i for i in range(4) if 2**i <= 2 * (os.cpu_count() or 1))
