"""How a layer owns some of its variables and borrows the rest from a trunk's layer."""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

import keras

from model_patch.errors import ModelPatchError, reason

OTHER_NAMES = {keras.layers.DepthwiseConv2D: {"kernel": "depthwise_kernel"}}
"""Variables that this package calls otherwise than Keras does: a depthwise kernel has one name in every layer."""


def own_name(layer: keras.Layer, keras_name: str) -> str:
    """Returns this package's name for the variable that Keras calls `keras_name` in `layer`."""
    for base, names in OTHER_NAMES.items():
        if isinstance(layer, base):
            return names.get(keras_name, keras_name)
    return keras_name


def is_unnamed(variable: keras.Variable) -> bool:
    """Whether the author of a layer gave a variable no name. Keras then counts: `variable_3` is the fourth of a process."""
    return re.fullmatch(r"variable(_\d+)?", variable.name) is not None


def variables(path: str, layer: keras.Layer) -> dict[str, keras.Variable]:
    """Returns a layer's variables by key, `<layer path>/<variable name>`.

    Names are Keras' own but one, see `own_name`. Variables of sub-layers carry the sub-layer's path too. A variable without
    a name is called by the attribute that holds it.

    Raises:
        ModelPatchError: two variables of the layer have one name.
    """
    attributes = {id(value): name for name, value in vars(layer).items() if isinstance(value, keras.Variable)}

    def name_of(variable: keras.Variable) -> str:
        if is_unnamed(variable) and id(variable) in attributes:
            return attributes[id(variable)]
        return own_name(layer, variable.path.rpartition(f"{layer.name}/")[2])

    named = {f"{path}/{name_of(v)}": v for v in layer.weights}
    if len(named) < len(layer.weights):
        raise ModelPatchError(f"two variables of the layer {path!r} have one name: expected each of {list(named)} once")
    return named


