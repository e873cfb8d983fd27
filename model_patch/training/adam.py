"""Adam for patches: rates relative to each variable's size, and one operation for each of many small variables."""

import collections
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from model_patch.graph.keras_private import free_last_axis, has_free_axis, resize

LEAST_SIZE = 1e-3
"""Size of a variable that starts at or near 0 and has no sibling to be measured by."""

SIBLINGS = {"beta": "gamma", "bias": "kernel"}
"""An offset is measured by the scale beside it: what it is added to varies by about that much."""


def keys(variables: Sequence[keras.Variable]) -> list[str]:
    """Returns a key for each variable: its path, with a number where others have it, too, as the tasks of a joined model do."""
    times: collections.Counter[str] = collections.Counter()

    def key(path: str) -> str:
        times[path] += 1
        return path if times[path] == 1 else f"{path}#{times[path]}"

    return [key(v.path) for v in variables]


def sizes(variables: Sequence[keras.Variable]) -> list[float]:
    """Returns the root mean square of each variable's values; of an offset that of its sibling, if that is among them."""
    by_key = {
        key: float(np.sqrt(np.mean(np.square(ops.convert_to_numpy(v)))))
        for key, v in zip(keys(variables), variables, strict=True)
    }

    def size(key: str) -> float:
        layer, _, name = key.rpartition("/")
        name, *number = name.split("#")
        sibling = "#".join([f"{layer}/{SIBLINGS.get(name, name)}", *number])
        return max(LEAST_SIZE, by_key.get(sibling, by_key[key]))

    return [size(key) for key in by_key]


@keras.saving.register_keras_serializable(package="model_patch")
class Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a rate. Rate and lengths are variables: a training step that is traced can be used with others.

    Args:
        schedule: from a step to a factor.
        rate: to start with.
    """

    LENGTHS = ("decay_steps", "warmup_steps")
    """Attributes of Keras' schedules, in steps."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, rate: float):
        self.schedule, self._config = schedule, schedule.get_config()
        self.rate = keras.Variable(rate, trainable=False, dtype="float32", name="rate")
        self._lengths = {name: getattr(schedule, name) for name in self.LENGTHS if hasattr(schedule, name)}
        for name, length in self._lengths.items():
            self._lengths[name] = keras.Variable(length, trainable=False, dtype="float32", name=name)
            setattr(schedule, name, self._lengths[name])

    def __call__(self, step):
        return self.rate * self.schedule(step)

    @property
    def kind(self) -> tuple:
        """What differs between two schedules of which neither can take the values of the other."""
        rest = {name: value for name, value in self._config.items() if name not in self._lengths}
        return type(self.schedule), rest

    def restart(self, like: "Scaled"):
        """Takes the rate and the lengths of another schedule of this kind."""
        self.rate.assign(like.rate)
        self._config = like._config
        for name, length in self._lengths.items():
            length.assign(like._lengths[name])

    def get_config(self):
        schedule = type(self.schedule).from_config(self._config)
        return {
            "schedule": keras.saving.serialize_keras_object(schedule),
            "rate": float(ops.convert_to_numpy(self.rate)),
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["rate"])


