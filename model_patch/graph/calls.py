"""Single layers of a graph, called as the graph calls them: what they write to, mix up, and whether two of them agree."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from model_patch.graph.keras_private import layers_within
from model_patch.graph.rewrite import functional, nodes

STEADY = (keras.layers.BatchNormalization, keras.layers.Dense, keras.layers.EinsumDense)
"""Layers of Keras that compute in training as in inference while `trainable` is off, though their call takes `training`."""

_OURS = ("keras", "model_patch", "tensorflow", "builtins")

_ELEMENTWISE = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Relu", "Relu6", "Sigmoid", "Silu", "Gelu"}
"""Names of frequent operations of Keras that cannot mix up images."""

_SEED = "seed_generator_state"
"""Keras' name of the state of a random generator."""


@dataclasses.dataclass(frozen=True)
class Call:
    """The first use of a layer, or of a bare operation, in a graph; tensors among the arguments are symbolic."""

    layer: Any
    args: tuple
    kwargs: dict


def calls(model: keras.Model, prefix: str = "") -> dict[str, Call]:
    """Returns, by path, how a graph and those nested in it call each layer, and each bare operation, first."""
    found: dict[str, Call] = {}
    for node in nodes(functional(model)):
        layer = node.operation
        if isinstance(layer, keras.Model):
            found |= calls(layer, f"{prefix}{layer.name}/")
        else:
            kwargs = {key: value for key, value in node.arguments.kwargs.items() if key != "training"}
            found.setdefault(prefix + layer.name, Call(layer, node.arguments.args, kwargs))
    return found


def is_custom(layer: keras.Layer) -> bool:
    """Whether the class of a layer, or one that it is derived from, is neither Keras' nor this package's."""
    return any(base.__module__.partition(".")[0] not in _OURS for base in type(layer).__mro__)


def takes_training(layer: keras.Layer) -> bool:
    """Whether a layer, or one inside it, may compute otherwise in training although it is frozen."""
    if type(layer) in STEADY or hasattr(layer, "_mp_slots"):  # Slots: a module that always runs in inference mode.
        return False
    return any("training" in inspect.signature(each.call).parameters for each in (layer, *layers_within(layer)))


def may_write(layer: keras.Layer) -> bool:
    """Whether a frozen layer may write to variables when it is called; cheap, and only `written` knows."""
    if hasattr(layer, "_mp_slots"):
        return False  # It holds a module whose variables it sets before each call.
    return is_custom(layer) or getattr(layer, "stateful", False) or bool(layer.weights and takes_training(layer))


def written(call: Call, training: bool, among: Iterable[keras.Variable] | None = None) -> list[str]:
    """Returns the names of the variables that a layer writes to when it is called; random states are left out.

    Args:
        call: one call of the layer.
        training: whether it is called in training mode.
        among: variables to look at; all by default.
    """
    probe = _Probe(call.layer, training)
    probe.compute_output_spec(*call.args, **call.kwargs)
    if among is None:
        return sorted({variable.path for variable in probe.written} | set(probe.written_otherwise))
    ids = {id(variable) for variable in among}
    return sorted({variable.path for variable in probe.written if id(variable) in ids})


def agree(call: Call, other: Callable) -> bool:
    """Whether a layer and another one give the same in inference, on random numbers."""
    arguments = _numbers(call)
    return _close(_run(call.layer, arguments), _run(other, arguments))


def mixes_images(call: Call) -> bool:
    """Whether what a layer or an operation gives for an image depends on the other images of a batch, or on their number."""
    layer = call.layer
    if isinstance(layer, keras.Layer):
        axes = keras.tree.flatten([getattr(layer, name, None) for name in ("axis", "axes")])
        ranks = {len(x.shape) for x in keras.tree.flatten((call.args, call.kwargs)) if _is_batch(x)}
        looks = any(isinstance(axis, int) and axis % rank == 0 for axis in axes for rank in ranks)
        if not (looks or is_custom(layer) or isinstance(layer, keras.layers.Lambda)) or hasattr(layer, "_mp_slots"):
            return False
    elif type(layer).__module__.startswith("keras.") and type(layer).__name__ in _ELEMENTWISE:
        return False
    if not any(map(_is_batch, keras.tree.flatten((call.args, call.kwargs)))):
        return False
    arguments = _numbers(call)
    try:
        together = _run(layer, arguments)
        alone = [
            _run(
                layer,
                keras.tree.map_structure(lambda x, y, i=i: x[i : i + 1] if _is_batch(y) else x, arguments, symbolic),
            )
            for symbolic in [(call.args, call.kwargs)]
            for i in range(_BATCH)
        ]
    except Exception:  # Numbers of another kind than it takes: nothing can be said.
        return False
    sizes = {len(x) if x.ndim else 0 for x in together}
    return sizes != {_BATCH} or not all(_close([x[i : i + 1] for x in together], each) for i, each in enumerate(alone))


_BATCH = 3


def _is_batch(x) -> bool:
    return isinstance(x, keras.KerasTensor) and len(x.shape) > 0 and x.shape[0] is None


def _numbers(call: Call) -> tuple[tuple, dict]:
    """Returns the arguments of a call with random numbers as tensors."""
    rng = np.random.default_rng(0)

    def numbers(x):
        if not isinstance(x, keras.KerasTensor):
            return x
        shape = [_BATCH if i == 0 and size is None else size or 8 for i, size in enumerate(x.shape)]
        return keras.ops.cast(rng.uniform(-1, 1, shape) if "float" in x.dtype else rng.integers(0, 2, shape), x.dtype)

    return keras.tree.map_structure(numbers, (call.args, call.kwargs))


def _run(layer: Callable, arguments: tuple[tuple, dict]) -> list[np.ndarray]:
    """Returns all that a layer gives in inference."""
    args, kwargs = arguments
    options = {"training": False} if isinstance(layer, keras.Layer) else {}
    return [np.asarray(keras.ops.convert_to_numpy(x)) for x in keras.tree.flatten(layer(*args, **kwargs, **options))]


def _close(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
        for a, b in zip(one, other, strict=True)
    )


class _Writes(keras.StatelessScope):
    """Notes what is assigned in it; nothing is changed."""

    def __init__(self):
        super().__init__()
        self.variables: list[keras.Variable] = []

    def add_update(self, update):
        super().add_update(update)
        self.variables.append(update[0])


class _Probe(keras.Operation):
    """Calls a layer on symbolic tensors, and notes what it writes to."""

    def __init__(self, layer: keras.Layer, training: bool):
        super().__init__()
        self.layer, self.training = layer, training
        self.written: list[keras.Variable] = []
        self.written_otherwise: list[str] = []

    def call(self, *args, **kwargs):
        with _Writes() as scope:
            outputs = self.layer(*args, **kwargs, training=self.training)
        self.written = [variable for variable in scope.variables if variable.name != _SEED]
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf  # Variables that are not Keras' are written to by operations of the graph.

            operations = tf.compat.v1.get_default_graph().get_operations()
            self.written_otherwise = [op.inputs[0].name for op in operations if op.type.startswith("Assign")]
        return outputs
