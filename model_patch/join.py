"""Join: one model of K tasks, whose images run through the shared layers as one batch."""

import dataclasses
import math
import re
from collections.abc import Sequence

import keras

from model_patch.bind import BoundTask, bind, check_bind
from model_patch.errors import ModelPatchError, mismatches, unknown
from model_patch.graph.fused_norm import FusedNormModel
from model_patch.graph.rewrite import Names, functional, rewrite, walk
from model_patch.kinds import SHARE, TrainSpec
from model_patch.layers.joined import Merge, MergeParts, Part, SeparateLayers, Split, join_layers
from model_patch.layers.wrapped import Frozen
from model_patch.tasks import Task, require_one_output_per_label
from model_patch.trunk import Trunk

_OUTPUT_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.-]*")  # Keras opens scopes of TensorFlow by these names.


def _save(self: keras.Model, filepath, *args, **kwargs):
    """Saves as Keras does; raises a `ModelPatchError` for HDF5, which holds each name once: the tasks' layers share theirs."""
    if str(filepath).endswith((".h5", ".hdf5")):
        raise ModelPatchError(
            f"{filepath} cannot hold a joined model, whose tasks have variables of the same names: give a file ending in .keras"
        )
    keras.Model.save(self, filepath, *args, **kwargs)


@keras.saving.register_keras_serializable(package="model_patch")
class JoinedModel(keras.Model):
    """A functional model of joined tasks."""

    save = _save


@keras.saving.register_keras_serializable(package="model_patch", name="FrozenNormJoinedModel")  # As in files of 0.1.
class FusedNormJoinedModel(FusedNormModel):
    """A functional model of joined tasks with frozen statistics."""

    save = _save


@dataclasses.dataclass(frozen=True)
class JoinedTasks:
    """K tasks on one trunk, to be trained together.

    Attributes:
        model: plain Keras model, a dict of image batches by task name to a dict of logits by task name. The batches may
            differ in size and, where the tasks do, in image size.
        groups: the parts of `model`, one per image size, with the tasks of that size as inputs and outputs.
        tasks: by name, each on the variables of `model`: what that learns, a task can be evaluated with, saved and
            exported at once.
        trunks: the trunk at each image size, by size; their variables are the same.
        share: one of `model_patch.kinds.SHARE`.
        train_trunk: whether the trunk is trained, too.
    """

    model: keras.Model
    groups: tuple[keras.Model, ...]
    tasks: dict[str, BoundTask]
    trunks: dict[int, Trunk]
    share: str
    train_trunk: bool

    @property
    def trunk(self) -> Trunk:
        """The trunk, at the first of its image sizes."""
        return next(iter(self.trunks.values()))

    def losses(self) -> dict[str, keras.losses.Loss]:
        """Returns each task's loss, for `model.compile`."""
        return {name: bound.task.loss() for name, bound in self.tasks.items()}

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Returns each task's metrics, for `model.compile`."""
        return {name: bound.task.metrics() for name, bound in self.tasks.items()}

    def num_parameters(self) -> int:
        """Returns the number of values in all the tasks together, each counted once, statistics included."""
        return self.model.count_params()

    def freeze(self):
        """Ends the training of the trunk: from now on its values stay, and further tasks can be bound to it."""
        for trunk in self.trunks.values():
            trunk.model.trainable = False


