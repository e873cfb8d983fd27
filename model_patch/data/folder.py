"""Images in folders, one folder per class.

    photos/cat/1.jpg  photos/dog/2.png  ...       or the same below  photos/train/, photos/val/ and photos/test/

Other usual names are known in any case, such as `Training`, `valid` and `dev`, see `data.split_names`. A validation
folder without a test folder is tested on. Where there is neither, a fifth of the images becomes the test split.

With `?type=multi_label` each folder is of a label, and an image has those of all folders that it is in: as a link, or as a copy
with the same contents. Images beside these folders have no label, or are what the links lead to.

What files of real life become, and what is left out, are the rules of `data.image_files`; one note sums up where they applied.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model_patch.data import image_files, split_names
from model_patch.data.images import ImageData
from model_patch.data.labelled_files import File, Found, Listed, check_classes, open_listed
from model_patch.data.rows import MULTI_LABEL, multi_hot
from model_patch.errors import ModelPatchError, require_known
from model_patch.files import as_path, is_remote, joined, listing, read_bytes
from model_patch.progress import progress
from model_patch.spec import Spec
from model_patch.tasks import CLASSIFICATION

_logger = logging.getLogger(__name__)


def open_folder(spec: Spec, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens `folder:PATH[?type=multi_label]`, see `data.labelled_files`.

    Args:
        spec: the parsed spec.
        skip_bad_images: leave out images that cannot be read, with a note, instead of failing.
        verify_images: decode every image that was not decoded before, so that all that cannot be read are found now.

    Raises:
        ModelPatchError: the folder is missing or is none; it has no two class folders; a class has no image; an image
            cannot be read; train and test folders have different classes; it is not clear which folder is which.
    """
    type = spec.take(type=CLASSIFICATION)["type"]
    require_known("type", [type], [CLASSIFICATION, MULTI_LABEL])
    root = as_path(spec.rest)
    if not spec.rest or not root.exists():
        raise ModelPatchError(f"the folder {spec.rest!r} does not exist: expected folder:PATH with class folders in it")
    if not root.is_dir():
        raise ModelPatchError(f"{root} is a file: expected a folder with class folders in it")
    found: Found = defaultdict(list)
    folders = _layout(root, found)
    train_folder = folders[split_names.TRAIN]
    labels = _labels(root, train_folder, found)
    for each in folders.values():
        own = set(_labels(root, each, found)) if each != train_folder else set(labels)
        differing = sorted(own ^ set(labels) if type == CLASSIFICATION else own - set(labels))
        if differing:
            raise ModelPatchError(
                f"the class {differing[0]!r} is in only one of {train_folder} and {each}: expected it in both"
            )
    list_files = _files if type == CLASSIFICATION else _united
    files = {part: list_files(root, each, labels, found) for part, each in folders.items()}
    listed = Listed(
        root, root, labels, files, found, lambda part, name: folders.get(part, train_folder) / name, type=type
    )
    for part in files:
        check_classes(listed, part)
    return open_listed(listed, root.resolve().name, skip_bad_images, verify_images)


def _layout(root: Path, found: Found) -> dict[str, Path]:
    """Returns the folder of each part of the data, the training images at least; warns of folders that are left out.

    Raises:
        ModelPatchError: two folders are for the same part, or folders beside that to train on could be classes.
    """
    folders = [root / name for name in _folders(root, root, defaultdict(list))]
    # A folder `train` that holds images is a class, beside `bus` and `car`.
    splits = {folder.name: folder for folder in folders if _folders(root, folder, defaultdict(list))}
    train = _only(root, splits, split_names.TRAIN)
    if not train:
        return {split_names.TRAIN: root}
    test, validation = _only(root, splits, split_names.TEST), _only(root, splits, split_names.VALIDATION)
    if not test:
        test, validation = validation, None
    parts = {split_names.TRAIN: train, split_names.VALIDATION: validation, split_names.TEST: test}
    used = {part: folder for part, folder in parts.items() if folder}
    left_out = [folder for folder in folders if folder not in used.values()]
    classes = [each for each in left_out if not split_names.part_of(each.name) and _holds_images(each)]
    if classes and not test:
        raise ModelPatchError(
            f"{root} has {train.name} with class folders in it, and beside it {classes[0].name} with images: expected class "
            f"folders, or {train.name} and a folder such as test"
        )
    if left_out:
        tested = f"images to test on are in {test.name}" if test else "a fifth of them is split off to test on"
        names = ", ".join(folder.name for folder in left_out)
        _logger.warning("%s: images to train on are in %s, %s; left out: %s", root, train.name, tested, names)
    classes_and_splits = {folder.name for folder in folders}
    for each in listing(root, stamps=False):
        if each.name not in classes_and_splits:
            found[image_files.HIDDEN if image_files.is_hidden(each.name) else image_files.BESIDE].append(each.name)
    return used


