"""Calls SavedModels in a process that has TensorFlow and nothing of this package: proof that exports stand alone.

Run as a file, `python clean_saved_model.py CALLS.json`; it imports no other module of the package. CALLS holds a list of
`[SAVED_MODEL, IMAGES.npy, OUTPUTS.npz, [SIGNATURE, ...]]`. IMAGES is a float32 array `(batch, height, width, 3)` in 0..255;
OUTPUTS will hold what `serving_default` returns for it, or the signatures, or tasks of a bank, that are named, each with its
name before the slash.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main():
    """Loads each model, calls it and writes its outputs."""
    import tensorflow as tf  # The package imports this module for its path.

    for saved_model, images, file, names in json.loads(Path(sys.argv[1]).read_text()):
        signatures = tf.saved_model.load(saved_model).signatures
        pixels = tf.constant(np.load(images))
        outputs = {
            f"{name}/{key}": value for name in names for key, value in _outputs(signatures, name, pixels).items()
        }
        outputs = outputs or signatures["serving_default"](images=pixels)
        np.savez(file, **{name: _storable(value.numpy()) for name, value in outputs.items()})
    assert not any(name.partition(".")[0] == "model_patch" for name in sys.modules), "the package was imported"


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