def join(
    trunk: Trunk | Sequence[Trunk],
    tasks: Sequence[Task],
    train: str | TrainSpec = "scale_bias+last",
    *,
    share: str = "trunk",
    share_head: bool = False,
    head_of: BoundTask | None = None,
    train_trunk: bool = False,
    seed: int = 0,
    momentum: float = 0.9,
) -> JoinedTasks:
    """Joins K tasks in one model, with one pass through the layers that they share.

    The K image batches are concatenated and run as one batch, which is split at patch layers and heads only. Tasks
    whose image sizes differ have a pass per size, through the same layers.

    Args:
        trunk: the net that the tasks share; for several image sizes the net at each of them, as `open_trunk` opens it.
            They all get the variables of the first.
        tasks: at least one, with different names.
        train: what of a task is trained, see `TrainSpec.parse`. Given as text, the statistics of batch norm are the tasks'
            own (`batch`) where the trunk is trained, and else as `TrainSpec` chooses.
        share: one of `SHARE`; `nothing` means full nets, whatever `train` says.
        share_head: one last layer for all tasks, which then need the same labels.
        head_of: a bound task whose last layer they all use; with `train` without `last` it is frozen. So an image
            size is added to tasks that were trained before.
        train_trunk: train the trunk's weights too, from the gradients of all tasks. Batch norms that belong to no
            patch then keep statistics of the merged batches. Otherwise the trunk is unchanged, to the last bit.
        seed: seed of the last layers' initial values.
        momentum: as for `bind`; also of the trunk's own batch norms where it is trained.

    Returns:
        A `JoinedTasks`. Where the trunk is trained, call its `freeze` when training is over.

    Raises:
        ModelPatchError: no task, a name that is repeated or that Keras cannot use, a type of task that has not one output for each label, an
            image size without a trunk, trunks that are not one net, or what `bind` refuses.
    """
    train_spec, train_trunk = _resolved(train, share, train_trunk)
    trunks = _trunks_by_size([trunk] if isinstance(trunk, Trunk) else trunk)
    _check(tasks, trunks)

    bounds: list[BoundTask] = []
    for task in tasks:
        first = bounds[0] if bounds else None
        bounds.append(
            bind(
                trunks[task.preprocessing.image_size],
                task,
                train_spec,
                seed=seed,
                momentum=momentum,
                patch_of=first if share == "trunk+patch" else None,
                head_of=head_of or (first if share_head else None),
            )
        )
    if train_trunk:
        _unfreeze(trunks, momentum)
    by_size: dict[int, list[BoundTask]] = {}
    for bound in bounds:
        by_size.setdefault(bound.task.preprocessing.image_size, []).append(bound)
    make = FusedNormJoinedModel if train_spec.norm_statistics == "frozen" else JoinedModel
    names = [task.name for task in tasks]
    groups = tuple(_group(make, trunks[size], group, train_trunk, names) for size, group in by_size.items())
    by_name = {bound.task.name: bound for bound in bounds}
    return JoinedTasks(_joined_model(groups), groups, by_name, trunks, share, train_trunk)


def check_join(
    trunks: Sequence[Trunk],
    tasks: Sequence[Task],
    train: str | TrainSpec,
    *,
    share: str = "trunk",
    share_head: bool = False,
    head_of: BoundTask | None = None,
    train_trunk: bool = False,
):
    """Checks cheaply, without building a model, that `join` takes its arguments and that the patches can be saved.

    Arguments and errors as for `join`.
    """
    train_spec, _ = _resolved(train, share, train_trunk)
    for other in trunks[1:]:
        _require_same_net(trunks[0], other)
    by_size = {each.preprocessing.image_size: each for each in trunks}
    _check(tasks, by_size)
    head_task = head_of.task if head_of else tasks[0] if share_head else None
    for task in tasks:
        check_bind(by_size[task.preprocessing.image_size], task, train_spec, head_task=head_task)


def _resolved(train: str | TrainSpec, share: str, train_trunk: bool) -> tuple[TrainSpec, bool]:
    """Returns what is trained of each task, and whether the trunk is, too."""
    if share not in SHARE:
        raise unknown("share", share, SHARE)
    train_trunk = train_trunk and share != "nothing"
    if share == "nothing" and str(train) != "full":
        train = "full"
    return TrainSpec.parse(train, "batch" if train_trunk else "auto") if isinstance(train, str) else train, train_trunk


def share_variables(trunk: Trunk, other: Trunk) -> Trunk:
    """Returns the graph of `other` over the layers of `trunk`: the same net at another image size.

    Layers without variables stay those of `other`: some nets pad otherwise at other sizes.

    Raises:
        ModelPatchError: the two are not the same net: their variables have other keys or shapes.
    """
    _require_same_net(trunk, other)
    layers = trunk.layers()
    graph = rewrite(other.model, lambda path, layer: layers[path] if layer.weights else layer)
    return Trunk(graph, trunk.name, other.preprocessing, other.prefix_tokens)