def _only(root: Path, splits: dict[str, Path], part: str) -> Path | None:
    names = [name for name in splits if split_names.part_of(name) == part]
    if len(names) > 1:
        raise ModelPatchError(f"{root} has {names[0]} and {names[1]}, both {part} folders: rename or move one of them")
    return splits[names[0]] if names else None


def _holds_images(folder: Path) -> bool:
    return any(image_files.extension(each.name) in image_files.EXTENSIONS for each in listing(folder, stamps=False))


def _folders(root: Path, folder: Path, found: Found) -> list[str]:
    """Returns the names of the class folders in a folder; what else is in it is put into `found`."""
    names = []
    for each in listing(folder, stamps=False):
        leads_back = each.is_link and each.is_folder and folder.resolve().is_relative_to((folder / each.name).resolve())
        if image_files.is_hidden(each.name):
            rule = image_files.HIDDEN
        elif leads_back or (each.is_link and not each.is_folder and each.modified < 0):
            rule = image_files.ASTRAY
        elif each.is_folder:
            names.append(each.name)
            continue
        else:
            rule = image_files.BESIDE
        found[rule].append(_relative(root, folder, each.name))
    return names


def _relative(root: Path, folder: Path, name: str) -> str:
    return name if folder == root else f"{folder.name}/{name}"


def _labels(root: Path, folder: Path, found: Found) -> tuple[str, ...]:
    labels = tuple(_folders(root, folder, found))
    if len(labels) < 2:
        of_one = f"only one, {labels[0]!r}," if labels else "none"
        raise ModelPatchError(
            f"{folder} has {of_one} of the class folders that were expected: at least two, with images"
        )
    for name in labels:
        if any(
            "\ud800" <= character <= "\udfff" for character in name
        ):  # Bytes that are no UTF-8; no patch could hold them.
            raise ModelPatchError(f"the class folder {name!r} in {folder} has a name that is no text: rename it")
    return labels


def _files(root: Path, folder: Path, labels: Sequence[str], found: Found) -> list[File]:
    """Returns the images of each class; what else is in the class folders is put into `found`."""
    files = []
    for label, name in enumerate(labels):
        inside = _relative(root, folder, name)
        if not (folder / name).is_dir():
            continue  # A label that is in another part of the data.
        for each in listing(folder / name):
            relative = f"{inside}/{each.name}"
            if image_files.is_hidden(each.name):
                found[image_files.HIDDEN].append(relative)
            elif each.is_folder:
                found[image_files.INNER].append(relative)
            elif image_files.extension(each.name) in image_files.EXTENSIONS:
                files.append(File(relative, label, each.num_bytes, each.modified))
            else:
                found[image_files.FOREIGN].append(relative)
    return files


def _united(root: Path, folder: Path, labels: Sequence[str], found: Found) -> list[File]:
    """Returns each image once, with all its labels, those beside the folders of the labels too."""
    inside = [each for each in listing(folder) if not each.is_folder and not image_files.is_hidden(each.name)]
    beside = [
        File(_relative(root, folder, each.name), -1, each.num_bytes, each.modified)
        for each in inside
        if image_files.extension(each.name) in image_files.EXTENSIONS and each.num_bytes >= 0
    ]
    used = {file.path for file in beside}
    found[image_files.BESIDE] = [path for path in found[image_files.BESIDE] if path not in used]
    images: dict[object, list[Any]] = defaultdict(list)
    for file, key in _keys(root, [*beside, *_files(root, folder, labels, found)]):
        images[key].append(file)
    return [
        copies[0]._replace(label=multi_hot({file.label for file in copies}, len(labels))) for copies in images.values()
    ]


def _keys(root: Path, files: Sequence[File]) -> Iterator[tuple[File, object]]:
    """Yields each file with a key that those of equal contents share. Only files of equal size are read, each once."""
    sizes = Counter(file.num_bytes for file in files)
    read: dict[object, object] = {}
    for file in progress(files, "comparing images", unit="image"):
        if sizes[file.num_bytes] == 1:
            yield file, file.path
            continue
        path = as_path(joined(root, file.path))
        try:
            status = None if is_remote(path) else path.stat()
            place = (status.st_dev, status.st_ino) if status else file.path  # Links have that of their target.
            if place not in read:
                read[place] = hashlib.sha256(read_bytes(path)).digest()
            yield file, read[place]
        except OSError:
            yield file, file.path
