"""Calls ONNX files in a process that has ONNX Runtime and nothing of this package: proof that they stand alone.

Run as a file, `python clean_onnx.py CALLS.json`; it imports no other module of the package. CALLS holds a list of
`[MODEL.onnx, IMAGES.npy, OUTPUTS.npz, []]`. IMAGES is a float32 array `(batch, image_size, image_size, 3)` in 0..255; OUTPUTS
will hold the outputs by name.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main():
    """Loads each file, calls it and writes its outputs."""
    from onnxruntime import InferenceSession  # The package imports this module for its path.

    for model, images, file, _ in json.loads(Path(sys.argv[1]).read_text()):
        session = InferenceSession(model, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        np.savez(file, **dict(zip(names, session.run(names, {"images": np.load(images)}), strict=True)))
    assert not any(name.partition(".")[0] in ("model_patch", "tensorflow") for name in sys.modules), "not on its own"


if __name__ == "__main__":
    main()
