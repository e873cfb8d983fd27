"""Reusable SavedModels: loading and calling them."""

from pathlib import Path

import numpy as np

from model_patch.errors import ModelPatchError, reason
from model_patch.files import local_copy

FILES = ("saved_model.pb", "saved_model.pbtxt")
"""One of these lies in the folder of every SavedModel."""


def load_module(folder: Path):
    """Loads a reusable SavedModel: callable on images `(batch, height, width, 3)`, with `variables`.

    Raises:
        ModelPatchError: it is damaged, or cannot be called.
    """
    import tensorflow as tf

    try:
        # Its variables' names must not depend on where it is loaded.
        with tf.compat.v1.name_scope(None), local_copy(folder) as local:
            module = tf.saved_model.load(str(local))
    except Exception as error:  # Whatever TensorFlow raises while it reads them, it is about these files.
        raise ModelPatchError(f"{folder} cannot be loaded as a SavedModel: {reason(error)}") from None
    if not callable(module) or not getattr(module, "variables", None):
        raise ModelPatchError(
            f"{folder} is a SavedModel that cannot be called, or has no variables: expected a reusable one in the TF2 format, "
            "such as TensorFlow Hub's feature vectors"
        )
    return module


def features_of(module, images) -> np.ndarray:
    """Returns what a module gives for images `(batch, height, width, 3)`, in inference mode: `(batch, channels)`.

    Raises:
        ModelPatchError: it does not take such images, or gives something else.
    """
    import tensorflow as tf

    images = tf.constant(images, tf.float32)
    try:
        outputs = call_module(module, images, training=False)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ModelPatchError(f"the module does not take images {tuple(images.shape)}: {reason(error)}") from None
    if not tf.is_tensor(outputs) or len(outputs.shape) not in (2, 4):
        raise ModelPatchError("the module does not give one tensor of features: expected a feature vector")
    return outputs.numpy()


def call_module(module, images, training: bool):
    """Calls a module, with `training` where it takes that."""
    arguments = module.__call__.function_spec.fullargspec
    takes_training = "training" in arguments.args + arguments.kwonlyargs
    return module(images, training=training) if takes_training else module(images)


def own_size(module) -> int | None:
    """Returns the height and width that a module takes; None where it takes any, or does not say."""
    import tensorflow as tf

    for function in module.__call__.concrete_functions:
        for spec in tf.nest.flatten(function.structured_input_signature):
            if (
                isinstance(spec, tf.TensorSpec)
                and spec.shape.rank == 4
                and spec.shape[1]
                and spec.shape[1] == spec.shape[2]
            ):
                return spec.shape[1]
    return None
