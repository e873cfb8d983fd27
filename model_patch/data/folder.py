"""Images in folders, one folder per class.

    photos/cat/1.jpg  photos/dog/2.png  ...       or the same below  photos/train/, photos/val/ and photos/test/

Other usual names are known in any case, such as `Training`, `valid` and `dev`, see `data.split_names`. A validation
folder without a test folder is tested on. Where there is neither, a fifth of the images are held out for testing.
What files of real life become, and what is left out, are the rules of `data.image_files`; one note sums up where they applied.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from model_patch.data import image_files, split_names
from model_patch.data.images import ImageData
from model_patch.data.labelled_files import File, Found, Listed, check_classes, open_listed
from model_patch.errors import ModelPatchError
from model_patch.files import as_path, listing
from model_patch.spec import Spec

_logger = logging.getLogger(__name__)


def open_folder(spec: Spec, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens `folder:PATH`, see `data.labelled_files`.

    Args:
        spec: the parsed spec.
        skip_bad_images: leave out images that cannot be read, with a note, instead of failing.
        verify_images: decode every image that was not decoded before, so that all that cannot be read are found now.

    Raises:
        ModelPatchError: the folder is missing or is none; it has no two class folders; a class has no image; an image
            cannot be read; train and test folders have different classes; it is not clear which folder is which.
    """
    spec.take()
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
        differing = sorted(set(labels) ^ set(_labels(root, each, found))) if each != train_folder else ()
        if differing:
            raise ModelPatchError(
                f"the class {differing[0]!r} is in only one of {train_folder} and {each}: expected it in both"
            )
    files = {part: _files(root, each, labels, found) for part, each in folders.items()}
    listed = Listed(root, root, labels, files, found, lambda part, name: folders.get(part, train_folder) / name)
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
        tested = f"images to test on are in {test.name}" if test else "a fifth of them is held out to test on"
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
