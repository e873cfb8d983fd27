"""The one graph tool: rebuild a functional Keras graph with some layers replaced and the others shared.

Bind, join, bank and fold are all uses of `rewrite`. Layers are named by their path, the layer names from the outermost
model inwards joined by `/`: `block_1_expand_BN`, or `backbone/conv1_bn` inside a nested model. A path does not depend
on the order in which layers were made, so it means the same after the trunk was saved and loaded.
"""

import collections
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras

from model_patch.errors import ModelPatchError, reason
from model_patch.graph import keras_private

Replace = Callable[[str, keras.Layer], keras.Layer]
"""Given a layer's path and the layer, returns the layer to put there: the same object to share it."""


def functional(model: keras.Model) -> keras.Model:
    """Returns the model as a functional graph over the same layer objects, without what a subclass adds to it.

    Raises:
        ModelPatchError: the model is subclassed, or a sequential model that was never built.
    """
    if type(model) is keras_private.GRAPH:
        return model
    if isinstance(model, keras.Sequential):
        if not model.built or not model.inputs:
            raise ModelPatchError(f"the model {model.name!r} has no input shape yet: build it or call it on data first")
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not isinstance(model, keras.Function):
        raise ModelPatchError(
            f"the model {model.name!r} is a subclassed {type(model).__name__} without a layer graph: expected a "
            "functional or sequential model, so rebuild it as keras.Model(inputs, outputs)"
        )
    return keras.Model(model.input, model.output, name=model.name)


