"""Detection data in COCO's JSON format: one annotation file for training, one for testing, and a folder of images.

The format: https://cocodataset.org/#format-data. Of it are read `images` (`id`, `file_name`, `width`, `height`),
`categories` (`id`, `name`) and `annotations` (`image_id`, `category_id`, `bbox` as `[x, y, width, height]` in pixels, and
`iscrowd`).
"""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from model_patch.detection.data.images import DetectionData, DetectionSplit, ragged_split
from model_patch.errors import ModelPatchError
from model_patch.files import read_json
from model_patch.preprocessing import decode
from model_patch.spec import Spec

TOLERANCE = 1.0
"""Pixels by which a box may stick out of its image without a note: annotators and rounding do that."""


def open_coco(spec: Spec) -> DetectionData:
    """Opens `coco:FOLDER[?train=train.json&test=test.json&train_images=.&test_images=.]`.

    The options are paths inside FOLDER: the annotation files, and the folders that hold the images, to which `file_name`
    is relative. For COCO 2017 as it is downloaded: `coco:FOLDER?train=annotations/instances_train2017.json&train_images=
    train2017&test=annotations/instances_val2017.json&test_images=val2017`.

    Raises:
        ModelPatchError: a file is missing or is not of the format; an image file does not exist; an annotation names an
            image or a category that is not in the file; a box lies wholly outside its image; train and test have
            different categories.
    """
    options = spec.take(train="train.json", test="test.json", train_images=".", test_images=".")
    root = Path(spec.rest).expanduser()
    if not spec.rest or not root.is_dir():
        raise ModelPatchError(f"{spec.text!r} names no folder: expected coco:FOLDER with annotation files in it")
    (labels, train, notes), (test_labels, test, more) = (
        _read(root / options[name], root / options[f"{name}_images"]) for name in ("train", "test")
    )
    if labels != test_labels:
        differing = sorted(set(labels) ^ set(test_labels)) or ["their order"]
        raise ModelPatchError(
            f"{options['train']} and {options['test']} in {root} differ in their categories ({differing[0]}): expected the "
            "same in both"
        )
    return DetectionData(root.resolve().name, labels, train, test, "crop+flip", (*notes, *more))


def _read(file: Path, folder: Path) -> tuple[tuple[str, ...], DetectionSplit, list[str]]:
    """Returns the labels, the images and notes of one annotation file."""
    content = read_json(file)
    try:
        categories = {each["id"]: str(each["name"]) for each in sorted(content["categories"], key=lambda c: c["id"])}
        images = {each["id"]: each for each in content["images"]}
        sizes = {key: (float(each["height"]), float(each["width"])) for key, each in images.items()}
        paths = {key: folder / each["file_name"] for key, each in images.items()}
        annotations = [
            (
                each["image_id"],
                each["category_id"],
                [float(x) for x in each["bbox"]],
                bool(each.get("iscrowd", 0)),
                each,
            )
            for each in content["annotations"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelPatchError(
            f"{file} is not in COCO's format ({error!r}): see https://cocodataset.org/#format-data"
        ) from None
    if not images or not categories:
        raise ModelPatchError(
            f"{file} has {len(images)} images and {len(categories)} categories: expected some of both"
        )
    for key, (height, width) in sizes.items():
        if not (height > 0 and width > 0):
            raise ModelPatchError(f"the image {key} in {file} is {width:g} x {height:g} pixels: expected its true size")
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise ModelPatchError(
            f"{len(missing)} of {len(paths)} images in {file} do not exist, such as {missing[0]}: give the folder of the "
            "images as ?train_images=..&test_images=.."
        )
    index = {key: i for i, key in enumerate(categories)}
    held = defaultdict(list)
    clipped = empty = 0
    for image, category, box, crowd, each in annotations:
        where = f"annotation {each.get('id', '?')} in {file}"
        if image not in images:
            raise ModelPatchError(f"{where} is of the image {image}, which is not among the file's images")
        if category not in index:
            raise ModelPatchError(f"{where} is of the category {category}, which is not among the file's categories")
        corners, sticks_out = _corners(box, sizes[image], where)
        clipped += sticks_out
        if (corners[2:] <= corners[:2]).any():
            empty += 1
            continue
        held[image].append((corners, index[category], crowd))
    notes = []
    if clipped:
        notes.append(
            f"{clipped} of {len(annotations)} boxes in {file} stick out of their images and were cut off there"
        )
    if empty:
        notes.append(f"{empty} of {len(annotations)} boxes in {file} have no area and were left out")
    without = len(images) - len(held)
    if without:
        notes.append(f"{without} of {len(images)} images in {file} have no boxes and are learnt as background")
    return tuple(categories.values()), _split(paths, held), notes


def _corners(box: list[float], size: tuple[float, float], where: str) -> tuple[np.ndarray, bool]:
    """Returns a box as fractions of the image, cut off at its edges, and whether it stuck out.

    Raises:
        ModelPatchError: it is no box, or lies wholly outside.
    """
    height, width = size
    if len(box) != 4 or not np.isfinite(box).all():
        raise ModelPatchError(f"{where} has the box {box}: expected [x, y, width, height] in pixels")
    x, y, w, h = box
    if x > width or y > height or x + w < 0 or y + h < 0:
        raise ModelPatchError(f"{where} has the box {box} outside its image of {width:g} x {height:g} pixels")
    sticks_out = min(x, y, width - x - w, height - y - h) < -TOLERANCE
    fractions = np.array([y / height, x / width, (y + h) / height, (x + w) / width])
    return np.clip(fractions, 0.0, 1.0).astype("float32"), sticks_out


def _split(paths: dict, held: dict) -> DetectionSplit:
    # In an order that looks random but depends on the names alone, so that the first images are a fair sample.
    keys = sorted(paths, key=lambda key: hashlib.sha256(paths[key].name.encode()).digest())
    boxes, classes, crowds = (
        [np.array([annotation[part] for annotation in held[key]]) for key in keys] for part in range(3)
    )

    def load(path):
        import tensorflow as tf

        return decode(tf.io.read_file(path), upright=False)  # As the boxes were drawn.

    files = [str(paths[key]) for key in keys]
    return ragged_split(files, [each.reshape(-1, 4) for each in boxes], classes, crowds, load, sum(map(len, files)))
