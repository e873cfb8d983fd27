"""Fold: a task's net without batch normalisation, its scales and biases inside the convolutions."""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError
from model_patch.graph.keras_private import layers_within
from model_patch.graph.rewrite import Graph, functional, rewrite, walk
from model_patch.layers import NORMS, Patched, PatchedRMSNormalization, plain_class, variables
from model_patch.layers.affine import Affine, ValueOf, scale_and_bias
from model_patch.layers.patched import own_name
from model_patch.layers.scaled import Scaled
from model_patch.layers.wrapped import Frozen

TOLERANCE = 1e-4
"""Largest difference of logits that counts as rounding, in parts of the largest logit where that is above 1."""

NUM_PROBES = 2

_LAYERS = keras.layers
_DEPTHWISE = (_LAYERS.DepthwiseConv1D, _LAYERS.DepthwiseConv2D)
_SEPARABLE = (_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D)
_TRANSPOSED = (_LAYERS.Conv1DTranspose, _LAYERS.Conv2DTranspose, _LAYERS.Conv3DTranspose)
_LINEAR = (
    _LAYERS.Dense,
    _LAYERS.Conv1D,
    _LAYERS.Conv2D,
    _LAYERS.Conv3D,
    *_DEPTHWISE,
    *_SEPARABLE,
    *_TRANSPOSED,
)
"""What a norm folds into. Only these classes themselves, and their patched forms: a subclass may compute otherwise."""


@dataclasses.dataclass(frozen=True)
class Folded:
    """A task's net without batch normalisation.

    Attributes:
        model: Keras model with inputs and outputs as the bound task's. Its layers are Keras' own and `Affine`; those that
            nothing was folded into are still the trunk's objects, all others hold copies.
        difference: largest absolute difference of outputs from the bound task's, on the probe images.
        left: by path, the norms that are not inside another layer, each with the reason.
        graph: how its values follow from a task's.
    """

    model: keras.Model
    difference: float
    left: dict[str, str]
    graph: "FoldedGraph"


def fold(bound: BoundTask, images: np.ndarray | None = None, tolerance: float = TOLERANCE) -> Folded:
    """Folds a task's batch norms into its convolutions.

    In inference a batch norm is a scale and a bias per channel. Where it goes:

    1. Into the layer before it, a convolution (depthwise, separable and transposed ones too) or a dense layer, if that has
       no activation of its own, is used once, and nothing else reads its output.
    2. Else into the layers after it, if they are all such layers, used once, that do not pad: what they padded would have to
       be shifted, too. Kernels of one pixel never pad.
    3. Else it becomes one `Affine` layer, as in nets that normalise before they activate (ResNetV2, half of DenseNet).

    Norms that depend on their input (layer and group normalisation, batch norms that are called with `training=True`), those
    inside other layers, and subclasses of Keras' batch norm, which may compute otherwise, are not folded. Nested models
    are folded each for itself. Scales and biases that a task has given to convolutions (`layers.scaled`) go into their
    kernels. All products are taken in float64 and stored in the layer's own dtype. A task of half precision is folded as in
    float32, see `BoundTask.in_float32`.

    Args:
        bound: unchanged, and so is its trunk.
        images: more images to compare on besides random ones, preprocessed, `(batch, height, width, 3)`.
        tolerance: how far outputs may differ, in parts of the largest output where that is above 1.

    Returns:
        A `Folded`.

    Raises:
        ModelPatchError: the trunk runs as a single layer, a norm holds NaN or infinite values, or the folded net's outputs
            differ by more than `tolerance`: then the layer is named that differs most.
    """
    bound = bound.in_float32()
    graph = fold_graph(bound)
    probes = _probes(bound, images)
    expected = keras.ops.convert_to_numpy(bound.model(probes, training=False))
    given = keras.ops.convert_to_numpy(graph.model(probes, training=False))
    difference = float(np.abs(given - expected).max())
    if not difference <= tolerance * max(1.0, float(np.abs(expected).max())):
        raise ModelPatchError(
            f"the task {bound.task.name!r} folded differs by {difference:.3g} in its outputs, more than {tolerance:g} of "
            f"them: {_culprit(graph.plan)}; export it as a saved_model, where nothing is folded"
        )
    return Folded(graph.model, difference, graph.plan.left, graph)


@dataclasses.dataclass(frozen=True)
class Fold:
    """One norm that goes into one layer.

    Attributes:
        path, norm: path and layer of the batch norm.
        layer: what it goes into.
        before: whether the norm comes before the layer.
        shape: input shape of the first of the two, the batch included.
    """

    path: str
    norm: keras.Layer
    layer: keras.Layer
    before: bool
    shape: tuple[int | None, ...]


