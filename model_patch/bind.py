"""Bind: a trunk, a task and what to train make a plain Keras model."""

import dataclasses
import importlib.metadata

import keras
import numpy as np

from model_patch.errors import ModelPatchError, PatchError, require_number, require_seed
from model_patch.graph.calls import agree, calls, is_custom, takes_training, written
from model_patch.graph.fused_norm import FusedNormModel
from model_patch.graph.rewrite import Names, rewrite, walk
from model_patch.graph.settings import dtype_policy
from model_patch.kinds import TrainSpec, owned
from model_patch.layers import Patched, patch_layer, variables
from model_patch.layers.wrapped import Frozen
from model_patch.patch import Patch
from model_patch.tasks import HEAD, Task
from model_patch.trunk import Trunk


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many parameters a bound task trains, keeps and shares.

    Attributes:
        patch: trained values in the trunk's slots.
        head: values of the last layer, trained or not.
        statistics: values that the patch keeps but no gradient moves: means and variances.
        shared: the trunk's values that the task uses and leaves unchanged.
        trained: all values that gradients move: `patch`, and `head` where it is trained.
    """

    patch: int
    head: int
    statistics: int
    shared: int
    trained: int

    @property
    def trained_fraction(self) -> float:
        """The trained part of all the task's values, in 0..1."""
        return self.trained / (self.patch + self.head + self.statistics + self.shared)


@dataclasses.dataclass(frozen=True)
class BoundTask:
    """One task on one trunk, ready to train, evaluate and save.

    Attributes:
        model: plain Keras model, preprocessed images `(batch, height, width, 3)` to float32 logits `(batch, classes)`, or
            what else the task's head gives. Compile and fit it as any other; only the patch, and the head where it is
            trained, will change.
        features: the same without the head: to features `(batch, channels)`, or what else the task takes of the trunk.
        head: the last layer, features to logits.
        trunk, task, train_spec: what was bound.
        patch_variables: the variables that fill the trunk's slots, by the key of the variable they replace.
        head_variables: those of the last layer, by `head.<variable name>`; in between come the names of layers inside it.
    """

    model: keras.Model
    features: keras.Model
    head: keras.Layer
    trunk: Trunk
    task: Task
    train_spec: TrainSpec
    patch_variables: dict[str, keras.Variable]
    head_variables: dict[str, keras.Variable]

    def counts(self) -> Counts:
        """Returns the numbers of values."""
        trained = {id(v) for v in self.model.trainable_variables}
        patch = sum(_size(v) for v in self.patch_variables.values() if id(v) in trained)
        head = sum(_size(v) for v in self.head_variables.values())
        kept = sum(_size(v) for v in self.patch_variables.values()) - patch
        trunk = self.trunk.variables()
        shared = sum(_size(trunk[key]) for key in self._frozen_keys())
        return Counts(patch, head, kept, shared, sum(_size(v) for v in self.model.trainable_variables))

    def reused_fraction(self) -> float:
        """Returns the fraction of the trunk's weights that the task uses unchanged, in 0..1.

        With frozen statistics these are among them, though the patch holds a copy.
        """
        moving = self.train_spec.norm_statistics == "batch"
        changed = {key for key, variable in self.patch_variables.items() if moving or variable.trainable}
        replaced = sum(_size(variable) for key, variable in self.trunk.variables().items() if key in changed)
        return 1.0 - replaced / self.trunk.num_parameters()

    def patch(self, metrics: dict[str, float] | None = None) -> Patch:
        """Returns the present values as a patch.

        Args:
            metrics: what was measured with them, by name.
        """
        owned = self.patch_variables | self.head_variables
        return Patch(
            {key: np.array(keras.ops.convert_to_numpy(v), dtype="float32") for key, v in owned.items()},
            self.task,
            self.train_spec,
            self.trunk.name,
            self._fingerprint(),
            metrics or {},
            {name: importlib.metadata.version(name) for name in ("keras", "numpy")}
            | {"backend": keras.backend.backend()},
        )

    def load(self, patch: Patch):
        """Takes over a patch's values, all or none.

        Raises:
            PatchError: the patch was made for another trunk, or its keys or shapes are not those of this task.
        """
        owned = self.patch_variables | self.head_variables
        if patch.train_spec.version == 1 and "full" in patch.train_spec.kinds:
            named = {old: key for key, old in self.trunk.counted_keys().items()}
            values = {named.get(key, key): value for key, value in patch.values.items()}
            patch = dataclasses.replace(patch, values=values)
        shapes = {key: tuple(variable.shape) for key, variable in owned.items()}
        patch.require_fit(self.trunk.name, self.train_spec, shapes, self._fingerprint())
        for key, variable in owned.items():
            variable.assign(patch.values[key])

    def in_float32(self) -> "BoundTask":
        """Returns this task computing in float32, on `Trunk.in_float32`; itself where no layer computes in half precision."""
        if not {"float16", "bfloat16"} & {layer.compute_dtype for _, layer in walk(self.model)}:
            return self
        with dtype_policy("float32"):
            bound = bind(self.trunk.in_float32, self.task, self.train_spec)
        bound.load(self.patch())
        return bound

    def _fingerprint(self) -> str:
        return self.trunk.fingerprint(self._frozen_keys(), self.train_spec.version)

    def _frozen_keys(self) -> set[str]:
        return self.trunk.variables().keys() - self.patch_variables.keys()


