"""One net for several tasks: their trunk once, and a vector of values for each task, which fills the net's slots."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from model_patch.bind import BoundTask, bind
from model_patch.errors import ModelPatchError
from model_patch.fold import fold_graph, value_in
from model_patch.graph.rewrite import rewrite, walk
from model_patch.kinds import KINDS, TrainSpec
from model_patch.layers import variables
from model_patch.layers.slotted import Slotted, VectorSlot
from model_patch.tasks import HEAD, require_one_output_per_label

NO_CLASS = -np.inf
"""Bias of the outputs that a task has no class for: they get the probability 0."""


@dataclasses.dataclass(frozen=True)
class VectorNet:
    """Several tasks as one net and a vector each.

    Attributes:
        model: Keras model of two inputs, preprocessed images `(batch, height, width, 3)` and a task's vector `(values,)`,
            to float32 logits `(batch, classes)`; as wide as the largest head. Where a task has fewer classes, the further
            logits are minus infinity.
        constants: the variables that are the same for all tasks.
        slots: what is where in a vector.
        vectors: float32 `(values,)` by task name.
    """

    model: keras.Model
    constants: tuple[keras.Variable, ...]
    slots: tuple[VectorSlot, ...]
    vectors: dict[str, np.ndarray]

    @property
    def num_classes(self) -> int:
        """The number of outputs, as many as the largest head has."""
        return self.model.output.shape[-1]

    @property
    def num_values(self) -> int:
        """The length of a vector."""
        return sum(slot.size for slot in self.slots)


def vector_net(bounds: Sequence[BoundTask]) -> VectorNet:
    """Makes one net of several tasks on one trunk.

    What any of the tasks owns becomes a slot for all; where a task owns it not, its vector holds the trunk's values. A batch
    norm that is a slot has two values per channel, scale and bias, all that is left of it in inference; those that no task
    owns are folded. Heads are slots, too, all as wide as the widest.

    Args:
        bounds: at least one task, on the same trunk object.

    Raises:
        ModelPatchError: a task has not one output for each label, owns a whole net, is on another trunk or at another image size than
            the first, or two have one name.
    """
    _check(bounds)
    # The tasks' kinds together: bound so, all have the same slots. Only inference is made of it, whatever the statistics.
    kinds = tuple(kind for kind in KINDS if any(kind in bound.train_spec.kinds for bound in bounds))
    union = TrainSpec(kinds, True, "batch")
    width = max(len(bound.task.labels) for bound in bounds)
    # One graph for all, the first task's; of the others it takes their values.
    wide = bind(bounds[0].trunk, bounds[0].task, union)
    head = wide.head.name
    graph = fold_graph(wide, unfolded={key.rpartition("/")[0] for key in wide.patch_variables})
    slots = _slots(wide, graph.model, width)
    keys = {id(v): key for path, layer in walk(graph.model) for key, v in variables(path, layer).items()}
    vectors = {}
    for bound in bounds:
        own = bound.patch_variables | {
            f"{head}/{key.removeprefix(f'{HEAD}.')}": variable for key, variable in bound.head_variables.items()
        }
        values = graph.values(value_in(wide.trunk.variables() | wide.patch_variables | own))
        known = {keys[id(v)]: value for v, value in zip(graph.variables, values, strict=True)}
        vectors[bound.task.name] = _vector(known, slots, f"{head}/bias")
    model, constants = _slotted(graph.model, slots, head, width)
    return VectorNet(model, constants, slots, vectors)


def _check(bounds: Sequence[BoundTask]):
    first = bounds[0]
    names = [bound.task.name for bound in bounds]
    for bound in bounds:
        name, task = bound.task.name, bound.task
        require_one_output_per_label(task, "one net for several tasks")
        bound.trunk.require_graph("one net for several tasks")
        if "full" in bound.train_spec.kinds:
            raise ModelPatchError(
                f"the task {name!r} is trained {bound.train_spec}: it shares nothing, so export it in a file of its own"
            )
        if names.count(name) > 1:
            raise ModelPatchError(f"two tasks are named {name!r}: give each its own name")
        if bound.trunk is not first.trunk:
            raise ModelPatchError(
                f"the tasks {first.task.name!r} ({first.task.preprocessing.image_size} px) and {name!r} "
                f"({task.preprocessing.image_size} px) are not on one trunk at one image size: export them apart"
            )
        if task.pooling != first.task.pooling:
            raise ModelPatchError(
                f"the tasks {first.task.name!r} and {name!r} pool tokens by {first.task.pooling} and {task.pooling}: export them "
                "apart"
            )


def _slots(wide: BoundTask, folded: keras.Model, width: int) -> tuple[VectorSlot, ...]:
    """Concatenates the variables of the slots, in the order of the graph, the head last."""
    owned: dict[str, set[str]] = {}
    for key in wide.patch_variables:
        path, _, name = key.rpartition("/")
        owned.setdefault(path, set()).add(name)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, layer in walk(folded):
        if path in owned:
            # Where a norm has gone into a kernel that a task owns, the bias may depend on the kernel.
            is_norm = isinstance(wide.trunk.layers()[path], keras.layers.BatchNormalization)
            names = {"scale", "bias"} if is_norm else owned[path] | {"bias"}
            for key, variable in variables(path, layer).items():
                if key.rpartition("/")[2] in names:
                    shapes[key] = tuple(variable.shape)
        elif path == wide.head.name:
            shapes |= {key: (*v.shape[:-1], width) for key, v in variables(path, layer).items()}
    slots, offset = [], 0
    for key, shape in shapes.items():
        slots.append(VectorSlot(key, offset, shape))
        offset += math.prod(shape)
    return tuple(slots)


def _slotted(folded: keras.Model, slots: Sequence[VectorSlot], head: str, width: int):
    """Returns the net with its slots open, and the variables that are not of a slot."""
    by_path: dict[str, list[VectorSlot]] = {}
    for slot in slots:
        by_path.setdefault(slot.key.rpartition("/")[0], []).append(slot)
    in_slots: set[int] = set()

    def replace(path: str, layer: keras.Layer) -> keras.Layer:
        if path not in by_path:
            return layer
        if path == head:
            channels = layer.kernel.shape[:1]
            layer = keras.layers.Dense(width, name=head, dtype="float32")
            layer.build(channels)
        named = variables(path, layer)
        pairs = [(named[slot.key], slot) for slot in by_path[path]]
        in_slots.update(id(variable) for variable, _ in pairs)
        return Slotted(layer, pairs, name=layer.name, dtype=layer.dtype_policy)

    vector = keras.KerasTensor((sum(slot.size for slot in slots),), "float32")
    model = rewrite(folded, replace, extra=[vector])
    return model, tuple(v for v in model.variables if id(v) not in in_slots)


def _vector(known: Mapping[str, np.ndarray], slots: Sequence[VectorSlot], head_bias: str) -> np.ndarray:
    parts = [_widened(slot, known[slot.key], NO_CLASS if slot.key == head_bias else 0.0) for slot in slots]
    return np.concatenate([part.reshape(-1) for part in parts]).astype("float32")


def _widened(slot: VectorSlot, values: np.ndarray, fill: float) -> np.ndarray:
    missing = slot.shape[-1] - values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)], constant_values=fill)