@keras.saving.register_keras_serializable(package="model_patch")
class RelativeAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` whose learning rate may be relative to each variable's size when training starts.

    A step of Adam moves every value by about the learning rate, whatever its gradient. A relative rate of 0.01 moves it by
    one hundredth of its variable's root mean square, so that one rate fits kernels, scales and last layers of any net.

    Args:
        learning_rate: a number or a schedule.
        relative: whether it is relative.
        decays: by the key of a variable, see `keys`, its weight decay, an array that broadcasts to its shape. It is the gradient
            of a penalty on the loss (L2), and not decoupled as in AdamW.
        **kwargs: options of `keras.optimizers.Adam`.
    """

    def __init__(self, learning_rate=0.001, relative: bool = False, decays: Mapping | None = None, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.relative, self.decays = relative, {key: np.asarray(each) for key, each in (decays or {}).items()}

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        for variable, *moments in zip(variables, self._momentums, self._velocities, strict=True):
            if has_free_axis(variable):
                for each in moments:
                    free_last_axis(each)
        # Variables, so that a training step that is traced can be used with others.
        self._decay_of = [
            self.add_variable(self.decays[key].shape, dtype="float32", name="decay") if key in self.decays else None
            for key in keys(variables)
        ]
        if self.relative:
            self.sizes = self.add_variable((len(variables),), dtype="float32", name="sizes")
        self._set_by_start(variables)

    def _set_by_start(self, variables):
        for key, decay in zip(keys(variables), self._decay_of, strict=True):
            if decay is not None:
                decay.assign(self.decays[key])
        if self.relative:
            self.sizes.assign(sizes(variables))

    def restart(self, decays: Mapping[str, np.ndarray]):
        """Sets the state to that of a training that begins now, with other weight decays for the same variables.

        Those with a free last axis may have another length than before.
        """
        for variable, *moments in zip(self._trainable_variables, self._momentums, self._velocities, strict=True):
            for each in moments:
                resize(each, ops.zeros(variable.shape, each.dtype))
        self.decays = dict(decays)
        self._set_by_start(self._trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        if self.relative:
            learning_rate = learning_rate * self.sizes[self._get_variable_index(variable)]
        super().update_step(self._penalised(gradient, variable), variable, learning_rate)

    def _penalised(self, gradient, variable: keras.Variable):
        decay = self._decay_of[self._get_variable_index(variable)]
        return gradient if decay is None else gradient + ops.cast(ops.multiply(variable, decay), gradient.dtype)

    def get_config(self):
        decays = {key: each.tolist() for key, each in self.decays.items()}
        return {**super().get_config(), "relative": self.relative, "decays": decays}


@keras.saving.register_keras_serializable(package="model_patch")
class FusedAdam(RelativeAdam):
    """`RelativeAdam` that updates each variable by TensorFlow's own kernel.

    Keras writes out some 40 operations for each variable. A patch has hundreds of variables of a few hundred values:
    tracing and running those operations is a good part of a short training (docs/speed.md).

    For one replica, on TensorFlow; see `adam`.

    Args:
        learning_rate: a number or a schedule.
        relative, decays: as for `RelativeAdam`.
        **kwargs: `beta_1`, `beta_2`, `epsilon` and `name` of `keras.optimizers.Adam`.
    """

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        self.build(trainable_variables)
        step = ops.cast(self.iterations + 1, "float32")
        scalars = {
            "beta1": self.beta_1,
            "beta2": self.beta_2,
            "beta1_power": ops.power(self.beta_1, step),
            "beta2_power": ops.power(self.beta_2, step),
            "epsilon": self.epsilon,
        }
        # Once: each operation would make constants of its own.
        scalars = {name: tf.convert_to_tensor(value, "float32") for name, value in scalars.items()}
        rate = ops.cast(self.learning_rate, "float32")
        rates = ops.unstack(rate * self.sizes, len(trainable_variables)) if self.relative else [rate] * len(grads)
        for gradient, lr, variable, *moments in zip(
            grads, rates, trainable_variables, self._momentums, self._velocities, strict=True
        ):
            if gradient is None:
                continue
            gradient = ops.cast(self._penalised(gradient, variable), "float32")
            var, m, v = (each.value.handle for each in (variable, *moments))
            tf.raw_ops.ResourceApplyAdam(var=var, m=m, v=v, lr=lr, grad=gradient, **scalars)
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))
        self.iterations.assign_add(1)


def adam(learning_rate, relative: bool = False, decays: Mapping | None = None) -> keras.optimizers.Adam:
    """Returns Adam: `FusedAdam` where it works, and else what sums gradients over replicas and runs on JAX.

    Arguments as those of `RelativeAdam`.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.distribute.has_strategy():
            return FusedAdam(learning_rate, relative, decays)
    return RelativeAdam(learning_rate, relative, decays) if relative or decays else keras.optimizers.Adam(learning_rate)