def bind(
    trunk: Trunk,
    task: Task,
    train: str | TrainSpec = "scale_bias+last",
    *,
    seed: int = 0,
    momentum: float = 0.9,
    patch_of: BoundTask | None = None,
    head_of: BoundTask | None = None,
    remat: bool = False,
) -> BoundTask:
    """Binds a task to a trunk.

    Layers of which the task owns variables are replaced by patchable ones that start at the trunk's values; all other
    layers, and the variables that the task does not own, are the trunk's own objects. Before training, the features are
    therefore those of the trunk.

    Args:
        trunk: stays frozen and unchanged, and can be bound to any number of tasks.
        task: gets a new last layer with random values. Its preprocessing applies, not the trunk's, of which it needs to share
            the image size only.
        train: what is trained, see `TrainSpec.parse`.
        seed: seed of the last layer's initial values.
        momentum: weight of the old average in the patch's moving statistics, in [0, 1). The nets of keras.applications
            have 0.99 to 0.999, with which a short training ends before its statistics have arrived.
        patch_of: a task bound to the same trunk, in the same way, whose patch this task uses too: one patch for both.
        head_of: a task whose last layer this task uses too. It is trained from now on where `train` says so.
        remat: train with less memory: most maps are computed again when their gradients are due, see `model_patch.graph.remat`.

    Returns:
        A `BoundTask`.

    Raises:
        ModelPatchError: `train` is not understood, `remat` is given on another backend than TensorFlow, a number is out of
            range, the trunk has no slot for one of its kinds, takes images of another size, or is being trained itself, or
            the tasks that share a head differ in their labels.
    """
    require_seed(seed)
    require_number("momentum", momentum, 0, 1)
    train_spec = TrainSpec.parse(train) if isinstance(train, str) else train
    _check(trunk, task, train_spec, head_of.task if head_of else None, remat)
    task = trunk.pooled(task)

    layers_of = dict(walk(patch_of.features)) if patch_of else {}
    own_layers: dict[str, keras.Layer] = {}

    def replace(path: str, layer: keras.Layer) -> keras.Layer:
        own = train_spec.owns(layer)
        if not own:
            # Dropout stays on where a patch is trained. Around a frozen trunk it would only blur the features.
            freeze = path in trunk.writing if train_spec.kinds else takes_training(layer)
            return Frozen(layer) if freeze else layer
        is_batch_norm = isinstance(layer, keras.layers.BatchNormalization)
        options = {"statistics": train_spec.norm_statistics, "momentum": momentum} if is_batch_norm else {}
        own_layers[path] = layers_of.get(path) or patch_layer(layer, own, **options)
        return own_layers[path]

    features = task.features(rewrite(trunk.model, replace))
    head = head_of.head if head_of else task.head(seed)
    if not head_of:
        head.name = Names(features).new(HEAD)
    is_frozen = train_spec.norm_statistics == "frozen"
    has_frozen_kernels = bool(train_spec.kinds) and "full" not in train_spec.kinds
    make = FusedNormModel if remat or is_frozen or has_frozen_kernels else keras.Model
    model = make(features.input, head(features.output), name=features.name)
    if remat:
        model.remat = True
    head.trainable = train_spec.last

    trunk_layers = trunk.layers()
    patch_variables = {
        key: variable
        for path, layer in own_layers.items()
        for key, variable in _by_key(path, layer, trunk_layers[path]).items()
        if key.removeprefix(f"{path}/") in train_spec.owns(trunk_layers[path])
    }
    # Dots in place of slashes, also where the head has layers inside: no layer of a trunk can have such a key.
    head_variables = {key.replace("/", "."): variable for key, variable in variables(HEAD, head).items()}

    bound = BoundTask(model, features, head, trunk, task, train_spec, patch_variables, head_variables)
    _check_custom(trunk, own_layers)
    _check_covered(bound)
    return bound


