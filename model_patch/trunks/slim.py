"""Trunks out of TensorFlow 1 checkpoints of slim and of the Object Detection API."""

from pathlib import Path

import numpy as np

from model_patch.errors import ModelPatchError, reason
from model_patch.files import local_copy, require_no_pattern
from model_patch.preprocessing import Preprocessing
from model_patch.spec import Spec
from model_patch.trunk import Trunk
from model_patch.trunks.architectures import ARCHITECTURES
from model_patch.trunks.source import recognise


def open_slim(spec: Spec, image_size: int | None = None) -> Trunk:
    """Opens `slim:CHECKPOINT`, the path of a checkpoint as TensorFlow 1 names it, or of the folder that it lies in.

    Which net it is, and how wide, is read off the variables' names and shapes. Every variable of the net must be there,
    and nothing else but what belongs to optimizers, heads and detectors. Where training kept averages of the variables,
    those are taken: the published figures of these nets were measured with them.

    Args:
        spec: the parsed spec.
        image_size: pixels; None for the size that the net was trained at.

    Raises:
        ModelPatchError: the checkpoint is missing or damaged, holds no net that is known, or its variables are not those
            of the net; all that are missing, unexpected or of another shape are named.
    """
    spec.take()
    source = recognise(read_checkpoint(spec.rest), spec.rest)
    if source is None:
        known = ", ".join(architecture.scope for architecture in ARCHITECTURES)
        raise ModelPatchError(f"{spec.rest} holds no variables of a net that is known: expected one of {known}")
    size = image_size or source.image_size()
    return Trunk(source.net(size), spec.text, Preprocessing(size, source.architecture.mode))


def read_checkpoint(path: str) -> dict[str, np.ndarray]:
    """Reads every variable of a TensorFlow checkpoint, by name.

    Args:
        path: `model.ckpt-100`, for the files `model.ckpt-100.index` and `.data-*`; or one of them, or their folder.

    Raises:
        ModelPatchError: there is no checkpoint, or it is damaged.
    """
    try:
        with local_copy(path) as local:
            return _read_checkpoint(str(path), str(local))
    except OSError as error:
        raise ModelPatchError(f"{path} cannot be read: {reason(error)}") from None


def _read_checkpoint(path: str, local: str) -> dict[str, np.ndarray]:
    import tensorflow as tf

    # `latest_checkpoint` would take the folder's name for a pattern.
    state = tf.train.get_checkpoint_state(local) if Path(local).is_dir() else None
    found = state.model_checkpoint_path if state else local.removesuffix(".index")
    if not any(Path(each).is_file() for each in (found, f"{found}.index")):
        raise ModelPatchError(f"no checkpoint is at {path}: expected slim:PATH of model.ckpt, without .index or .data")
    require_no_pattern(found)
    try:
        reader = tf.train.load_checkpoint(found)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise ModelPatchError(f"{path} is damaged, or is not a TensorFlow checkpoint: {reason(error)}") from None
