"""Detection data of TensorFlow Datasets: COCO, VOC and others whose examples hold `objects` with `bbox` and `label`."""

from model_patch.data.decoding import decode, orientation
from model_patch.data.images import Split
from model_patch.data.tfds import check_apart, find_split, open_builder
from model_patch.detection.data.images import DetectionData, tidy, turned
from model_patch.errors import ModelPatchError
from model_patch.spec import Spec

NUM_PROBED = 50
"""If none of this many test images has a box, the boxes are not public: those of COCO and of VOC 2012 are kept by servers."""

IGNORED = ("is_crowd", "is_difficult")
"""Names of the flags of an object that training and evaluation ignore."""


def open_tfds(spec: Spec) -> DetectionData:
    """Opens `tfds:NAME[?data_dir=FOLDER&train=SPLIT&test=SPLIT]`, for example `tfds:coco/2017` or `tfds:voc/2007`.

    Splits are written as TFDS writes them, for example `train+validation` or `train[:1000]`. By default `train` is for
    training, and `test` for testing, or else `validation`, also where the test images come without boxes.

    Raises:
        ModelPatchError: as for `tfds:` in `model_patch.data`, or the examples are no images with boxes and classes.
    """
    options = spec.take(data_dir="", train="train", test="")
    if not spec.rest:
        raise ModelPatchError(f"{spec.text!r} names no data set: expected tfds:NAME, for example tfds:voc/2007")
    builder = open_builder(spec.rest, options["data_dir"] or None)
    info = builder.info
    labels = _labels(info)
    train = _split(builder, options["train"])
    notes = []
    tested = options["test"] or ("test" if "test" in info.splits else "validation")
    test = _split(builder, tested)
    has_boxes = options["test"] or any(len(boxes) for _, boxes, _, _ in test.stored(NUM_PROBED))
    if not has_boxes and "validation" in info.splits:
        notes.append(f"the test split of {info.name} has no boxes: the validation split is used")
        tested = "validation"
        test = _split(builder, tested)
    check_apart(info, options["train"], tested)
    return DetectionData(info.name, labels, train, test, "crop+flip", tuple(notes))


def _labels(info) -> tuple[str, ...]:
    """Returns the class names, once it is known that the examples are what is expected."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    try:
        objects = info.features["objects"].feature
        fits = isinstance(info.features["image"], kinds.Image) and isinstance(objects["bbox"], kinds.BBoxFeature)
        label = objects["label"]
    except (KeyError, AttributeError, TypeError):
        fits, label = False, None
    if not fits or not isinstance(label, kinds.ClassLabel):
        found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in info.features.items())
        raise ModelPatchError(
            f"examples of {info.name} are not an image and objects with bbox and label: they have {found}"
        )
    return tuple(label.names)


def _split(builder, name: str) -> Split:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    info = builder.info
    num_images = find_split(info, name).num_examples
    flags = [flag for flag in IGNORED if flag in info.features["objects"].feature]
    wanted = {"bbox": True, "label": True, **dict.fromkeys(flags, True)}
    decoding = tfds.decode.PartialDecoding({"image": True, "objects": wanted}, {"image": tfds.decode.SkipDecoding()})

    def stored(number: int):
        def parts(example):
            objects = example["objects"]
            boxes = tf.reshape(objects["bbox"], (-1, 4))
            ignored = tf.zeros(tf.shape(boxes)[0], tf.bool)
            for flag in flags:
                ignored |= objects[flag]
            # TFDS draws boxes on the pixels as stored.
            boxes = turned(boxes, orientation(example["image"]))
            return example["image"], *tidy(boxes, tf.cast(objects["label"], "int32"), ignored)

        examples = builder.as_dataset(split=name, shuffle_files=False, decoders=decoding)
        return examples.map(parts).take(number)

    stored_bytes = info.dataset_size * num_images // info.splits.total_num_examples
    return Split(num_images, stored, decode, stored_bytes, None)
