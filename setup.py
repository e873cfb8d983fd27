"""Packaging: `pip install -e .[cpu]` on any computer, `.[gpu]` with an NVIDIA card."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).with_name("model_patch") / "__init__.py"  # Read, not imported: its dependencies come later.
VERSION = re.search(r'__version__ = "(.+)"', PACKAGE.read_text())[1]

# tensorflow-cpu has wheels for Linux and Windows on x86-64 only; elsewhere the package `tensorflow` is the one for CPUs.
HAS_TENSORFLOW_CPU = "(sys_platform == 'linux' or sys_platform == 'win32') and platform_machine in 'x86_64 AMD64'"
HAS_NOT = "(sys_platform != 'linux' and sys_platform != 'win32') or platform_machine not in 'x86_64 AMD64'"

setup(
    name="model_patch",
    version=VERSION,
    description="One trunk, many tasks, a small patch for each: reference implementation of K for the Price of 1",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["model_patch", "model_patch.*"]),
    package_data={"model_patch.trunks": ["bundled/*"]},
    install_requires=[
        "absl-py",
        "h5py",
        "keras>=3.15,<4",
        "matplotlib",
        "ml_collections",
        "numpy",
        "pillow",
        "rich",
        "safetensors",
        "scikit-image",
        "scikit-learn",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "cpu": [f"tensorflow-cpu>=2.21; {HAS_TENSORFLOW_CPU}", f"tensorflow>=2.21; {HAS_NOT}"],
        "gpu": ["tensorflow[and-cuda]>=2.21"],
        "tpu": ["tensorflow-tpu>=2.19"],
        "jax": ["jax"],
        # Both bring `tensorflow` of the same version beside tensorflow-cpu. The first imports pkg_resources of setuptools.
        "hub": ["tensorflow-hub", "setuptools<81"],
        "kerashub": ["keras-hub"],
        "tfds": ["tensorflow-datasets", "importlib_resources"],  # The second it imports, but does not require.
        "detection": ["pycocotools"],
        # To be timed beside it. Wheels for CPUs alone are smaller: --extra-index-url https://download.pytorch.org/whl/cpu
        "torch": ["torch", "torchvision"],
        "litert": ["ai-edge-litert"],  # Runs .tflite files; tensorflow writes them.
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "test": [
            *["ai-edge-litert", "hypothesis", "ipykernel", "mlxtend", "mypy", "nbclient", "pycocotools", "pytest"],
            *["pytest-xdist", "ruff"],
        ],
    },
)
