"""Opening what holds layers inside: subclassed models, and layers made of layers, become one graph of plain layers.

Patches are bound to the layers of a graph. A net whose layers are inside other layers, as in the blocks of KerasHub's
nets and in most subclassed models, is followed as it calls them, and its layers are copied into such a graph, with their
values. The net itself is unchanged.
"""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from model_patch.errors import ModelPatchError, reason
from model_patch.graph.keras_private import OF_KERAS, layers_within
from model_patch.graph.rewrite import rewrite, walk
from model_patch.kinds import KINDS
from model_patch.layers.weight import RepeatForBatch, Weight

GRAPHS = (keras.Function, keras.Sequential)

BATCH = 7919
"""A prime number of images, of which other sizes in a net are no multiples."""

OF_TENSORFLOW = "_self_"
"""How attributes begin through which TensorFlow finds them."""

ADVICE = "write its call with layers and keras.ops alone, or rebuild the net as keras.Model(inputs, outputs)"


def inline_layers(model: keras.Model, image_size: int) -> keras.Model:
    """Returns the model as a graph whose layers can be patched; the model itself where it is one already.

    The layers of a new graph are named by their place: `blocks.0.norm` is `self.blocks[0].norm` of a subclassed
    model, `stage1.norm` is `self.norm` of the layer `stage1` of a graph. Where a `call` decides by `training`, the graph is
    that of inference.

    Args:
        model: any Keras model of one image.
        image_size: height and width in pixels, for a model that does not say.

    Raises:
        ModelPatchError: something with a norm or a depthwise kernel inside computes with more than layers and operations of
            Keras, so that it cannot be followed, or the graph does not give what the model gives.
    """
    if isinstance(model, GRAPHS) and not any(_is_closed(layer) for _, layer in walk(model)):
        return model
    try:
        return _inlined(model, image_size, None)
    except ModelPatchError as error:
        # Many calls compute with the size of the batch. They can be followed for one size, see `_of_any_batch`.
        try:
            return _inlined(model, image_size, BATCH)
        except ModelPatchError:
            raise error from None


def _inlined(model: keras.Model, image_size: int, batch: int | None) -> keras.Model:
    """Returns the model as a graph, followed for a number of images, or for any."""
    is_graph = isinstance(model, GRAPHS)
    sealed: set[int] = set()

    def apply(layer, *args, **kwargs):
        if not _holds_layers(layer) or id(layer) in sealed:
            return layer(*args, **kwargs)
        try:
            return _follow(layer, *args, **kwargs)
        except ModelPatchError:
            if _is_closed(layer):
                raise
            sealed.add(id(layer))  # No slot is inside: it may remain.
            return layer(*args, **kwargs)

    def keep(path, layer):
        return layer

    with _named_by_place(model) as used:
        try:
            with _called_by(apply, model) if batch else contextlib.nullcontext():
                graph = model if is_graph else _follow_model(model, image_size, batch)
                if batch and is_graph:
                    graph = rewrite(graph, keep, apply, reshape=lambda shape: (batch, *shape[1:]))
                while any(_holds_layers(layer) and id(layer) not in sealed for _, layer in walk(graph)):
                    graph = rewrite(graph, keep, apply)
            opened = _copied(graph, used)
        except ModelPatchError:
            raise
        except (ValueError, TypeError) as error:  # Of layers that are called otherwise than they were made for.
            raise ModelPatchError(f"{model.name!r} cannot be followed as a graph ({reason(error)}): {ADVICE}") from None
    _check_same(model, opened, image_size)
    return opened


@contextlib.contextmanager
def _called_by(apply, model: keras.Model) -> Iterator[None]:
    """Within it, layers that hold layers are called by `apply` wherever a layer around them calls them.

    Followed at once, they can return what symbolic calls cannot, such as None beside a tensor.
    """
    classes = {type(layer) for layer in layers_within(model) if _holds_layers(layer)}
    running: list[keras.Layer] = []
    before = {each: vars(each).get("__call__") for each in classes}

    def call(layer, *args, **kwargs):
        if any(layer is each for each in running):
            return keras.layers.Layer.__call__(layer, *args, **kwargs)
        running.append(layer)
        try:
            return apply(layer, *args, **kwargs)
        finally:
            running.pop()

    try:
        for each in classes:
            each.__call__ = call
        yield
    finally:
        for each, own in before.items():
            if own is None:
                del each.__call__
            else:
                each.__call__ = own


