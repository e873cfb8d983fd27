"""What Keras is set to: the layout of images, and the dtype policy that nets compute under."""

import contextlib
from collections.abc import Iterator

import keras

from model_patch.errors import ModelPatchError, reason
from model_patch.graph.keras_private import layers_within
from model_patch.graph.rewrite import rewrite, walk

SETTINGS = {"image_data_format": "channels_last", "floatx": "float32"}
"""The settings of Keras that this package is written for, as in `keras.json`."""


def check_settings():
    """Checks Keras' own settings, which `keras.json` in KERAS_HOME or `~/.keras` may change.

    Raises:
        ModelPatchError: one of `SETTINGS` has another value.
    """
    for name, expected in SETTINGS.items():
        given = getattr(keras.config, name)()
        if given != expected:
            raise ModelPatchError(
                f"Keras is set to {name}={given}, and model_patch works with {expected} alone: change it in keras.json (in "
                f"KERAS_HOME or ~/.keras), or call keras.config.set_{name}({expected!r})"
            )


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Makes layers compute under a dtype policy that are made within it, such as `mixed_bfloat16`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def with_policy(model: keras.Model, policy: keras.DTypePolicy) -> keras.Model:
    """Returns a graph that computes under a dtype policy; the model itself where it does already.

    Layers of another policy are copied with their values, the others shared. Quantized layers keep their policy, and so do
    layers of integers, nets that run as one layer, and in a net of mixed precision the layers whose author chose float32.

    Args:
        model: a functional model.
        policy: a dtype policy, such as `mixed_bfloat16`.

    Raises:
        ModelPatchError: a layer cannot be copied.
    """
    layers = dict(walk(model))
    is_mixed = any(_is_float(layer) and layer.dtype_policy.name != "float32" for layer in layers.values())
    copies: dict[int, keras.Layer] = {}

    def replace(path: str, layer: keras.Layer) -> keras.Layer:
        name = layer.dtype_policy.name
        is_chosen = is_mixed and name == "float32" and policy.compute_dtype != policy.variable_dtype
        if not _is_float(layer) or name == policy.name or is_chosen:
            return layer
        if id(layer) not in copies:
            copies[id(layer)] = _copied(path, layer, policy)
        return copies[id(layer)]

    if all(replace(path, layer) is layer for path, layer in layers.items()):
        return model
    return rewrite(model, replace)


def _is_float(layer: keras.Layer) -> bool:
    policy = layer.dtype_policy
    return not policy.quantization_mode and "float" in str(policy.compute_dtype) and not hasattr(layer, "_mp_slots")


def _copied(path: str, layer: keras.Layer, policy: keras.DTypePolicy) -> keras.Layer:
    try:
        copy = type(layer).from_config(layer.get_config())
        for inner in (copy, *layers_within(copy)):
            inner.dtype_policy = policy
        copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
    except Exception as error:  # Whatever the constructor of somebody's layer raises.
        raise ModelPatchError(
            f"the layer {path!r} ({type(layer).__name__}) is of {layer.dtype_policy.name} and cannot be copied to compute in "
            f"{policy.name} ({reason(error)}): give it a get_config that its constructor takes"
        ) from None
    if isinstance(copy, keras.layers.Normalization):
        copy.finalize_state()  # It computes with a copy of its variables.
    return copy
