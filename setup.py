"""Packaging: `pip install .` gives all that the README uses; `.[gpu]` adds NVIDIA's libraries."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).with_name("model_patch") / "__init__.py"  # Read, not imported: its dependencies come later.
VERSION = re.search(r'__version__ = "(.+)"', PACKAGE.read_text())[1]

setup(
    name="model_patch",
    version=VERSION,
    description="One trunk, many tasks, a small patch for each: reference implementation of K for the Price of 1",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["model_patch", "model_patch.*"]),
    package_data={
        "model_patch": ["*.pyi"],
        "model_patch.trunks": ["bundled/*"],
        "model_patch.experiments.report": ["*.j2"],
    },
    install_requires=[
        "absl-py",
        "ai-edge-litert",  # Runs exported .tflite files to verify them; tensorflow writes them.
        "cleanlab",  # Finds labels that may be wrong.
        "h5py",
        "imagehash",  # Finds near duplicates.
        "importlib_resources",  # tensorflow-datasets imports it, but does not require it.
        "jinja2",
        "keras>=3.15,<4",
        "lazy_loader>=0.6",  # Earlier ones let the module model_patch.bind hide the function.
        "matplotlib",
        "ml_collections",
        "numpy",
        "pillow",
        "pycocotools",
        "rich",
        "safetensors",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "setuptools<81",  # tensorflow-hub 0.16.1 imports pkg_resources, which later ones do not have.
        "tensorboard",
        # Not the smaller tensorflow-cpu: tensorflow-hub requires tf-keras, which requires `tensorflow`, and both
        # packages beside one another would overwrite each other's files.
        "tensorflow>=2.21",
        "tensorflow-datasets",
        "tensorflow-hub",
        "threadpoolctl",
        "tqdm",
        "universal_pathlib",  # Remote paths: pathlib's methods over fsspec's file systems.
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21"],
        "tpu": ["tensorflow-tpu>=2.19"],
        "jax": ["jax"],
        "onnx": ["onnx", "onnxruntime", "tf2onnx"],
        "kerashub": ["keras-hub"],
        "ray": ["ray>=2.60"],
        "serve": ["prometheus_client", "ray[serve]>=2.60", "starlette", "tensorflow-serving-api>=2.19"],
        "s3": ["s3fs"],
        "gcs": ["gcsfs"],
        "kaggle": ["kagglehub"],  # Downloads models of Kaggle; what is in its cache opens without it.
        "hf": ["datasets"],  # It brings huggingface_hub, for paths such as hf://datasets/NAME.
        # To be timed beside it. Wheels for CPUs alone are smaller: --extra-index-url https://download.pytorch.org/whl/cpu
        "torch": ["peft", "torch", "torchvision"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "test": [
            "httpx",
            "hypothesis",
            "ipykernel",
            "mlxtend",
            "onnx",
            "onnxruntime",
            "tf2onnx",
            "moto[server]",
            "mypy",
            "nbclient",
            "pytest",
            "pytest-xdist",
            "ruff",
            "s3fs",
        ],
    },
)
