"""Calls LiteRT files in a process that has their interpreter and nothing of this package: proof that they stand alone.

Run as a file, see `model_patch.export.verify`; it imports no other module of the package. A call is
`[MODEL.tflite, IMAGES.npy, OUTPUTS.npz, [VECTOR.safetensors]]`, the last list empty for a file that takes no vector. IMAGES is
a float32 array `(batch, image_size, image_size, 3)` in 0..255; OUTPUTS will hold what the signature `serving_default` returns.
"""

import json
import sys

import numpy as np


def main():
    """For each call, loads the file, calls it, writes its outputs, and says so."""
    from ai_edge_litert.interpreter import Interpreter  # Others import this module for its path.

    for model, images, file, vector in map(json.loads, sys.stdin):
        inputs = {"images": np.load(images)}
        if vector:
            from safetensors.numpy import load_file

            inputs |= load_file(vector[0])
        np.savez(file, **Interpreter(model).get_signature_runner("serving_default")(**inputs))
        assert not any(each.partition(".")[0] in ("model_patch", "tensorflow") for each in sys.modules), (
            "not on its own"
        )
        print(file, flush=True)


if __name__ == "__main__":
    main()
