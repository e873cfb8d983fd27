"""Calls SavedModels in a process that has TensorFlow and nothing of this package: proof that exports stand alone.

Run as a file, see `model_patch.export.verify`; it imports no other module of the package. A call is
`[SAVED_MODEL, IMAGES.npy, OUTPUTS.npz, [SIGNATURE, ...]]`. IMAGES is a float32 array `(batch, height, width, 3)` in 0..255;
OUTPUTS will hold what `serving_default` returns for it, or the signatures, or tasks of a bank, that are named, each with its
name before the slash.
"""

import json
import sys

import numpy as np


def main():
    """For each call, loads the model, calls it, writes its outputs, and says so."""
    import tensorflow as tf  # Others import this module for its path.

    for saved_model, images, file, names in map(json.loads, sys.stdin):
        signatures = tf.saved_model.load(saved_model).signatures
        pixels = tf.constant(np.load(images))
        outputs = {
            f"{name}/{key}": value for name in names for key, value in _outputs(signatures, name, pixels).items()
        }
        outputs = outputs or signatures["serving_default"](images=pixels)
        np.savez(file, **{name: _storable(value.numpy()) for name, value in outputs.items()})
        assert not any(name.partition(".")[0] == "model_patch" for name in sys.modules), "the package was imported"
        print(file, flush=True)


def _outputs(signatures, name: str, pixels):
    default = signatures.get("serving_default")
    if default and "tasks" in default.structured_input_signature[1]:  # A bank; its tasks may have any name.
        import tensorflow as tf

        return default(images=pixels, tasks=tf.fill(tf.shape(pixels)[:1], name))
    return signatures[name](images=pixels)


def _storable(array: np.ndarray) -> np.ndarray:
    return array.astype(bytes) if array.dtype == object else array  # Strings; as objects they would be pickled.


if __name__ == "__main__":
    main()
