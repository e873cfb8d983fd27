"""The loss and the metric of classes that count equally, however many images each has."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="model_patch")
class Weighted(keras.losses.Loss):
    """A loss in which an image counts as much as the weight of its class.

    Args:
        loss: of labels `(batch,)` and outputs.
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


@keras.saving.register_keras_serializable(package="model_patch")
class MacroAccuracy(keras.metrics.Metric):
    """The mean over classes of the share of their images that are predicted right, in 0..1; classes without images do not count.

    Args:
        num_classes: how many classes there are.
        name: of the metric.
    """

    def __init__(self, num_classes: int, name: str = "macro_accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.right, self.images = (
            self.add_variable((num_classes,), "zeros", name=name) for name in ("right", "images")
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        of_class = ops.one_hot(labels, self.images.shape[0], dtype="float32")
        if sample_weight is not None:
            of_class *= ops.reshape(ops.cast(sample_weight, "float32"), (-1, 1))
        is_right = ops.cast(ops.equal(ops.cast(ops.argmax(y_pred, axis=-1), "int32"), labels), "float32")
        self.images.assign_add(ops.sum(of_class, axis=0))
        self.right.assign_add(ops.sum(of_class * is_right[:, None], axis=0))

    def get_config(self):
        return {**super().get_config(), "num_classes": self.images.shape[0]}

    def result(self):
        seen = ops.cast(self.images > 0, "float32")
        accuracies = self.right / ops.maximum(self.images, 1e-6)
        return ops.sum(accuracies * seen) / ops.maximum(ops.sum(seen), 1.0)
