"""The graph of a bank: a trunk's graph in which every slot is filled, example by example, out of tables."""

import collections
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np

from model_patch.bank.layers import (
    FROM_HWBC,
    TO_HWBC,
    Banked,
    BankedAffine,
    BankedBias,
    BankedDepthwise,
    BankedSeparable,
    BatchFirst,
    GlobalMean,
    Permute,
    Product,
)
from model_patch.bank.layout import computes_in_hwbc, has_elementwise_operations, is_elementwise, looks_at_channels
from model_patch.bank.slots import (
    BankSlot,
    Values,
    Vectors,
    affine_values,
    affine_vectors,
    norm_values,
    norm_vectors,
    values_without_bias,
)
from model_patch.errors import ModelPatchError
from model_patch.graph.calls import is_custom
from model_patch.graph.rewrite import Names, followers, functional, input_shapes, nodes, rewrite
from model_patch.kinds import owned
from model_patch.layers import NORMS, variables
from model_patch.layers.affine import ValueOf
from model_patch.layers.conv2d import PatchedConv2D
from model_patch.layers.patched import copy_layer, patch_layer
from model_patch.trunk import Trunk


class BankGraph:
    """A trunk with banked layers in place of those that hold slots.

    Batch norms always are; other layers if one of the kinds owns something of them. A batch norm after a depthwise
    convolution is one banked layer with it. The trunk is unchanged, and lends all other layers.

    Attributes:
        slots: in graph order.
        hwbc: whether it computes in HWBC, see `model_patch.bank.layers`: where there are depthwise convolutions, and no operation
            that could mix up the axes.

    Raises:
        ModelPatchError: the trunk runs as a single layer, or one of its layers cannot be banked.
    """

    def __init__(self, trunk: Trunk, kinds: Sequence[str]):
        trunk.require_graph("a bank")
        self.slots: list[BankSlot] = []
        self._trunk = trunk
        self._kinds = kinds
        self._layers = trunk.layers()
        self._next = followers(trunk.model)
        self._input_shapes = input_shapes(trunk.model)
        self._uses = _uses(trunk.model)
        is_depthwise = any(_channels_of_depthwise(layer) for layer in self._layers.values())
        self.hwbc = is_depthwise and has_elementwise_operations(trunk.model)
        self._new: dict[str, keras.Layer] = {}
        for path, layer in self._layers.items():
            if path not in self._new:
                self._new[path] = self._banked(path, layer) or self._lent(layer)

    def has_own(self, key: str) -> bool:
        """Whether tasks of the bank can have a value of their own for a variable of the trunk."""
        path, _, name = key.rpartition("/")
        banked = any(path in slot.paths for slot in self.slots)
        is_kernel = name in ("kernel", "depthwise_kernel", "pointwise_kernel")
        return banked and (not is_kernel or (name == "depthwise_kernel" and "depthwise" in self._kinds))

    def model(self, patches: Sequence[keras.KerasTensor]) -> keras.Model:
        """Returns the model from images `(batch, height, width, 3)`, and what a `tables.PatchTable` returns, to the trunk's output.

        Args:
            patches: tensors of the same shapes as the model is to take.
        """

        def call(layer, *args, extra=None, mask=None, **kwargs):
            # Keras hands batch norms a mask of None, which nothing else takes.
            return layer(*args, **kwargs, **({} if mask is None else {"mask": mask}))

        reshape = (lambda shape: tuple(shape[i] for i in TO_HWBC) if len(shape) == 4 else shape) if self.hwbc else None
        model = rewrite(self._trunk.model, lambda path, _: self._new[path], call, extra=patches, reshape=reshape)
        if not self.hwbc:
            return model
        names = Names(model)
        images = keras.Input(self._trunk.model.input.shape[1:], name=names.new("images"))
        output = model([Permute(TO_HWBC, name=names.new("to_hwbc"))(images), *model.inputs[1:]])
        if len(output.shape) == 4:
            output = Permute(FROM_HWBC, name=names.new("from_hwbc"))(output)
        return keras.Model([images, *model.inputs[1:]], output)

    def _banked(self, path: str, layer: keras.Layer) -> keras.Layer | None:
        """Returns the banked form of a layer of which tasks own something, and notes its slot."""
        own = set().union(*(owned(kind, layer) for kind in self._kinds))
        if own:
            self._trunk.require_whole_images(path, "banked")
        scale = _scale(layer, own)
        if scale is not None:
            return self._scaled(path, layer, scale)
        if own and is_custom(layer):
            base = next(base for base in type(layer).__mro__ if base.__module__.startswith("keras."))
            raise ModelPatchError(
                f"the layer {path!r} is a {type(layer).__name__}, which may compute otherwise than Keras' "
                f"{base.__name__}, and cannot be banked: bind its tasks one by one"
            )
        if isinstance(layer, keras.layers.BatchNormalization) and not is_custom(layer):
            _require_channels_last(path, layer.axis in (-1, len(layer.input.shape) - 1))
            activation = self._activation_after(path)
            new = BankedAffine(layer.input.shape[-1], None, activation, hwbc=self.hwbc, name=layer.name)
            vectors = functools.partial(norm_vectors, path, layer)
            return self._note(new, vectors, lambda given: norm_values(path, layer, *given), path)
        if _channels_of_depthwise(layer) and (own or self.hwbc):
            return self._depthwise(path, layer)
        if not own:
            return None
        if isinstance(layer, NORMS):
            _require_channels_last(path, layer.axis in (-1, [-1], len(layer.input.shape) - 1))
            core = self._core(layer, scale=False, center=False)
            new = BankedAffine(layer.input.shape[-1], self._lent(core, layer), hwbc=self.hwbc, name=layer.name)
            return self._note(
                new, functools.partial(affine_vectors, path), lambda given: affine_values(path, *given), path
            )
        if isinstance(layer, keras.layers.Dense | keras.layers.Conv2D | keras.layers.Conv1D):
            _require_channels_last(path, getattr(layer, "data_format", "channels_last") == "channels_last")
            core = self._core(layer, use_bias=False, activation=None)
            lent = self._lent(core, layer)
            new = BankedAffine(layer.output.shape[-1], lent, layer.activation, hwbc=self.hwbc, name=layer.name)
            vectors = functools.partial(affine_vectors, path)
            return self._note(new, vectors, lambda given: values_without_bias(path, *given), path)
        if isinstance(layer, keras.layers.EinsumDense) and not self.hwbc:
            core = self._core(layer, bias_axes=None, activation=None)
            new = BankedBias(layer.bias.shape, core, layer.activation, name=layer.name)
            return self._note(
                new,
                lambda value_of: [value_of(path, "bias").reshape(-1)],
                lambda given: {f"{path}/bias": given[0].reshape(layer.bias.shape)},
                path,
            )
        raise ModelPatchError(
            f"the layer {path!r} ({type(layer).__name__}), of which tasks own {', '.join(sorted(own))}, cannot be banked: "
            "leave its kind out, or bind its tasks one by one"
        )

    def _scaled(self, path: str, layer: keras.Layer, scale: str) -> keras.Layer:
        """Returns the banked form of an RMS norm or a layer scale: the layer with a scale of 1, then scale and bias."""
        channels = layer.output.shape[-1]
        core = copy_layer(layer, trainable=False)
        for key, variable in variables("", core).items():
            variable.assign(np.full(variable.shape, float(key == f"/{scale}")))
        new = BankedAffine(channels, self._lent(core, layer), hwbc=self.hwbc, name=layer.name)
        shift = "bias" if f"{path}/bias" in variables(path, layer) else "beta"

        def vectors(value_of: ValueOf) -> list:
            given = value_of(path, shift)
            return [value_of(path, scale).astype("float64"), np.float64(0.0) if given is None else given]

        return self._note(new, vectors, lambda given: {f"{path}/{scale}": given[0], f"{path}/{shift}": given[1]}, path)

    def _core(self, layer: keras.Layer, **changes) -> keras.Layer:
        """Returns a layer that computes with the trunk's variables, without what tasks add to it."""
        core = patch_layer(layer, set(), **changes)
        # Built inside another layer's call, Keras would not count the borrowed kernel among the model's variables.
        core.build_from_config(layer.get_build_config())
        return core

    def _depthwise(self, path: str, layer) -> Banked:
        """Returns a depthwise or separable convolution with a kernel per example, and with it the batch norm after it."""
        follower = self._next.get(path, "")
        norm = self._layers.get(follower)
        merges = isinstance(norm, keras.layers.BatchNormalization) and layer.activation is keras.activations.linear
        activation = layer.activation
        if merges:
            self._new[follower] = keras.layers.Identity(name=follower.rpartition("/")[2])
            activation = self._activation_after(follower)

        def outer(value_of: ValueOf) -> list:
            scale, bias = affine_vectors(path, value_of)
            if not merges:
                return [scale, bias]
            more, shift = norm_vectors(follower, norm, value_of)
            return [scale * more, bias * more + shift]

        own_kernel, channels = "depthwise" in self._kinds, _channels_of_depthwise(layer)

        def taps(value_of: ValueOf, scale) -> list:
            kernel = value_of(path, "depthwise_kernel")
            return [*(kernel.reshape(-1, channels) * scale)] if own_kernel else [scale]

        separable = isinstance(layer, keras.layers.SeparableConv2D)
        kernel = layer.depthwise_kernel if separable else layer.kernel
        depthwise = BankedDepthwise(
            channels,
            None if own_kernel else kernel,
            kernel.shape[:2],
            layer.strides,
            self._same_padding(path, layer),
            layer.dilation_rate,
            activation=None if separable else activation,
            hwbc=self.hwbc,
            name=layer.name,
        )
        paths = (path, follower) if merges else (path,)

        def values(given: Vectors, scale, bias) -> Values:
            """All that the layer and its norm do is in the layer: its kernel, which may hold the scale, and one scale and bias."""
            own = {f"{path}/depthwise_kernel": np.reshape(given, kernel.shape)} if own_kernel else {}
            of_norm = norm_values(follower, norm, np.ones_like(bias), np.zeros_like(bias)) if merges else {}
            return own | values_without_bias(path, scale, bias) | of_norm

        if not separable:

            def vectors(value_of):
                scale, bias = outer(value_of)
                return [bias, *taps(value_of, scale)]

            def values_of(given: Vectors) -> Values:
                return values(given[1:], np.ones_like(given[0]) if own_kernel else given[1], given[0])

            return self._note(depthwise, vectors, values_of, *paths)
        pointwise = BankedAffine(layer.filters, _pointwise(layer), activation, self.hwbc, name="pointwise")
        both = BankedSeparable(depthwise, pointwise, name=layer.name)
        return self._note(
            both,
            lambda value_of: [0.0, *taps(value_of, 1.0), *outer(value_of)],
            lambda given: values(given[1:-2], *given[-2:]),
            *paths,
        )

    def _activation_after(self, path: str) -> Callable | None:
        """Returns the elementwise activation that alone follows a layer, and takes it out of its place in the graph."""
        follower = self._next.get(path, "")
        layer = self._layers.get(follower)
        # Others look at all channels of an example, and in one image of a bank examples are side by side.
        if (
            layer is None
            or type(layer) not in (keras.layers.ReLU, keras.layers.Activation)
            or not is_elementwise(layer)
        ):
            return None
        self._new[follower] = keras.layers.Identity(name=layer.name)
        return layer

    def _same_padding(self, path: str, layer) -> str:
        """Returns the convolution's padding; removes zeros padded before it where `same` replaces them."""
        before = next((p for p, after in self._next.items() if after == path), "")
        pad = self._layers.get(before)
        if layer.padding != "valid" or pad is None or type(pad) is not keras.layers.ZeroPadding2D:
            return layer.padding
        if pad.data_format != layer.data_format:
            return layer.padding
        sizes, strides = self._input_shapes[before][1:3], layer.strides
        reach = [1 + (k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
        for size, stride, k, given in zip(sizes, strides, reach, pad.padding, strict=True):
            total = max((-(-size // stride) - 1) * stride + k - size, 0)
            if tuple(given) != (total // 2, total - total // 2):
                return layer.padding
        self._new[before] = keras.layers.Identity(name=pad.name)
        return "same"

    def _note(self, new: Banked, vectors: Callable, values: Callable, *paths: str) -> Banked:
        self.slots.append(BankSlot(new, vectors, values, paths))
        return new

    def _lent(self, layer: keras.Layer, like: keras.Layer | None = None) -> keras.Layer:
        """Returns what computes a layer that has no slots, in the layout of the graph.

        Args:
            layer: a layer of the trunk, or one that replaces the trunk's `like`.
        """
        uses = self._uses[id(like or layer)]
        if not self.hwbc or computes_in_hwbc(layer, uses):
            return layer
        ranks = {len(shape) for shapes in uses for shape in shapes}
        if type(layer) is keras.layers.Multiply and ranks == {4}:
            return Product(name=layer.name)
        if type(layer) is keras.layers.Concatenate and ranks == {4} and looks_at_channels(layer.axis, 4):
            return layer
        if type(layer) is keras.layers.GlobalAveragePooling2D and layer.data_format == "channels_last":
            return GlobalMean(layer.keepdims, name=layer.name)
        outputs = keras.tree.flatten((like or layer).output)
        if max(ranks) < 4 and all(len(x.shape) < 4 for x in outputs):
            return layer
        return BatchFirst(layer)


def _scale(layer: keras.Layer, own: set[str]) -> str | None:
    """Returns the name of the scale of an RMS norm or a layer scale: a layer that computes `scale * core(x) + bias`.

    Whether it does shows on random numbers. None for other layers.
    """
    named = {key.removeprefix("/"): variable for key, variable in variables("", layer).items()}
    names = own & named.keys()
    scales = names - {"beta", "bias"}
    if (
        isinstance(layer, NORMS)
        or len(scales) != 1
        or names != named.keys()
        or any(len(v.shape) != 1 for v in named.values())
    ):
        return None
    (scale,) = scales
    axis = getattr(layer, "axis", -1)
    if not looks_at_channels(axis, len(layer.input.shape)):
        return None
    copies, rng = [copy_layer(layer) for _ in range(2)], np.random.default_rng(0)
    values: dict[str, np.ndarray] = {name: rng.uniform(0.5, 1.5, v.shape) for name, v in named.items()}
    for key, variable in variables("", copies[0]).items():
        variable.assign(values[key.removeprefix("/")])
    for key, variable in variables("", copies[1]).items():
        variable.assign(np.full(variable.shape, float(key == f"/{scale}")))
    x = rng.uniform(-1, 1, (2, *(size or 4 for size in layer.input.shape[1:]))).astype("float32")
    given, core = (np.asarray(keras.ops.convert_to_numpy(copy(x)), "float64") for copy in copies)
    shift = next((values[name] for name in names - scales), 0.0)
    return scale if np.allclose(given, core * values[scale] + shift, rtol=1e-4, atol=1e-4) else None


def _pointwise(layer: keras.layers.SeparableConv2D) -> keras.layers.Conv2D:
    """Returns the second half of a separable convolution, with the same kernel, without bias and activation."""
    new = PatchedConv2D(layer.filters, 1, use_bias=False, name="kernel")
    new.borrow({"kernel": layer.pointwise_kernel})
    new.build((None, None, None, layer.pointwise_kernel.shape[2]))
    return new


def _channels_of_depthwise(layer: keras.Layer) -> int:
    """Returns the channels of a depthwise convolution that gives each of them one kernel; 0 for other layers."""
    is_depthwise = type(layer) in (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
    if not is_depthwise or layer.depth_multiplier != 1 or layer.data_format != "channels_last":
        return 0
    return layer.input.shape[-1]


def _uses(model: keras.Model) -> dict[int, list[list[tuple]]]:
    """Returns, by the id of a layer, the shapes of all that it takes, for each of its uses, nested models opened."""
    found: dict[int, list[list[tuple]]] = collections.defaultdict(list)
    for node in nodes(functional(model)):
        if isinstance(node.operation, keras.Model):
            for key, uses in _uses(node.operation).items():
                found[key] += uses
        else:
            found[id(node.operation)].append([tuple(x.shape) for x in node.input_tensors])
    return found


def _require_channels_last(path: str, is_last: bool):
    if not is_last:
        raise ModelPatchError(
            f"the layer {path!r} has its channels on another axis than the last, where a bank needs them"
        )
