"""The trunk that the package ships: `bundled/card.md` says what it was trained on and how to reproduce it."""

import dataclasses
from pathlib import Path

from model_patch.errors import ModelPatchError
from model_patch.spec import Spec, parse
from model_patch.trunk import Trunk
from model_patch.trunks.applications import open_application

FOLDER = Path(__file__).parent / "bundled"
WEIGHTS = "trunk.safetensors"
NET = "keras:MobileNetV2?alpha=0.35"
IMAGE_SIZE = 48


def open_bundled(spec: Spec, image_size: int | None = None, folder: Path = FOLDER) -> Trunk:
    """Opens `bundled`: MobileNetV2 0.35, 48 px by default.

    Args:
        spec: the parsed spec; takes nothing after its name.
        image_size: another size in pixels; the weights are the same.
        folder: where the weights lie.

    Raises:
        ModelPatchError: the spec has more than its name, the installed package lacks the weights, or they are damaged.
    """
    if spec.text != spec.scheme:
        raise ModelPatchError(f"{spec.text!r} has more than a name: write {spec.scheme}, and give a size as image_size")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelPatchError(f"the bundled trunk's weights are not at {weights}: install model_patch again")
    # Not parsed from text: a path may hold characters that mean something in a spec.
    net = parse(NET)
    net = dataclasses.replace(net, options={**net.options, "weights": str(weights)})
    trunk = open_application(net, image_size or IMAGE_SIZE)
    return Trunk(trunk.model, spec.text, trunk.preprocessing)
