"""The nets of torchvision, to be timed beside the same of Keras, where PyTorch is installed."""

import importlib
import importlib.util
import sys
from collections.abc import Callable

import keras
import numpy as np

from model_patch.experiments.report.machine import num_cores
from model_patch.spec import parse

CHANNELS_FIRST, COMPILED = ", channels first", ", compiled"
"""Ends of a form: PyTorch's default layout instead of channels last, which is faster on CPUs; and `torch.compile`."""

_NETS = {"MobileNetV2": ("mobilenet_v2", {}), "InceptionV3": ("inception_v3", {"aux_logits": False})}


def why_not(trunk: str) -> str:
    """Returns why a trunk's net cannot be timed in PyTorch, given its spec; empty if it can."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "torchvision")):
        return "PyTorch is not installed"
    return "" if parse(trunk).rest in _NETS else "torchvision has no such net"


def import_torch():
    """Returns torch and torchvision.

    Beside TensorFlow without Triton, which is for GPUs: imported after TensorFlow it ends the process.
    """
    if keras.backend.backend() == "tensorflow":
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    return importlib.import_module("torch"), importlib.import_module("torchvision")


def predict(
    trunk: str, classes: int, threads: int = 0, *, compiled: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the forward pass of a net with random weights, on the GPU if there is one: images `(batch, height, width, 3)`, or
    what `on_device` makes of them, to logits.

    Args:
        trunk: spec of the trunk whose net it is.
        classes: number of classes.
        threads: number of threads of an operation; 0 for the number of cores.
        compiled: by `torch.compile`.
    """
    torch, _ = import_torch()
    torch.set_num_threads(threads or num_cores())
    device = _device()
    model = _model(trunk, classes).to(device=device, memory_format=torch.channels_last).eval()
    net = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def run(images):
        return net(torch.as_tensor(images).to(device).permute(0, 3, 1, 2)).cpu().numpy()

    return run


def on_device(images: np.ndarray):
    """Returns images as a tensor on the GPU if there is one, so that copying them is not timed."""
    torch, _ = import_torch()
    return torch.from_numpy(images).to(_device())


def train(
    form: str, trunk: str, images: np.ndarray, labels: np.ndarray, classes: int, rate: float
) -> Callable[[], float]:
    """Returns a training step on one batch, always the same, by Adam, on the GPU if there is one; it returns the loss.

    Args:
        form: what is trained, `full`, `last` or all batch norms with the last layer; norms are in inference mode where it has
            `frozen`. It may end in `CHANNELS_FIRST` or `COMPILED`.
        trunk: spec of the trunk whose net it is.
        images: float32 `(batch, height, width, 3)`.
        labels: `(batch,)`.
        classes: number of classes.
        rate: learning rate.
    """
    torch, _ = import_torch()
    torch.set_num_threads(num_cores())
    device = _device()
    layout = torch.contiguous_format if CHANNELS_FIRST in form else torch.channels_last
    trained = form.partition(",")[0]
    model = _model(trunk, classes).to(device=device, memory_format=layout)
    head = model.classifier if hasattr(model, "classifier") else model.fc
    for module in model.modules():
        is_trained = trained == "full" or (trained != "last" and isinstance(module, torch.nn.BatchNorm2d))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = is_trained
    head.requires_grad_(True)
    model.train(trained != "last" and "frozen" not in form)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).to(memory_format=layout)
    y = torch.from_numpy(labels).to(device)
    net = torch.compile(model) if COMPILED in form else model

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _device() -> str:
    torch, _ = import_torch()
    return "cuda" if torch.cuda.is_available() else "cpu"


def _model(trunk: str, classes: int):
    _, torchvision = import_torch()
    name, options = _NETS[parse(trunk).rest]
    return getattr(torchvision.models, name)(num_classes=classes, **options)