def walk(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Yields `(path, layer)` for every layer of the graph, nested models opened, input layers left out."""
    for layer in model.layers:
        path = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from walk(functional(layer), path + "/")
        elif not isinstance(layer, keras.layers.InputLayer):
            yield path, layer


class Names:
    """Names for new layers of a graph, which must differ from those of all its operations.

    Args:
        *models: graphs whose names are taken, with those of the graphs nested in them.
        taken: further names that are taken.
    """

    def __init__(self, *models: keras.Model, taken: Iterable[str] = ()):
        self._taken = set(taken)
        for model in models:
            self._take(model)

    def _take(self, model: keras.Model):
        self._taken.add(model.name)
        for operation in functional(model).operations:
            self._taken.add(operation.name)
            if isinstance(operation, keras.Model):
                self._take(operation)

    def new(self, name: str) -> str:
        """Returns `name`, followed by underscores where it is taken, and takes it."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def layer_at(model: keras.Model, path: str) -> tuple[keras.Model, keras.Layer]:
    """Returns the layer of a path, and before it the graph that it is in: the model itself, or one nested in it.

    Raises:
        ModelPatchError: there is no such layer; close names are given.
    """
    graph = functional(model)
    *outer, last = path.split("/")
    for name in outer:
        layer = _named(graph, name)
        if not isinstance(layer, keras.Model):
            raise ModelPatchError(f"the layer {name!r} of {graph.name!r} is no nested model: end the path with it")
        graph = functional(layer)
    return graph, _named(graph, last)


def _named(graph: keras.Model, name: str) -> keras.Layer:
    layers = {layer.name: layer for layer in graph.layers if not isinstance(layer, keras.layers.InputLayer)}
    if name not in layers:
        close = difflib.get_close_matches(name, layers, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"its last ones are {', '.join([*layers][-5:])}"
        raise ModelPatchError(f"{graph.name!r} has no layer {name!r}: {hint}")
    return layers[name]


def output_of(model: keras.Model, path: str) -> keras.KerasTensor:
    """Returns the output of the layer of a path, in the graph that the layer is in.

    Raises:
        ModelPatchError: there is no such layer, or it has more than one output, as where it is used more than once.
    """
    graph, layer = layer_at(model, path)
    # Shared layers have outputs in other graphs, too.
    outputs = [tensor for node in nodes(graph) if node.operation is layer for tensor in node.output_tensors]
    if len(outputs) > 1:
        raise ModelPatchError(
            f"the layer {layer.name!r} of {graph.name!r} has {len(outputs)} outputs: take one that is used once and has one"
        )
    return outputs[0]


def outputs_at(model: keras.Model, paths: Sequence[str]) -> keras.Model:
    """Returns a graph over the same layers that gives the outputs of the layers of these paths, as a list.

    Nested graphs stay nested, so that layers keep their paths.

    Raises:
        ModelPatchError: as `output_of`, or a layer is in a nested graph that is used more than once.
    """
    graph, outputs = _with_taps(model, paths)
    return keras.Model(graph.input, outputs, name=model.name)


def _with_taps(model: keras.Model, paths: Sequence[str]) -> tuple[keras.Model, list[keras.KerasTensor]]:
    """Returns a graph that computes what the model does, and in it the outputs of the layers of these paths."""
    graph = functional(model)
    nested = collections.defaultdict(list)
    for path in paths:
        name, slash, inner_path = path.partition("/")
        if slash:
            output_of(graph, name)  # It is used once.
            nested[name].append(inner_path)
    found: dict[str, keras.KerasTensor] = {}

    def call(layer, *args, **kwargs):
        if layer.name not in nested:
            return layer(*args, **kwargs)
        inner, taps = _with_taps(layer, nested[layer.name])
        output, *taps = keras.Model(inner.input, [inner.output, *taps], name=layer.name)(*args, **kwargs)
        found.update(zip((f"{layer.name}/{path}" for path in nested[layer.name]), taps, strict=True))
        return output

    if nested:
        graph = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    return graph, [found[path] if path in found else output_of(graph, path) for path in paths]


def nodes(model: keras.Model) -> list:
    """Returns the nodes of the outermost graph of a model, each one use of a layer or of a bare operation."""
    return [node for node in keras_private.nodes(model) if not node.is_input]


class Graph:
    """The nodes of the outermost graph of a model: who makes a tensor, who reads it, how often a layer is used.

    Attributes:
        nodes: the uses of an operation, by its id.
        maker: by the id of a tensor, the operation that gives it; inputs of the graph are given by their input layers.
        readers: by the id of a tensor, the operations that take it, and None where it is an output of the graph.
    """

    def __init__(self, model: keras.Model):
        self.nodes = collections.defaultdict(list)
        self.maker: dict[int, keras.Operation] = {}
        self.readers = collections.defaultdict(list)
        for node in keras_private.nodes(model):
            self.nodes[id(node.operation)].append(node)
            self.maker |= {id(tensor): node.operation for tensor in node.output_tensors}
            for tensor in node.input_tensors:
                self.readers[id(tensor)].append(node.operation)
        for tensor in model.outputs:
            self.readers[id(tensor)].append(None)

    def outputs(self, layer: keras.Operation) -> list[keras.KerasTensor]:
        """Returns what all uses of a layer give."""
        return [tensor for node in self.nodes[id(layer)] for tensor in node.output_tensors]

    def follower(self, layer: keras.Operation) -> keras.Operation | None:
        """Returns the layer that alone takes all that a layer gives, and takes nothing else, where there is one."""
        given = [id(tensor) for tensor in self.outputs(layer)]
        readers = [reader for tensor in given for reader in self.readers[tensor]]
        if len(readers) != len(given) or any(each is None or each is not readers[0] for each in readers):
            return None
        taken = [id(tensor) for node in self.nodes[id(readers[0])] for tensor in node.input_tensors]
        return readers[0] if sorted(taken) == sorted(given) else None


def followers(model: keras.Model, prefix: str = "") -> dict[str, str]:
    """Returns, by path, the layer that alone takes a layer's output and takes nothing else, where there is one.

    Layers that are used more than once neither follow nor are followed, and nor do layers of two different graphs.
    """
    model = functional(model)
    graph = Graph(model)

    def is_plain(layer: keras.Operation) -> bool:
        once = len(graph.nodes[id(layer)]) == 1
        return once and isinstance(layer, keras.Layer) and not isinstance(layer, keras.Model)

    found: dict[str, str] = {}
    for layer in model.layers:
        follower = graph.follower(layer)
        if isinstance(layer, keras.Model):
            found |= followers(layer, f"{prefix}{layer.name}/")
        elif follower is not None and is_plain(layer) and is_plain(follower):
            found[prefix + layer.name] = prefix + follower.name
    return found


def input_shapes(model: keras.Model, prefix: str = "") -> dict[str, tuple]:
    """Returns, by path, the shape of what a layer takes in this graph, at its first use there.

    A layer's own `input` is that of the first graph that it was ever in, perhaps one for images of another size.
    """
    shapes: dict[str, tuple] = {}
    for node in nodes(functional(model)):
        path = prefix + node.operation.name
        if isinstance(node.operation, keras.Model):
            shapes |= input_shapes(node.operation, f"{path}/")
        else:
            shapes.setdefault(path, node.input_tensors[0].shape)
    return shapes


def rewrite(
    model: keras.Model,
    replace: Replace,
    call: Callable | None = None,
    prefix: str = "",
    *,
    extra: Sequence[keras.KerasTensor] = (),
    reshape: Callable[[tuple], tuple] | None = None,
) -> keras.Model:
    """Rebuilds the graph of `model` with the layers that `replace` returns.

    A layer that `replace` hands back unchanged is shared: the new graph calls the same object, with the same variables.
    A nested model in which nothing changes is shared whole.

    Args:
        model: a functional or sequential model; unchanged.
        replace: called once per layer with its path and the layer.
        call: `call(layer, *args, **kwargs)`, how a layer is applied to its inputs; plain application by default. With
            `extra`, it gets the tensors of the graph it is in as `extra`, too.
        prefix: the path of `model` inside an outer one, ending in `/`; empty for the outermost.
        extra: what the new graph takes besides the model's own input, as symbolic tensors of that shape and dtype. A
            layer with the attribute `_mp_takes_extra` is called with the list of them as its second argument: joined and
            banked layers need more than their input.
        reshape: given the shape of an input of the model, or of one nested in it, returns that of the new graph, for
            layers that compute in another layout.

    Returns:
        A functional model with inputs and outputs of the same shapes and dtypes; with `extra`, its inputs are the list
        of the model's own one and the extra ones.

    Raises:
        ModelPatchError: the model, or one nested in it, has no layer graph.
    """
    model = functional(model)
    names = Names(model)
    extra = [_input_like(tensor, names.new("rewrite_extra")) for tensor in extra]
    rebuilt: set[int] = set()

    def replace_layer(layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, keras.Layer):
            return layer  # A bare operation, such as `x + y` on symbolic tensors, has no variables to replace.
        path = prefix + layer.name
        if not isinstance(layer, keras.Model):
            return replace(path, layer)
        inner = rewrite(layer, replace, call, path + "/", extra=extra, reshape=reshape)
        kept = {id(old) for _, old in walk(functional(layer))}
        if not reshape and all(id(new) in kept for _, new in walk(inner)):
            return layer
        rebuilt.add(id(inner))
        return inner

    def apply(layer: keras.Operation, *args, **kwargs):
        if id(layer) in rebuilt:
            args = ([*keras.tree.flatten(args), *extra],)
        elif extra and getattr(layer, "_mp_takes_extra", False):
            args = (*args, extra)
        if call is None:
            return layer(*args, **kwargs)
        return call(layer, *args, **({"extra": extra} if extra else {}), **kwargs)

    inputs = None
    if extra or reshape:
        # A graph may have inputs that it does not use: cloned with these, its layers can be handed them.
        inputs = [*(_input_like(tensor, tensor.name, reshape) for tensor in model.inputs), *extra]
        model = keras.Model([*model.inputs, *extra], model.output, name=model.name)
    return keras.models.clone_model(model, inputs, clone_function=replace_layer, call_function=apply)


def resized(model: keras.Model, shape: tuple, text: str) -> keras.Model:
    """Returns the same layers as a graph for batches of any number of float32 images of a shape, nested graphs too.

    Args:
        model: a functional model of one image; returned itself where it takes such images.
        shape: height, width, channels.
        text: what the model is called in errors.

    Raises:
        ModelPatchError: it cannot be used at that shape.
    """
    before = model.inputs[0]
    if tuple(before.shape) == (None, *shape) and before.dtype == "float32" and _is_of_one_size(model):
        return model

    def call(layer, *args, **kwargs):
        # A nested graph refuses another size than its own: it is rebuilt for what arrives there.
        images = keras.tree.flatten(args)
        if isinstance(layer, keras.Model) and len(layer.inputs) == len(images) == 1 and images[0].ndim == 4:
            layer = resized(functional(layer), tuple(images[0].shape[1:]), text)
        return layer(*args, **kwargs)

    try:
        image = keras.tree.pack_sequence_as(model.input, [keras.Input(shape, name=before.name)])
        return keras.models.clone_model(model, image, clone_function=lambda layer: layer, call_function=call)
    except (ValueError, TypeError) as error:
        sizes = f"for {before.shape[1]} px and cannot be used at {shape[0]}"
        raise ModelPatchError(f"{text!r} was saved {sizes}: {reason(error)}") from None


def _is_of_one_size(model: keras.Model) -> bool:
    inputs = [x for x in model.inputs if x.ndim == 4]
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return all(None not in x.shape[1:] for x in inputs) and all(_is_of_one_size(functional(each)) for each in nested)


def _input_like(tensor: keras.KerasTensor, name: str, reshape: Callable | None = None) -> keras.KerasTensor:
    # Names that Keras counts by itself may repeat: it counts again for each net of keras.applications, see trunks.
    shape = reshape(tensor.shape) if reshape else tensor.shape
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=name)
