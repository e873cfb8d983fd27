"""Binding many tasks to one trunk, one after the other, by models that have been built and traced already."""

import dataclasses
import json

import keras
import numpy as np

from model_patch.bind import BoundTask, bind
from model_patch.graph.calls import is_custom
from model_patch.graph.keras_private import free_last_axis, resize, set_random_seed
from model_patch.kinds import TrainSpec
from model_patch.tasks import CLASSIFICATION, Task
from model_patch.trunk import Trunk


class Binder:
    """Binds tasks to a trunk; tasks of one shape share one model, whose values are reset for each.

    The model has been traced then. Tasks have one shape if they differ in their names, labels and seeds alone. The numbers of
    classes of classification tasks may differ: the last axis of the shared head has any length. Nothing is padded, so every value is that
    of a model of the task's own, to the last bit.

    What `bind` returns is used up by the next call for a task of the same shape. Other backends than TensorFlow, strategies of
    tf.distribute, other types of task, and trunks with layers whose class the user wrote get a new model each time.

    Args:
        trunk: as for `bind`.
        remat: as for `bind`.
    """

    def __init__(self, trunk: Trunk, *, remat: bool = False):
        self.trunk, self._remat = trunk, remat
        self._first: dict[tuple, tuple[BoundTask, list[tuple[keras.Variable, np.ndarray]]]] = {}
        self._shares = _in_one_process() and not any(map(_may_draw, trunk.layers().values()))

    def bind(self, task: Task, train: TrainSpec, seed: int) -> BoundTask:
        """Returns the task with the values that training begins with, and seeds all random generators.

        Arguments and errors as for `bind`.
        """
        if not self._shares or task.link is None:
            keras.utils.set_random_seed(seed)
            return bind(self.trunk, task, train, seed=seed, remat=self._remat)
        set_random_seed(seed)
        any_width = task.type == CLASSIFICATION
        fields = {**task.to_json(), "name": "", "labels": 0 if any_width else len(task.labels)}
        shape = (json.dumps(fields), train)
        if shape not in self._first:
            bound = bind(self.trunk, task, train, seed=seed, remat=self._remat)
            for variable in bound.head_variables.values() if any_width else ():
                free_last_axis(variable)
            ids = {id(variable) for variable in (*self.trunk.variables().values(), *bound.head_variables.values())}
            start = [(v, np.array(keras.ops.convert_to_numpy(v))) for v in bound.model.variables if id(v) not in ids]
            self._first[shape] = (bound, start)
            return bound
        bound, start = self._first[shape]
        for variable, value in start:
            variable.assign(value)
        head = task.head(seed)
        head.build(bound.head.input.shape)
        for variable, value in zip(bound.head.weights, head.get_weights(), strict=True):
            resize(variable, value)
        bound.head.units = len(task.labels)
        return dataclasses.replace(bound, task=self.trunk.pooled(task))


def _may_draw(layer: keras.Layer) -> bool:
    """Whether a layer may draw random numbers from TensorFlow's own generator: its class is the user's."""
    return is_custom(layer) and not type(layer).__module__.startswith("keras_hub.")


def _in_one_process() -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.distribute.has_strategy()
