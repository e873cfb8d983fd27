"""Image data sets of Hugging Face."""

from typing import Any

from model_patch.data import split_names
from model_patch.data.images import ImageData
from model_patch.data.rows import Row, open_rows
from model_patch.errors import ModelPatchError
from model_patch.files import as_path, read_bytes
from model_patch.spec import Spec

LABELS = ("label", "labels", "class", "fine_label", "category")
"""Names of columns that are looked for where none is a class label and the spec names none."""


def open_huggingface(spec: Spec, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens `hf:NAME[?config=CONFIG&image=COLUMN&label=COLUMN]`, see `data.labelled_files`.

    NAME is a data set on the Hub, a folder that `save_to_disk` wrote, or a folder that `load_dataset` reads, such as one of
    Parquet files. Splits are known by their names, see `data.split_names`; others are left out.

    Raises:
        ModelPatchError: `datasets` is not installed; there is no such data set, or it cannot be downloaded; it has no
            column of images or of labels; or as `open_rows`.
    """
    options = spec.take(config="", image="", label="")
    if not spec.rest:
        raise ModelPatchError(f"{spec.text!r} names no data set: expected hf:NAME")
    splits = _load(spec.rest, options["config"] or None)
    features = next(iter(splits.values())).features
    image, label = _columns(spec, features, options["image"], options["label"])
    import datasets

    splits = {name: each.cast_column(image, datasets.Image(decode=False)) for name, each in splits.items()}
    names = getattr(features[label], "names", None)
    rows = []
    for split, each in splits.items():
        part = split_names.part_of(split) or ""
        for i, value in enumerate(each.with_format(None)[label]):
            known = value is not None and (names is None or 0 <= value < len(names))
            text = str(names[value] if names else value) if known else ""
            problem = "" if known and text else "no label"
            # Its contents are those of the fingerprint, so that a stamp has nothing to add.
            rows.append(Row(f"row {i} of {split}", f"{split}/{i}", text, part, problem, (0, 1)))

    def read(path: str) -> bytes:
        split, _, i = path.removeprefix(f"{spec.text}/").rpartition("/")
        held = splits[split][int(i)][image] or {}
        if held.get("bytes") is None and not held.get("path"):
            raise ValueError("no image")
        return held["bytes"] if held.get("bytes") is not None else read_bytes(held["path"])

    source = f"{spec.text} {' '.join(each._fingerprint for each in splits.values())}"
    checks: dict[str, Any] = {"skip_bad_images": skip_bad_images, "verify_images": verify_images}
    name = as_path(spec.rest).name
    return open_rows(rows, source, spec.text, name, labels=tuple(names or ()), read=read, **checks)


def _load(name: str, config: str | None) -> dict:
    try:
        import datasets
    except ImportError:
        raise ModelPatchError("hf:NAME needs a package that is not installed: pip install datasets") from None
    path = as_path(name)
    try:
        if any((path / each).is_file() for each in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config)
    except Exception as error:  # Errors of the network, of files and of each data set's own form.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelPatchError(f"the data set {name!r} of Hugging Face cannot be opened ({reason})") from error
    if not isinstance(found, datasets.DatasetDict):
        return {split_names.TRAIN: found}
    if len(found) == 1:
        return {split_names.TRAIN: next(iter(found.values()))}
    return {split: each for split, each in found.items() if split_names.part_of(split)}


def _columns(spec: Spec, features, image: str, label: str) -> tuple[str, str]:
    """Returns the columns of the image and of the label."""
    import datasets

    images = [name for name, each in features.items() if isinstance(each, datasets.Image)]
    labels = [name for name, each in features.items() if isinstance(each, datasets.ClassLabel)]
    labels += [name for name in LABELS if name in features]
    image, label = image or next(iter(images), ""), label or next(iter(labels), "")
    if image not in images or label not in features:
        raise ModelPatchError(
            f"{spec.text!r} has the columns {', '.join(features)}: expected one of images and one of labels; name them with "
            "?image=COLUMN&label=COLUMN"
        )
    return image, label
