"""The loss of classes that count equally, however many images each has."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="model_patch")
class Weighted(keras.losses.Loss):
    """A loss in which an image counts as much as the weight of its class.

    Args:
        loss: takes labels `(batch,)` and outputs.
        weights: by class, float32 `(classes,)`.
    """

    def __init__(self, loss: keras.losses.Loss, weights: np.ndarray):
        super().__init__(name=loss.name, reduction=loss.reduction)
        self.loss, self.weights = loss, weights

    def call(self, y_true, y_pred):
        return self.loss.call(y_true, y_pred) * ops.take(ops.convert_to_tensor(self.weights), ops.cast(y_true, "int32"))

    def get_config(self):
        return {"loss": keras.saving.serialize_keras_object(self.loss), "weights": np.asarray(self.weights).tolist()}

    @classmethod
    def from_config(cls, config):
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(loss, np.array(config["weights"], "float32"))