def check_bind(trunk: Trunk, task: Task, train_spec: TrainSpec, *, head_task: Task | None = None, remat: bool = False):
    """Checks cheaply, without building a model, that `bind` takes its arguments and that the patch can be saved.

    Arguments as for `bind`; `head_task` is the task of `head_of`.

    Raises:
        ModelPatchError: as `bind`, or a variable of the trunk that the patch would hold is NaN or infinite.
    """
    _check(trunk, task, train_spec, head_task, remat)
    for path, layer in trunk.layers().items():
        own = train_spec.owns(layer)
        for key, variable in variables(path, layer).items():
            if key.removeprefix(f"{path}/") in own and not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise ModelPatchError(f"the trunk {trunk.name} holds NaN or infinity in {key}: open another trunk")


def _check(trunk: Trunk, task: Task, train_spec: TrainSpec, head_task: Task | None, remat: bool):
    if remat and keras.backend.backend() != "tensorflow":
        raise ModelPatchError(f"remat works on TensorFlow, not on {keras.backend.backend()}: leave it out")
    trunk.pooled(task)
    for kind in train_spec.kinds:
        if not any(owned(kind, layer, train_spec.version) for layer in trunk.layers().values()):
            raise ModelPatchError(
                f"the trunk {trunk.name} has no slot for {kind}: choose another kind, or another trunk"
            )
    taken, given = trunk.preprocessing.image_size, task.preprocessing.image_size
    if given != taken:
        raise ModelPatchError(
            f"the task {task.name!r} takes images of {given} px and the trunk {trunk.name} {taken} px: open the trunk at {given} px"
        )
    if trunk.model.trainable_variables:
        raise ModelPatchError(f"the trunk {trunk.name} is in joint training: freeze() the joined tasks before you bind")
    if head_task and (head_task.type, head_task.labels) != (task.type, task.labels):
        raise ModelPatchError(f"the tasks {head_task.name!r} and {task.name!r} have other labels: give each its head")


def bind_patch(trunk: Trunk, patch: Patch) -> BoundTask:
    """Binds the task of a patch to its trunk, with the patch's values.

    Raises:
        PatchError: the patch was made for another trunk.
    """
    try:
        bound = bind(trunk, patch.task, patch.train_spec)
    except PatchError:
        raise
    except ModelPatchError as error:
        raise PatchError(f"the patch {patch.task.name!r} was made on {patch.trunk}: {error}") from None
    bound.load(patch)
    return bound


def _check_custom(trunk: Trunk, own_layers: dict[str, keras.Layer]):
    """A copy of a layer whose class the user wrote computes what the layer does, and writes to its own variables alone."""
    custom = {path: layer for path, layer in own_layers.items() if is_custom(layer)}
    called = calls(trunk.model) if custom else {}
    for path, layer in custom.items():
        what = f"the layer {path!r} ({type(called[path].layer).__name__})"
        if not agree(called[path], layer):
            raise ModelPatchError(
                f"a copy of {what} by its get_config computes something else: return all arguments of the constructor there"
            )
        copied = dataclasses.replace(called[path], layer=layer)
        lost = written(copied, training=True, among=called[path].layer.weights)
        if lost:
            raise ModelPatchError(
                f"{what} writes to {', '.join(lost)} in training, which the task does not own: train with kind full"
            )


def _check_covered(bound: BoundTask):
    """Every variable of a bound model is the trunk's, the patch's or the head's: nothing is lost or trained unseen."""
    owners = [bound.trunk.variables(), bound.patch_variables, bound.head_variables]
    covered = {id(variable) for owner in owners for variable in owner.values()}
    rest = [v.path for _, layer in walk(bound.model) for v in layer.weights if id(v) not in covered]
    if rest:
        raise ModelPatchError(f"no trunk, patch or head owns {', '.join(rest)} of the task {bound.task.name!r}")


def _by_key(path: str, layer: keras.Layer, original: keras.Layer) -> dict[str, keras.Variable]:
    """Returns the variables of a layer that replaces the trunk's, by the keys of that.

    Keras counts the names of layers inside a layer, so that those of a copy differ. Its variables have the same order.
    """
    if isinstance(layer, Patched):
        return variables(path, layer)
    return dict(zip(variables(path, original), layer.weights, strict=True))


def _size(variable: keras.Variable) -> int:
    return int(np.prod(variable.shape))