def _holds_layers(layer) -> bool:
    """Whether a layer is made of layers, and is no graph. Keras' own layers are not opened."""
    if not isinstance(layer, keras.Layer) or isinstance(layer, GRAPHS) or type(layer).__module__.startswith("keras."):
        return False
    return bool(layers_within(layer))


def _is_closed(layer) -> bool:
    """Whether norms or depthwise kernels, which patches are about, are inside a layer that is no graph."""
    if not _holds_layers(layer):
        return False
    inner = layers_within(layer)
    return any(KINDS[kind](each) for each in inner for kind in ("scale_bias", "depthwise"))


def _follow_model(model: keras.Model, image_size: int, batch: int | None) -> keras.Model:
    """Returns what a subclassed model calls, as a graph."""
    if not model.built:
        model(np.zeros((1, image_size, image_size, 3), "float32"))
    image = keras.Input((image_size, image_size, 3), batch, name="image")
    return keras.Model(image, _follow(model, image), name=model.name)


def _follow(layer: keras.Layer, *args, **kwargs):
    """Applies a layer to symbolic tensors by what it calls itself, so that the layers inside come into the graph.

    Raises:
        ModelPatchError: it computes with more than that.
    """
    what = f"the {type(layer).__name__} {layer.name!r} holds layers to patch"
    inside = {id(variable) for inner in layers_within(layer) for variable in inner.weights}
    own = {id(variable): variable for variable in layer.weights if id(variable) not in inside}
    attributes = {name: value for name, value in vars(layer).items() if id(value) in own}
    tensors = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
    # Only where a number of images is given: what gives them otherwise is known, and patches know it by its keys.
    if own and (len(attributes) < len(own) or not _is_closed(layer) or tensors[0].shape[0] != BATCH):
        named = ", ".join(variable.name for variable in own.values())
        raise ModelPatchError(f"{what} and variables of its own ({named}): put those into a layer inside it, too")
    try:
        for name, variable in attributes.items():
            weight = Weight(variable.shape, name=f"{layer.name}.{name}", dtype=layer.dtype_policy)
            vars(layer)[name] = weight(tensors[0])
            weight.value.assign(variable)
        return layer.call(*args, **kwargs)
    except Exception as error:  # What a call raises that was not written for symbolic tensors can be anything.
        raise ModelPatchError(f"{what}, and what it calls cannot be followed ({reason(error)}): {ADVICE}") from None
    finally:
        vars(layer).update(attributes)


def _of_any_batch(operation, anchor: keras.KerasTensor, args: tuple):
    """Applies an operation that was followed for `BATCH` images so that it takes any number.

    In shapes, multiples of that prime become -1. What repeats its input as often repeats it for each example of `anchor`.
    """
    kind = type(operation).__name__
    if kind == "Reshape" and isinstance(operation, keras.Operation) and hasattr(operation, "newshape"):
        shape = operation.output.shape
        if any(size and size % BATCH == 0 for size in shape):
            return keras.ops.reshape(args[0], [-1 if size and size % BATCH == 0 else size for size in shape])
    given = getattr(operation, {"Repeat": "repeats", "Tile": "repeats", "BroadcastTo": "shape"}.get(kind, ""), None)
    first = given if isinstance(given, int) else given[0] if given else None
    if first == BATCH and args[0].shape[0] == 1:
        repeated = RepeatForBatch()(args[0], anchor)
        return _repeat_the_rest(kind, given, repeated)
    return None


def _repeat_the_rest(kind: str, given, x):
    """Applies what else than the batch an operation repeats."""
    if kind == "Tile" and any(count != 1 for count in given[1:]):
        return keras.ops.tile(x, (1, *given[1:]))
    if kind == "BroadcastTo" and tuple(given[1:]) != tuple(x.shape[1:]):
        raise ValueError("a tensor is broadcast to a batch and other axes at once")
    return x