def _require_same_net(trunk: Trunk, other: Trunk):
    shapes, others = ({key: tuple(v.shape) for key, v in each.variables().items()} for each in (trunk, other))
    mismatched = mismatches(shapes, others)
    if mismatched:
        raise ModelPatchError(f"{other.name} is another net than {trunk.name}, not one at another size: {mismatched}")


def _trunks_by_size(trunks: Sequence[Trunk]) -> dict[int, Trunk]:
    first, *others = trunks
    return {
        each.preprocessing.image_size: each for each in (first, *(share_variables(first, other) for other in others))
    }


def _check(tasks: Sequence[Task], trunks: dict[int, Trunk]):
    for trunk in trunks.values():
        trunk.require_graph("a join")
    if not tasks:
        raise ModelPatchError("there is no task to join: give at least one")
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise ModelPatchError(f"two tasks are named {task.name!r}: give each its own name")
        if not _OUTPUT_NAME.fullmatch(task.name):
            raise ModelPatchError(
                f"the task name {task.name!r} cannot name an output of a Keras model: use letters, digits, '-', '_' and '.'"
            )
        require_one_output_per_label(task, "joint training")
        size = task.preprocessing.image_size
        if size not in trunks:
            held = ", ".join(map(str, trunks))
            raise ModelPatchError(
                f"the task {task.name!r} has images of {size} px: give the trunk at this size, not only {held}"
            )
        pooling, first = (trunks[size].pooled(each).pooling for each in (task, tasks[0]))
        if pooling != first:
            raise ModelPatchError(
                f"the tasks {tasks[0].name!r} and {task.name!r} pool tokens by {first} and {pooling}: expected one for all"
            )


def _unfreeze(trunks: dict[int, Trunk], momentum: float):
    for trunk in trunks.values():
        trunk.model.trainable = True
        for layer in trunk.layers().values():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = momentum


def _joined_model(groups: Sequence[keras.Model]) -> keras.Model:
    """Returns one model of all groups; each stays a model inside it, as the names of their layers are the same."""
    if len(groups) == 1:
        return groups[0]
    images = {name: keras.Input(x.shape[1:], name=name) for group in groups for name, x in group.input.items()}
    logits: dict[str, keras.KerasTensor] = {}
    for group in groups:
        logits |= group({name: images[name] for name in group.input})
    return JoinedModel(images, logits, name=Names(taken=images).new("joined"))


def _group(
    make: type[keras.Model], trunk: Trunk, tasks: Sequence[BoundTask], train_trunk: bool, taken: Sequence[str]
) -> keras.Model:
    """Returns the joined model of tasks that have the image size of this trunk; `taken` are the names of all tasks."""
    images = {bound.task.name: keras.Input(bound.model.input.shape[1:], name=bound.task.name) for bound in tasks}
    names = Names(taken=taken)
    batches = list(images.values())
    merged, task = Merge(name=names.new("merge_tasks"))(batches)
    shared = _joined_features(trunk, tasks, [task, *batches], train_trunk, names.new("shared_trunk"))
    features = shared([merged, task, *batches])
    logits: dict[str, keras.KerasTensor] = {}
    for k, part in enumerate(Split(name=names.new("split_tasks"))(features, batches)):
        # Each head in a model of its own: as Keras layers, all of them have one name.
        inputs = keras.Input(part.shape[1:])
        logits[tasks[k].task.name] = keras.Model(inputs, tasks[k].head(inputs), name=names.new(f"head_{k}"))(part)
    return make(images, logits, name=names.new(f"joined_{trunk.preprocessing.image_size}px"))