@dataclasses.dataclass
class Plan:
    """What becomes of each norm.

    Attributes:
        into: by the path of the layer, the norms that go into it.
        gone: paths of norms that go into others.
        affine: paths of norms that become `Affine`.
        left: as in `Folded`.
    """

    into: dict[str, list[Fold]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    gone: set[str] = dataclasses.field(default_factory=set)
    affine: set[str] = dataclasses.field(default_factory=set)
    left: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FoldedGraph:
    """A folded net, and how its values follow from those of a task: many tasks can share one graph.

    Attributes:
        model: as in `Folded`.
        plan: what became of each norm.
        made: its layers that are not the trunk's, each with a function that computes the values of `layer.weights`.
    """

    model: keras.Model
    plan: Plan
    made: list[tuple[keras.Layer, Callable[[ValueOf], list[np.ndarray]]]]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of `made`, in order."""
        return [variable for layer, _ in self.made for variable in layer.weights]

    def values(self, value_of: ValueOf) -> list[np.ndarray]:
        """Returns the values of `variables` for a task.

        Raises:
            ModelPatchError: a norm of the task holds NaN or infinite values.
        """
        return [value for _, values in self.made for value in values(value_of)]


def fold_graph(bound: BoundTask, unfolded: Collection[str] = ()) -> FoldedGraph:
    """Returns a task's folded graph with its values, not yet compared.

    Args:
        bound: the task.
        unfolded: paths of layers whose scale and bias are not to be multiplied into kernels: batch norms become `Affine`,
            convolutions with a scale and bias stay.
    """
    bound.trunk.require_graph("a fold")
    plan = Plan()
    model = bound.model
    if any(isinstance(layer, Frozen) for _, layer in walk(model)):  # In inference, what they are around is enough.
        model = rewrite(model, lambda path, layer: layer.layer if isinstance(layer, Frozen) else layer)
    _plan(functional(model), "", unfolded, plan)
    trunk_layers = {id(layer) for layer in bound.trunk.layers().values()}
    dropped: set[int] = set()
    made = []

    def replace(path: str, layer: keras.Layer) -> keras.Layer:
        if path in plan.gone:
            nothing = keras.layers.Identity(name=layer.name)
            dropped.add(id(nothing))
            return nothing
        stays_scaled = path in unfolded and isinstance(layer, Scaled)
        if path in plan.into or (isinstance(layer, Patched) and plain_class(layer) in _LINEAR and not stays_scaled):
            made.append(_folded(path, layer, plan.into.get(path, ())))
        elif path in plan.affine:
            made.append(_affine(path, layer))
        elif id(layer) in trunk_layers or not layer.weights:
            return layer
        else:
            # Keras' own RMS norm has no bias.
            stays = stays_scaled or isinstance(layer, PatchedRMSNormalization)
            made.append(_copied(path, layer, type(layer) if stays else plain_class(layer)))
        return made[-1][0]

    def apply(layer, *args, **kwargs):
        tensor = keras.tree.flatten((args, kwargs))[0] if args or kwargs else None
        if id(layer) in dropped:
            return tensor
        return layer(tensor) if isinstance(layer, Affine) else layer(*args, **kwargs)  # It takes no `training`.

    graph = FoldedGraph(rewrite(model, replace, apply), plan, made)
    for variable, value in zip(graph.variables, graph.values(_value_of(walk(model))), strict=True):
        variable.assign(value)
    return graph


def value_in(known: Mapping[str, keras.Variable]) -> ValueOf:
    """Returns the present values of variables, given by key."""

    def value_of(path: str, name: str):
        variable = known.get(f"{path}/{name}")
        return None if variable is None else keras.ops.convert_to_numpy(variable)

    return value_of


def _value_of(layers: Iterable[tuple[str, keras.Layer]]) -> ValueOf:
    return value_in({key: variable for path, layer in layers for key, variable in variables(path, layer).items()})


def _plan(model: keras.Model, prefix: str, unfolded: Collection[str], plan: Plan):
    """Decides for every norm of a graph, and of those nested in it, by the rule of `fold`."""
    graph = Graph(model)
    for layer in model.layers:
        path = prefix + layer.name
        if isinstance(layer, keras.Model):
            _plan(functional(layer), path + "/", unfolded, plan)
            continue
        kept = _kept(layer, graph)
        if kept:
            plan.left[path] = kept
        elif plain_class(layer) is _LAYERS.BatchNormalization:
            target = "it is a slot" if path in unfolded else _target(layer, path, graph)
            if isinstance(target, str):
                plan.affine.add(path)
                plan.left[path] = f"an affine layer: {target}"
                continue
            plan.gone.add(path)
            for each in target:
                plan.into[prefix + each.layer.name].append(each)


def _kept(layer: keras.Layer, graph: Graph) -> str:
    """Returns why a norm, or a layer with norms inside, is not folded; empty for all others."""
    norms = (*NORMS, _LAYERS.RMSNormalization)
    inner = [each.name for each in layers_within(layer) if isinstance(each, norms)]
    if inner:
        return f"not folded: {', '.join(inner)} are inside the layer"
    if not isinstance(layer, norms):
        return ""
    if not isinstance(layer, _LAYERS.BatchNormalization):
        return f"not folded: {plain_class(layer).__name__} depends on its input"
    if plain_class(layer) is not _LAYERS.BatchNormalization:
        return f"not folded: {plain_class(layer).__name__} may compute otherwise than BatchNormalization"
    if any(node.arguments.kwargs.get("training") for node in graph.nodes[id(layer)]):
        return "not folded: it is called with training=True"
    return ""


def _target(norm: keras.Layer, path: str, graph: Graph) -> list[Fold] | str:
    """Returns where a batch norm goes, or the reason why nowhere."""
    if len(graph.nodes[id(norm)]) > 1:
        return "it is used more than once"
    (node,) = graph.nodes[id(norm)]
    tensor, output = node.input_tensors[0], node.output_tensors[0]
    before = graph.maker[id(tensor)]
    reason = _not_linear(before, norm, graph, tensor)
    if not reason and before.activation is not keras.activations.linear:
        reason = f"{before.name} before it has an activation of its own"
    if not reason and len(graph.readers[id(tensor)]) > 1:
        reason = f"what {before.name} before it gives is read by others too"
    if not reason:
        return [Fold(path, norm, before, False, graph.nodes[id(before)][0].input_tensors[0].shape)]
    after = graph.readers[id(output)]
    if all(not _not_linear(layer, norm, graph, output) and not _pads(layer) for layer in after):
        return [Fold(path, norm, layer, True, tensor.shape) for layer in after]
    return reason


def _not_linear(layer, norm: keras.Layer, graph: Graph, between: keras.KerasTensor) -> str:
    """Says why a norm cannot go into a layer, the tensor `between` them; empty where it can."""
    if not isinstance(layer, keras.Layer) or plain_class(layer) not in _LINEAR:
        return f"it is next to {'an output' if layer is None else layer.name}, not to a convolution alone"
    if len(graph.nodes[id(layer)]) > 1:
        return f"{layer.name} next to it is used more than once"
    if layer.dtype_policy.quantization_mode:
        return f"{layer.name} next to it is quantized"
    rank = len(between.shape)
    channels = 1 if getattr(layer, "data_format", "") == "channels_first" else rank - 1
    axis = norm.axis if isinstance(norm.axis, int) else norm.axis[0]
    return "" if axis % rank == channels else f"it normalises another axis than the channels of {layer.name}"


def _pads(layer: keras.Layer) -> bool:
    """Whether a norm before a layer cannot go into it, as it pads, or is not made for it."""
    if isinstance(layer, _TRANSPOSED) or getattr(layer, "groups", 1) > 1:
        return True
    if isinstance(layer, _LAYERS.Dense):
        return False
    return layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)


_Made = tuple[keras.Layer, Callable[[ValueOf], list[np.ndarray]]]


def _like(layer: keras.Layer, layer_class: type[keras.Layer], **changes) -> keras.Layer:
    """Returns a layer of a class, built and configured as another one but for `changes`, with values of its own."""
    config = layer.get_config() | changes | {"trainable": False}
    if isinstance(layer, Patched) and not issubclass(layer_class, Patched):
        config = {key: value for key, value in config.items() if key not in ("own", "statistics", "unnamed")}
    new = layer_class.from_config(config)
    new.build_from_config(layer.get_build_config())
    return new


def _copied(path: str, layer: keras.Layer, layer_class: type[keras.Layer]) -> _Made:
    """Returns a layer that computes the same with values of its own."""
    new = _like(layer, layer_class)
    # Keras lists a patched layer's own variables first, and counts the names of layers inside of others.
    keys = variables(path, new if isinstance(layer, Patched) else layer)
    names = [key.removeprefix(f"{path}/") for key in keys]
    return new, lambda value_of: [value_of(path, name) for name in names]


def _affine(path: str, norm: keras.Layer) -> _Made:
    axis = norm.axis if isinstance(norm.axis, int) else norm.axis[0]
    layer = Affine(axis, name=norm.name, dtype=norm.dtype_policy, trainable=False)
    layer.build_from_config(norm.get_build_config())
    return layer, lambda value_of: list(scale_and_bias(path, value_of, norm.epsilon))


def _folded(path: str, layer: keras.Layer, folds: Collection[Fold]) -> _Made:
    """Returns a layer that computes what the layer, the scale and bias that a task gave it, and the norms around it do."""
    use_bias = layer.use_bias or bool(folds) or "gamma" in getattr(layer, "own", ())
    new = _like(layer, plain_class(layer), use_bias=use_bias)
    own_names = {v.name: own_name(new, v.name) for v in new.weights}

    def values(value_of: ValueOf) -> list[np.ndarray]:
        given = {name: value_of(path, own) for name, own in own_names.items()}
        exact = {"bias": 0.0} | {name: np.asarray(v, "float64") for name, v in given.items() if v is not None}
        gamma = value_of(path, "gamma") if use_bias else None
        if gamma is not None:
            _norm_last(new, exact, np.asarray(gamma, "float64"), value_of(path, "beta"))
        for each in folds:
            turn = _norm_first if each.before else _norm_last
            turn(new, exact, *scale_and_bias(each.path, value_of, each.norm.epsilon))
        return [np.broadcast_to(exact[v.name], v.shape) for v in new.weights]

    return new, values


def _norm_last(layer: keras.Layer, values: dict, scale: np.ndarray, bias: np.ndarray):
    """Changes values so that the layer gives `scale * layer(x) + bias`."""
    kernel = "pointwise_kernel" if isinstance(layer, _SEPARABLE) else "kernel"
    by_output = scale
    if isinstance(layer, _DEPTHWISE):
        by_output = scale.reshape(values[kernel].shape[-2:])  # (channels, depth multiplier)
    if isinstance(layer, _TRANSPOSED):
        by_output = scale[:, None]  # Their kernels are (..., outputs, inputs).
    values[kernel] = values[kernel] * by_output
    values["bias"] = values["bias"] * scale + bias


def _norm_first(layer: keras.Layer, values: dict, scale: np.ndarray, bias: np.ndarray):
    """Changes values so that the layer gives `layer(scale * x + bias)`. Kernels are (..., inputs, outputs)."""
    kernel = "depthwise_kernel" if isinstance(layer, _SEPARABLE) else "kernel"
    spatial = tuple(range(values[kernel].ndim - 2))
    shift = (values[kernel] * bias[:, None]).sum(spatial)  # (inputs, outputs)
    values[kernel] = values[kernel] * scale[:, None]
    if isinstance(layer, (*_DEPTHWISE, *_SEPARABLE)):
        shift = shift.reshape(-1)  # Each channel is an output of its own.
        if isinstance(layer, _SEPARABLE):
            shift = shift @ values["pointwise_kernel"].reshape(len(shift), -1)
    else:
        shift = shift.sum(0)
    values["bias"] = values["bias"] + shift


def _probes(bound: BoundTask, images: np.ndarray | None) -> np.ndarray:
    """Returns preprocessed images: random pixels, always the same, and the given ones."""
    size = bound.task.preprocessing.image_size
    pixels = np.random.default_rng(0).uniform(0, 255, (NUM_PROBES, size, size, 3)).astype("float32")
    probes = np.asarray(bound.task.preprocessing.scale(pixels))
    return probes if images is None else np.concatenate([probes, images])


def _culprit(plan: Plan) -> str:
    """Says which norm's fold alone differs most, on random inputs."""
    differences = {each.path: _local_difference(path, each) for path, folds in plan.into.items() for each in folds}
    if not differences:
        return "no batch norm was folded"
    worst = max(differences, key=lambda path: differences[path])
    return f"most in {worst!r}, by {differences[worst]:.3g} of what that layer gives"


def _local_difference(path: str, fold: Fold) -> float:
    shape = [1, *(32 if size is None else size for size in fold.shape[1:])]
    inputs = np.random.default_rng(0).normal(size=shape).astype("float32")
    first, second = (fold.norm, fold.layer) if fold.before else (fold.layer, fold.norm)
    expected = keras.ops.convert_to_numpy(second(first(inputs)))
    layer, values = _folded(path, fold.layer, [fold])
    layer.set_weights(values(_value_of([(path, fold.layer), (fold.path, fold.norm)])))
    given = keras.ops.convert_to_numpy(layer(inputs))
    # NaN differs more than anything else.
    return float(np.nan_to_num(np.abs(given - expected).max() / max(np.abs(expected).max(), 1e-30), nan=np.inf))
