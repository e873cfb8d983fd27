"""model_patch: one trunk, many tasks, a small patch for each.

Reference implementation of Mudrakarta, Sandler, Zhmoginov and Howard, "K for the Price of 1: Parameter-efficient
Multi-task and Transfer Learning", ICLR 2019.

`__init__.pyi` lists the public names. Each is imported when it is first used, so `import model_patch` and reading a patch
file load neither Keras nor TensorFlow.
"""

import lazy_loader

__version__ = "0.1.0"  # setup.py reads it from this line.

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