def _joined_features(
    trunk: Trunk, tasks: Sequence[BoundTask], merge: list, train_trunk: bool, name: str
) -> keras.Model:
    """Returns the model from the merged batch, followed by `merge`, to the merged features."""
    layers = [dict(walk(bound.features)) for bound in tasks]

    def replace(path: str, layer: keras.Layer) -> keras.Layer:
        own = [each[path] for each in layers]
        if not layer.weights or isinstance(own[0], Frozen):
            # A trunk that is trained needs its dropout, and the states that its layers keep.
            return layer if train_trunk else own[0]
        if all(each is own[0] for each in own):
            return own[0]
        trunk.require_whole_images(path, "joined")
        return join_layers(own, layer.name)

    few = len(tasks) <= MOST_SEPARATE and _is_large(trunk.model.input.shape) and not _ends_large(trunk.model)
    call = _SeparateWhileLarge(len(tasks), Names(trunk.model)) if few else None
    model = rewrite(trunk.model, replace, call, extra=merge)
    features = tasks[0].task.features(model)
    return keras.Model(features.input, features.output, name=name)


SEPARATE_SIZE = 12
"""Maps of more pixels than this squared are computed task by task; measured, see docs/multitask.md."""

MOST_SEPARATE = 8
"""With more tasks than this, all are merged from the start: otherwise the graph would grow with each of them."""


class _TaskTensors(tuple):
    """The K tensors of a batch that is not merged, `(batch of the task, ...)` each; no structure to Keras, but one thing."""

    __slots__ = ()


class _SeparateWhileLarge:
    """How the layers of a joined graph are called: task by task while maps are large, merged from then on.

    A large map keeps a processor busy by itself, and merging would only copy it; the small ones after it are what is
    computed faster together.
    """

    def __init__(self, num_tasks: int, names: Names):
        self._num_tasks = num_tasks
        self._names = names
        self._parts: dict[int, _TaskTensors] = {}

    def __call__(self, layer: keras.Operation, *args, extra, **kwargs):
        joined = getattr(layer, "_mp_takes_extra", False)
        tensors = args[:-1] if joined else args
        if not self._stays_separate(layer, (tensors, kwargs)):
            args, kwargs = keras.tree.map_structure(self._merged, (args, kwargs))
            return layer(*args, **kwargs)
        parts = [
            keras.tree.map_structure(lambda x, k=k: self._part(x, extra)[k], (tensors, kwargs))
            for k in range(self._num_tasks)
        ]
        if joined:
            outputs = SeparateLayers(layer.layers, name=layer.name)([tensors for tensors, _ in parts], **kwargs)
        else:
            outputs = [layer(*tensors, **options) for tensors, options in parts]

        def together(*one):
            if one[0].shape[:1] != (None,):
                return one[
                    0
                ]  # It has no batch, such as positions that are computed of the image size: all are the same.
            return _TaskTensors(one) if _is_large(one[0].shape) else self._merged(_TaskTensors(one))

        # An operation may give several tensors, and some of them may be small.
        return keras.tree.map_structure(together, *outputs)

    def _stays_separate(self, layer: keras.Operation, tensors) -> bool:
        shared_statistics = isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        if isinstance(layer, keras.Model) or shared_statistics:
            return False
        firsts = [x[0] if isinstance(x, _TaskTensors) else x for x in keras.tree.flatten(tensors)]
        return all(_is_large(x.shape) for x in firsts if isinstance(x, keras.KerasTensor))

    def _part(self, x, extra) -> _TaskTensors:
        if isinstance(x, _TaskTensors):
            return x
        if not isinstance(x, keras.KerasTensor):
            return _TaskTensors([x] * self._num_tasks)  # A number that a bare operation takes, as in `x * 0.5`.
        if id(x) not in self._parts:
            self._parts[id(x)] = _TaskTensors(Part(name=self._names.new("part"))(x, extra))
        return self._parts[id(x)]

    def _merged(self, x):
        return MergeParts(name=self._names.new("merge_parts"))(list(x)) if isinstance(x, _TaskTensors) else x


def _is_large(shape: Sequence[int | None]) -> bool:
    return len(shape) == 4 and math.prod(size or 0 for size in shape[1:3]) > SEPARATE_SIZE**2


def _ends_large(model: keras.Model) -> bool:
    """Whether the output of a graph, or of one nested in it, is a large map, which then has to be merged anyway."""
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return any(_is_large(x.shape) for x in model.outputs) or any(_ends_large(functional(each)) for each in nested)
