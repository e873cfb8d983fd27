"""Calls LiteRT files in a process that has their interpreter and nothing of this package: proof that they stand alone.

Run as a file, `python clean_litert.py CALLS.json`; it imports no other module of the package. CALLS holds a list of
`[MODEL.tflite, IMAGES.npy, OUTPUTS.npz, [VECTOR.safetensors]]`, the last list empty for a file that takes no vector. IMAGES is
a float32 array `(batch, image_size, image_size, 3)` in 0..255; OUTPUTS will hold what the signature `serving_default` returns.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main():
    """Loads each file, calls it and writes its outputs."""
    from ai_edge_litert.interpreter import Interpreter  # The package imports this module for its path.

    for model, images, file, vector in json.loads(Path(sys.argv[1]).read_text()):
        inputs = {"images": np.load(images)}
        if vector:
            from safetensors.numpy import load_file

            inputs |= load_file(vector[0])
        np.savez(file, **Interpreter(model).get_signature_runner("serving_default")(**inputs))
    assert not any(name.partition(".")[0] in ("model_patch", "tensorflow") for name in sys.modules), "not on its own"


if __name__ == "__main__":
    main()
