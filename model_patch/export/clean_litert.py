"""Calls a LiteRT file in a process that has its interpreter and nothing of this package: proof that it stands alone.

Run as a file, `python clean_litert.py MODEL.tflite IMAGES.npy ANSWERS.npz [VECTOR.safetensors]`; it imports no other module
of the package. IMAGES is a float32 array `(batch, image_size, image_size, 3)` in 0..255; ANSWERS holds what the signature
`serving_default` returns for it, the vector handed in where one is named.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main():
    """Loads the file, calls it and writes its answers."""
    model, images, answers, *vector = sys.argv[1:]
    inputs = {"images": np.load(images)}
    if vector:
        from safetensors.numpy import load_file

        inputs |= load_file(vector[0])
    outputs = Interpreter(model).get_signature_runner("serving_default")(**inputs)
    assert not any(name.partition(".")[0] in ("model_patch", "tensorflow") for name in sys.modules), "not on its own"
    np.savez(answers, **outputs)


if __name__ == "__main__":
    main()
