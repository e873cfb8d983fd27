"""The only module that uses names that Keras does not document: what they are for, and what breaks if Keras renames one."""

import collections
import contextlib
import random
from collections.abc import Iterator

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.legacy.saving import saving_utils
from keras.src.models.functional import Functional

OF_KERAS = {"_layers", "_metrics", "_losses", "_tracker", "_functional", "_inbound_nodes", "_outbound_nodes"}
"""Attributes of a layer through which Keras itself finds layers, besides those that the author of a net gave it."""

GRAPH = Functional
"""The class of what `keras.Model(inputs, outputs)` makes. Public `keras.Function` is also that of subclasses."""


def nodes(model: keras.Model) -> list:
    """Returns the nodes of the outermost graph of a model in the order of computation, its inputs among them.

    A node is one use of a layer or of a bare operation. Public `model.operations` has the operations, not their uses.
    """
    by_depth = sorted(model._nodes_by_depth.items(), reverse=True)
    return [node for _, same_depth in by_depth for node in same_depth]


def maker(tensor: keras.KerasTensor) -> keras.Operation:
    """Returns the operation that gave a symbolic tensor."""
    return tensor._keras_history.operation


def layers_within(layer: keras.Layer) -> list[keras.Layer]:
    """Returns all layers inside a layer or model, at any depth. Public `model.layers` has the outermost alone."""
    return list(layer._flatten_layers(include_self=False))


def takes_training(layer: keras.Layer) -> bool:
    """Whether the layer's `call` has the argument `training`."""
    return layer._call_has_training_arg


@contextlib.contextmanager
def outside_calls() -> Iterator[None]:
    """Makes layers forget, while the context lasts, that they are called within the call of a model, and its `training`."""
    context = global_state.get_global_attribute("current_call_ctx")
    global_state.set_global_attribute("current_call_ctx", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("current_call_ctx", context)


def model_of_old_config(config: dict) -> keras.Model:
    """Makes a model of a configuration in the format of HDF5 files. Public functions read it out of a whole file only."""
    return saving_utils.model_from_config(config)


@contextlib.contextmanager
def names_counted_from_zero() -> Iterator[None]:
    """Names layers as in a new process while the context lasts: Keras counts names on from net to net."""
    names = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", names)


def set_random_seed(seed: int):
    """Seeds Python, NumPy and Keras as `keras.utils.set_random_seed` does, but not TensorFlow's own generator.

    Seeding that one discards every function that TensorFlow has optimised. Only operations without a seed use it, such as
    `tf.random.normal`, of which neither Keras' layers nor this package have any.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - that of Keras and of layers is the legacy one.
    global_state.set_global_attribute("global_random_seed", seed)
    global_state.set_global_attribute("global_seed_generator", None)


def free_last_axis(variable: keras.Variable):
    """Lets `resize` change the length of a variable's last axis, also for functions that are traced from now on; TensorFlow only."""
    import tensorflow as tf

    shape = (*variable.shape[:-1], None)
    variable._value = tf.Variable(variable.value, trainable=variable.trainable, name=variable.name, shape=shape)


def has_free_axis(variable: keras.Variable) -> bool:
    """Whether `free_last_axis` was called for a variable."""
    return None in variable.value.shape


def resize(variable: keras.Variable, value):
    """Assigns a value of another length to a variable with a free last axis."""
    variable._shape = tuple(value.shape)
    variable.assign(value)
