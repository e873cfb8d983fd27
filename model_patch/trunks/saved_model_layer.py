"""A SavedModel as one Keras layer: how a net that is only known as a function can still be patched."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from model_patch.errors import ModelPatchError
from model_patch.files import as_path
from model_patch.trunks.reusable import call_module, features_of, load_module

SCALE_BIAS = {"gamma", "beta"}
"""Last parts of the names of a batch norm's variables that are trained; besides them it has `moving_variance`."""

DEPTHWISE = {"depthwise_weights", "depthwise_kernel"}
"""Last parts of the names of depthwise kernels."""

BIAS = {"biases", "bias", "beta"}
"""Last parts of the names of biases."""


@keras.saving.register_keras_serializable(package="model_patch")
class SavedModelLayer(keras.layers.Layer):
    """A reusable SavedModel: images to features, computed by the module's own function.

    Its variables can be patched: scales and biases of batch norms, other biases, and depthwise kernels, found by the names
    that slim and Keras give them. A module reads its own variables only, so this layer holds the values of its slots
    itself and writes them into the module before each call; several such layers, each with a patch of its own, use one
    module in turn. Gradients are led from the module's variables back to the layer's.

    Batch norms use the statistics of the module, in training too. What needs a net's inside, a join, a bank or a fold,
    cannot be had of it.

    Args:
        folder: where the SavedModel lies.
        **kwargs: options of `keras.layers.Layer`.

    Input shape: `(batch, height, width, 3)`, of the size that the module takes. Output shape: `(batch, channels)`.

    Raises:
        ModelPatchError: the module cannot be loaded, does not take such images, or two of its variables have one name.
    """

    def __init__(self, folder: str, **kwargs):
        super().__init__(**kwargs)
        self.folder = folder
        self._module: Any = None

    def _mp_lend(self, other: "SavedModelLayer"):
        """Makes another layer, not built yet, use this one's module."""
        object.__setattr__(other, "_module", self._module)

    def build(self, input_shape):
        if self._module is None:
            # Past Keras' attribute tracking, which would count the module's variables as the layer's.
            object.__setattr__(self, "_module", load_module(as_path(self.folder)))
        slots = set().union(*self._mp_slots.values())
        shared = getattr(self, "_trunk_variables", {})
        self.held = {}
        for name, variable in self._module_variables().items():
            if name in slots:
                self.held[name] = self.add_weight(name=name, shape=variable.shape)
                if not shared:
                    self.held[name].assign(variable)
            else:
                # The module's variable itself, which no task changes.
                is_lent = name in shared
                self.held[name] = shared[name] if is_lent else keras.Variable(variable, trainable=False, name=name)
        self._channels = features_of(self._module, np.zeros((1, *input_shape[1:]))).shape[1:]

    @property
    def _mp_slots(self) -> dict[str, set[str]]:
        """The names of the variables that a task can own, by patch kind; kinds that are not there cannot be trained."""
        parts = {name: name.rpartition(".") for name in self._module_variables()}
        norms = {scope for scope, _, last in parts.values() if last == "moving_variance"}
        return {
            "scale_bias": {name for name, (scope, _, last) in parts.items() if last in SCALE_BIAS and scope in norms},
            "depthwise": {name for name, (_, _, last) in parts.items() if last in DEPTHWISE},
            "bias": {name for name, (_, _, last) in parts.items() if last in BIAS},
        }

    def _module_variables(self) -> dict[str, tf.Variable]:
        """Returns the module's float variables by name, with dots where TensorFlow writes slashes: keys use those."""
        floats = [variable for variable in self._module.variables if variable.dtype.is_floating]
        named = {variable.name.partition(":")[0].replace("/", "."): variable for variable in floats}
        if len(named) < len(floats):
            raise ModelPatchError(f"two variables of the module in {self.folder} have one name: it cannot be a trunk")
        return named

    def _targets(self) -> dict[str, tf.Variable]:
        """Returns the module's variables that this layer writes to before each call, by name."""
        variables = self._module_variables()
        return {name: variables[name] for name in sorted(set().union(*self._mp_slots.values()))}

    @property
    def _mp_resources(self) -> list[tf.Variable]:
        """What an export must hold besides the layer's own variables."""
        return [*self._targets().values()]

    def call(self, inputs, training=None):
        targets = self._targets()
        values = [tf.convert_to_tensor(self.held[name]) for name in targets]

        def run(images, values):
            for target, value in zip(targets.values(), values, strict=True):
                target.assign(value)
            return call_module(self._module, images, training=False)

        @tf.custom_gradient
        def run_in_training(images, *values):
            sources = [images, *targets.values()]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                features = run(images, values)

            def gradient(upstream, variables=()):
                return tape.gradient(features, sources, upstream, tf.UnconnectedGradients.ZERO), [None] * len(variables)

            return features, gradient

        # Only in training: TensorFlow would write the gradient into exported models, and cannot.
        return run_in_training(inputs, *values) if training else run(inputs, values)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self._channels)

    def get_config(self):
        return {**super().get_config(), "folder": self.folder}
