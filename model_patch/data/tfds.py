"""Images of TensorFlow Datasets."""

import itertools
import math
from typing import Any

from model_patch.data.decoding import decode
from model_patch.data.images import ImageData, Split
from model_patch.data.split_names import TEST, VALIDATION, named
from model_patch.errors import ModelPatchError, unknown
from model_patch.spec import Spec


def open_tfds(spec: Spec) -> ImageData:
    """Opens `tfds:NAME[?data_dir=FOLDER&train=SPLIT&validation=SPLIT&test=SPLIT]`.

    Splits are written as TFDS writes them, for example `train[:1000]`. By default `train` is for training, and `test`,
    or else `validation`, for testing; where there is neither, the last fifth of `train`. Where neither `train` nor `test`
    is given and there are both a test and a validation split, each is used for what its name says. Images come in the order
    in which TFDS wrote them, which is random for all but data sets written with `disable_shuffling`.

    Raises:
        ModelPatchError: there is no such data set, or it is not on this machine and cannot be
            downloaded; a split is unknown or empty, or two share images; the examples are not an image and a class label.
    """
    options = spec.take(data_dir="", train="", validation="", test="")
    if not spec.rest:
        raise ModelPatchError(f"{spec.text!r} names no data set: expected tfds:NAME")
    builder = open_builder(spec.rest, options["data_dir"] or None)
    info = builder.info
    keys = _keys(info)
    train, validation, test = options["train"] or "train", options["validation"], options["test"]
    notes = []
    if info.disable_shuffling:
        notes.append(f"TFDS wrote {info.name} without shuffling: the first images of it may all be of one class")
    if not test:
        test, *_ = *named(info.splits, TEST), *named(info.splits, VALIDATION), ""
        if not (validation or options["train"]) and test in named(info.splits, TEST):
            validation, *_ = *named(info.splits, VALIDATION), ""
    if not test:
        if train not in info.splits or info.disable_shuffling:
            raise ModelPatchError(f"{info.name} has no test split: give ?train=SPLIT&test=SPLIT out of {_splits(info)}")
        notes.append(f"{info.name} has no test split: the last fifth of {train!r} is used")
        train, test = f"{train}[:80%]", f"{train}[80%:]"
    labels = tuple(info.features[keys[1]].names)
    names = {"train": train, "test": test} | ({"validation": validation} if validation else {})
    for one, other in itertools.combinations(names.values(), 2):
        check_apart(info, one, other)
    splits: dict[str, Any] = {part: _split(builder, name, *keys) for part, name in names.items()}
    return ImageData(info.name, labels, augmentation="crop+flip", notes=tuple(notes), **splits)


def open_builder(name: str, data_dir: str | None):
    """Returns the builder of a data set that is on this machine, after a download if there is need.

    Raises:
        ModelPatchError: the data set is not here and cannot be prepared.
    """
    import tensorflow_datasets as tfds

    place = data_dir or tfds.core.constants.DATA_DIR
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        raise ModelPatchError(f"there is no data set {name!r}, neither in TFDS nor in its folder {place}") from None
    except Exception as error:  # Each data set's own code runs here, over a network: anything may be raised.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelPatchError(
            f"the data set {name!r} is not in {place} and could not be prepared there ({reason}): prepare it where "
            f"that works, copy the folder, and name it with --data='tfds:{name}?data_dir=FOLDER'"
        ) from error
    return builder


def find_split(info, name: str):
    """Returns a split of a data set.

    Args:
        info: the data set's `tfds.core.DatasetInfo`.
        name: the split as TFDS writes it, for example `train[:1000]`.

    Raises:
        ModelPatchError: there is no such split, or it has no images.
    """
    try:
        split = info.splits[name]
        num_examples = split.num_examples
    except (KeyError, ValueError, AssertionError):
        raise unknown(f"split of {info.name}", name, info.splits) from None
    if not num_examples:
        raise ModelPatchError(f"the split {name!r} of {info.name} has no images: expected at least one")
    return split


def check_apart(info, train: str, test: str):
    """Checks that two splits have no image in common.

    Raises:
        ModelPatchError: they have, or as `find_split`.
    """
    trained, tested = (
        [
            (each.filename, each.skip, each.examples_in_shard if each.take < 0 else each.skip + each.take)
            for each in find_split(info, name).file_instructions
        ]
        for name in (train, test)
    )
    both = sum(
        max(0, min(end, other_end) - max(start, other_start))
        for file, start, end in trained
        for other, other_start, other_end in tested
        if file == other
    )
    if both:
        raise ModelPatchError(
            f"the splits {train!r} and {test!r} of {info.name} have {both} images in common: give splits that are apart"
        )


def _keys(info) -> tuple[str, str]:
    """Returns the keys of image and label in an example."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys or ("image", "label")
    kinds = {key: type(feature) for key, feature in info.features.items()}
    if [kinds.get(key) for key in keys] != [tfds.features.Image, tfds.features.ClassLabel]:
        found = ", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items())
        raise ModelPatchError(f"examples of {info.name} are not an Image and a ClassLabel: they have {found}")
    return keys


def _split(builder, name: str, image_key: str, label_key: str) -> Split:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    info = builder.info
    num_images = find_split(info, name).num_examples
    # Images stay encoded until they are used, and other features are not read at all.
    wanted = tfds.decode.PartialDecoding({image_key: True, label_key: True}, {image_key: tfds.decode.SkipDecoding()})

    def stored(number: int):
        examples = builder.as_dataset(split=name, shuffle_files=False, decoders=wanted)
        return examples.map(lambda x: (x[image_key], tf.cast(x[label_key], "int64"))).take(number)

    _, label = next(iter(stored(1)), (None, 0))
    if label < 0:
        raise ModelPatchError(f"the split {name!r} of {info.name} has no labels: expected another of {_splits(info)}")
    sides = info.features[image_key].shape[:2]
    image_bytes = None if None in sides else lambda least_side: num_images * math.prod(sides) * 3
    stored_bytes = info.dataset_size * num_images // info.splits.total_num_examples
    return Split(num_images, stored, decode, stored_bytes, image_bytes)


def _splits(info) -> str:
    return ", ".join(sorted(info.splits))
