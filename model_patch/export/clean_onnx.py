"""Calls ONNX files in a process that has ONNX Runtime and nothing of this package: proof that they stand alone.

Run as a file, see `model_patch.export.verify`; it imports no other module of the package. A call is
`[MODEL.onnx, IMAGES.npy, OUTPUTS.npz, []]`. IMAGES is a float32 array `(batch, image_size, image_size, 3)` in 0..255; OUTPUTS
will hold the outputs by name.
"""

import json
import sys

import numpy as np


def main():
    """For each call, loads the file, calls it, writes its outputs, and says so."""
    from onnxruntime import InferenceSession  # Others import this module for its path.

    for model, images, file, _ in map(json.loads, sys.stdin):
        session = InferenceSession(model, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        np.savez(file, **dict(zip(names, session.run(names, {"images": np.load(images)}), strict=True)))
        assert not any(each.partition(".")[0] in ("model_patch", "tensorflow") for each in sys.modules), (
            "not on its own"
        )
        print(file, flush=True)


if __name__ == "__main__":
    main()