def _copied(graph: keras.Model, used: set[keras.Layer]) -> keras.Model:
    """Returns the same graph of copies of the layers, under their present names.

    Layers that cannot make a copy of themselves are put into the graph themselves, and added to `used`.
    """
    copies: dict[keras.Layer, keras.Layer] = {}

    def copy(path: str, layer: keras.Layer) -> keras.Layer:
        if layer not in copies:
            try:
                copies[layer] = type(layer).from_config(layer.get_config())
            except Exception:  # Whatever the constructor of somebody's layer raises.
                copies[layer] = layer
                used.add(layer)
        return copies[layer]

    anchors: list[keras.KerasTensor] = []

    def call(layer, *args, **kwargs):
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        anchors.extend(tensors[:1] if not anchors else ())
        if not isinstance(layer, keras.Layer):
            applied = _of_any_batch(layer, anchors[0], args)
            if applied is not None:
                return applied
        return layer(*args, **kwargs)

    if graph.inputs[0].shape[0] == BATCH:
        copied = rewrite(graph, copy, call, reshape=lambda shape: (None, *shape[1:]))
    else:
        copied = rewrite(graph, copy)
    for layer, new in copies.items():
        new.set_weights(layer.get_weights())
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()  # It computes with a copy of its variables.
    return copied


def _check_same(model: keras.Model, opened: keras.Model, image_size: int):
    """A call may have been followed to what it does for one size of batch, or in training only."""
    height, width, channels = opened.inputs[0].shape[1:]
    shape = (2, height or image_size, width or image_size, channels)
    images = np.random.default_rng(0).uniform(0, 1, shape).astype("float32")
    expected = keras.tree.flatten(model(images, training=False))
    try:
        features = keras.tree.flatten(opened(images, training=False))
    except Exception as error:  # What layers raise that get shapes they were not made for can be anything.
        raise ModelPatchError(
            f"{model.name!r}, followed as a graph, does not run ({reason(error)}): {ADVICE}"
        ) from None
    for one, other in zip(expected, features, strict=True):
        one, other = keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        if not np.allclose(one, other, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(one).max())):
            raise ModelPatchError(f"{model.name!r}, followed as a graph, computes something else: {ADVICE}")


@contextlib.contextmanager
def _named_by_place(model: keras.Model) -> Iterator[set[keras.Layer]]:
    """Names every layer inside a layer by its place, for as long as the context lasts.

    Keras counts the names that an author leaves out, through the whole process, and lets two blocks use one name.

    Yields:
        An empty set: layers that are put into it keep their new names.
    """
    before = {layer: layer.name for layer in [model, *layers_within(model)]}
    named: set[keras.Layer] = set()
    used: set[keras.Layer] = set()

    def name_inside(layer: keras.Layer, prefix: str):
        for place, inner in _places(layer):
            if inner not in named:
                named.add(inner)
                inner.name = prefix + place
                name_inside(inner, "" if isinstance(inner, GRAPHS) else f"{inner.name}.")

    try:
        for layer in [layer for _, layer in walk(model)] if isinstance(model, GRAPHS) else [model]:
            if _holds_layers(layer):
                name_inside(layer, "" if layer is model else f"{layer.name}.")
        yield used
    finally:
        for layer, name in before.items():
            if layer not in used:
                layer.name = name


def _places(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """Yields the layers that a layer holds, each with the attribute, and the index or key, that it is held under."""
    if isinstance(layer, keras.Sequential):
        yield from ((str(i), inner) for i, inner in enumerate(layer.layers))
    elif not isinstance(layer, keras.Function):
        for name, value in vars(layer).items():
            if name not in OF_KERAS and not name.startswith(OF_TENSORFLOW):
                yield from _layers_in(name, value)


def _layers_in(place: str, value) -> Iterator[tuple[str, keras.Layer]]:
    if isinstance(value, keras.Layer):
        yield place, value
    elif isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _layers_in(f"{place}.{key}", inner)