class Patched:
    """Mixin for a Keras layer of which a task owns some variables and borrows the others.

    What is shared and what is per task: variables named in `own` belong to this layer and start at the values of the
    trunk's layer; every other variable *is* the trunk's object, so it costs nothing, and is trained when and only when
    the trunk is. Without a trunk, as after loading a saved model, the layer makes all its variables itself and those
    not in `own` are not trainable.

    Use it through `patch_layer`. Put before the Keras class: `class PatchedDense(Patched, keras.layers.Dense)`.

    Args:
        own: names of the variables that the task owns, such as `("gamma", "beta")`.
        unnamed: names of the variables that the Keras layer makes without one, in this order.
        **kwargs: the arguments of the Keras layer.
    """

    def __init__(self, *args, own=(), unnamed=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.own = tuple(own)
        self.unnamed = tuple(unnamed)
        self._num_unnamed = 0

    def borrow(self, trunk_variables: Mapping[str, keras.Variable]):
        """Takes the variables to share, by name, before the layer is built."""
        # Past Keras' attribute tracking, which would count every one of them as a variable of this layer.
        object.__setattr__(self, "_trunk_variables", dict(trunk_variables))

    def add_weight(self, *args, name=None, **kwargs):
        """Makes the variable `name` where the task owns it, and hands out the trunk's where it does not."""
        trunk_variables = getattr(self, "_trunk_variables", {})
        if name is None and self._num_unnamed < len(self.unnamed):
            name = self.unnamed[self._num_unnamed]
            self._num_unnamed += 1
        known_as = own_name(self, name)
        if known_as not in self.own:
            if known_as in trunk_variables:
                return trunk_variables[known_as]
            kwargs["trainable"] = False
        variable = super().add_weight(*args, name=name, **kwargs)
        if known_as in trunk_variables:
            # A copy: under JAX two variables would hold one buffer, and a training step gives the buffers of its model away.
            variable.assign(keras.ops.copy(trunk_variables[known_as]))
        return variable

    # Keras stores variables by position, trainable ones first, and borrowed ones change sides with the trunk: use names.
    def save_own_variables(self, store):
        for name, variable in self._by_name().items():
            store[name] = variable

    def load_own_variables(self, store):
        for name, variable in self._by_name().items():
            variable.assign(store[name])

    def _by_name(self) -> dict[str, keras.Variable]:
        named = variables("", self).items()
        return {key.removeprefix("/") if is_unnamed(v) else v.name: v for key, v in named}

    def get_config(self):
        unnamed = {"unnamed": list(self.unnamed)} if self.unnamed else {}
        return {**super().get_config(), "own": list(self.own), **unnamed}


def plain_class(layer: keras.Layer) -> type[keras.Layer]:
    """Returns the class of a layer, or the one that a patched class is made of."""
    return next(base for base in type(layer).__mro__ if not issubclass(base, Patched))


@functools.cache
def patched_class(layer_class: type[keras.Layer]) -> type[keras.Layer]:
    """Returns the patchable subclass of a Keras layer class.

    Classes that need more than `Patched` register themselves with `patches`; all others are derived here. A user's
    subclass of a registered class gets the behaviour of both.
    """
    nearest = next((_REGISTERED[base] for base in layer_class.__mro__ if base in _REGISTERED), Patched)
    derived = type(f"Patched{layer_class.__name__}", (nearest, layer_class), {"__doc__": Patched.__doc__})
    return keras.saving.register_keras_serializable(package="model_patch")(derived)


_REGISTERED: dict[type, type] = {}


def patches(layer_class: type[keras.Layer]):
    """Class decorator: the decorated class is the patchable form of `layer_class`, and can be saved and loaded."""

    def register(patched):
        _REGISTERED[layer_class] = patched
        return keras.saving.register_keras_serializable(package="model_patch")(patched)

    return register


def copy_layer(layer: keras.Layer, layer_class: type[keras.Layer] | None = None, **changes) -> keras.Layer:
    """Returns a built layer with the configuration and the values of another one.

    Args:
        layer: a built layer.
        layer_class: class of the new layer; by default that of `layer`.
        **changes: in the configuration.

    Raises:
        ModelPatchError: the layer's class cannot be made from what its `get_config` returns.
    """
    copy = _from_config(layer, layer_class or type(layer), changes)
    try:
        copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
    except Exception as error:  # What a layer raises that was not written to be copied can be anything.
        raise _cannot_be_copied(layer, error) from None
    return copy


def _from_config(layer: keras.Layer, layer_class: Any, changes: Mapping, switches: Collection[str] = ()) -> Any:
    """Returns a new layer of a class, configured as another one is but for `changes`, with all `switches` that it has on."""
    try:
        config = layer.get_config()
        return layer_class.from_config(config | dict.fromkeys(config.keys() & switches, True) | changes)
    except Exception as error:  # What the constructor of somebody's layer raises can be anything.
        raise _cannot_be_copied(layer, error) from None


def _cannot_be_copied(layer: keras.Layer, error: Exception) -> ModelPatchError:
    return ModelPatchError(
        f"the layer {layer.name!r} ({type(layer).__name__}) cannot be copied for a task ({reason(error)}): give its class a "
        "get_config that returns all arguments of the constructor"
    )


def patch_layer(layer: keras.Layer, own: set[str], **options) -> keras.Layer:
    """Returns a layer that computes what `layer` does, with the variables in `own` belonging to the task.

    It takes the layer's name, configuration and dtype policy, and its values.

    Args:
        layer: a built layer of a trunk.
        own: names of variables; for normalisation layers, and for convolutions, also `gamma` or `beta` where the layer has
            none: they are added as 1 and 0.
        **options: further arguments of the patched class, such as `statistics` for batch normalisation.

    Raises:
        ModelPatchError: the layer has layers inside it and is to be owned in part: its variables cannot be distinguished; or
            it cannot be made again from its configuration.
    """
    names = {key.removeprefix("/") for key in variables("", layer)}
    if own == names and not options:
        return copy_layer(layer, trainable=True)
    if any("/" in name for name in names):
        raise ModelPatchError(
            f"the layer {layer.name!r} ({type(layer).__name__}) contains other layers: it can be patched only as a whole "
            "(kind full)"
        )
    layer_class: Any = type(layer)
    patched: Any = _REGISTERED.get(layer_class) or patched_class(layer_class)
    switches = {switch for name, switch in (("gamma", "scale"), ("beta", "center")) if name in own}
    named = {key.removeprefix("/"): variable for key, variable in variables("", layer).items()}
    unnamed = [name for name, variable in named.items() if is_unnamed(variable)]
    options |= {"trainable": True, "own": sorted(own)} | ({"unnamed": unnamed} if unnamed else {})
    new = _from_config(layer, patched, options, switches)
    new.borrow(named)
    if hasattr(layer, "_mp_lend"):  # What it computes with besides its variables.
        layer._mp_lend(new)
    return new


for _layer_class in (
    keras.layers.Conv1D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.SeparableConv2D,
):
    patched_class(_layer_class)  # So that a saved model with such a layer can be loaded.
