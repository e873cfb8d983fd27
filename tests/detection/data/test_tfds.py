import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model_patch import ModelPatchError
from model_patch.detection.data import open_detection_data

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources")  # TFDS needs it to write a data set, but does not install it.


def write(data_dir, name, flag, **splits):
    """Writes a detection data set as TFDS keeps VOC and COCO: image i has i objects, the last with the flag."""
    objects = {
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        flag: np.bool_,
    }
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "objects": tfds.features.Sequence(objects)}

    def generate(number):
        for i in range(number):
            boxes = np.array([[0.1, 0.2, 0.5, 0.3 + 0.1 * j] for j in range(i)], "float32").reshape(-1, 4)
            flags = np.arange(i) == i - 1
            yield {
                "image": np.full((12, 14 + i, 3), i, "uint8"),
                "objects": {"bbox": boxes, "label": np.arange(i) % 2, flag: flags},
            }

    signature = {
        "image": tf.TensorSpec((None, None, 3), "uint8"),
        "objects": {
            "bbox": tf.TensorSpec((None, 4), "float32"),
            "label": tf.TensorSpec((None,), "int64"),
            flag: tf.TensorSpec((None,), "bool"),
        },
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: tf.data.Dataset.from_generator(generate, args=(number,), output_signature=signature)
            for split, number in splits.items()
        },
        data_dir=data_dir,
    )


def write_photograph(data_dir):
    """Writes an image of which EXIF makes a quarter turn, with the box of its red part in the pixels as stored."""
    pixels, file = np.full((40, 20, 3), 30, "uint8"), io.BytesIO()
    pixels[4:20, 2:8] = (250, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "JPEG", exif=exif, quality=100, subsampling=0)
    objects = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "objects": tfds.features.Sequence(objects)}
    example = {"image": file.getvalue(), "objects": {"bbox": [[0.1, 0.1, 0.5, 0.4]], "label": [1]}}
    signature = {
        "image": tf.TensorSpec((), "string"),
        "objects": {"bbox": tf.TensorSpec((None, 4), "float32"), "label": tf.TensorSpec((None,), "int64")},
    }
    images = tf.data.Dataset.from_generator(lambda: iter([example]), output_signature=signature)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="photographs",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": images, "test": images},
        data_dir=data_dir,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write(folder, "voc_like", "is_difficult", train=5, validation=2, test=3)
    write(folder, "coco_like", "is_crowd", train=4, validation=3, test=1)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="numbers",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"x": tfds.features.Scalar(dtype=np.int64)}),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices({"x": np.arange(3)})},
        data_dir=folder,
    )
    return folder


def test_images_come_with_their_boxes_classes_and_flags(data_dir):
    data = open_detection_data(f"tfds:voc_like?data_dir={data_dir}")
    assert (data.name, data.labels, data.augmentation) == ("voc_like", ("cat", "dog"), "crop+flip")
    assert (data.train.num_images, data.test.num_images) == (5, 3)
    seen = []
    for image, boxes, classes, ignored in data.train.dataset().as_numpy_iterator():
        i = int(image[0, 0, 0])
        assert image.shape == (12, 14 + i, 3) and len(boxes) == i
        np.testing.assert_allclose(boxes[:, 3], [0.3 + 0.1 * j for j in range(i)], atol=1e-6)
        assert classes.tolist() == [j % 2 for j in range(i)] and ignored.tolist() == [j == i - 1 for j in range(i)]
        seen.append(i)
    assert sorted(seen) == list(range(5))


def test_without_boxes_in_the_test_split_validation_is_used_and_splits_can_be_chosen(data_dir):
    data = open_detection_data(f"tfds:coco_like?data_dir={data_dir}")  # The one test image has no object.
    assert data.test.num_images == 3
    assert data.notes == ("the test split of coco_like has no boxes: the validation split is used",)
    data = open_detection_data(f"tfds:coco_like?data_dir={data_dir}&train=train[:50%]&test=test")
    assert (data.train.num_images, data.test.num_images, data.notes) == (2, 1, ())


def test_what_is_no_detection_data_is_named(data_dir):
    with pytest.raises(
        ModelPatchError, match=r"examples of numbers are not an image and objects .* they have x \(Scalar\)"
    ):
        open_detection_data(f"tfds:numbers?data_dir={data_dir}")
    with pytest.raises(ModelPatchError, match="unknown split of voc_like 'dev'"):
        open_detection_data(f"tfds:voc_like?data_dir={data_dir}&test=dev")
    for train, test, message in (
        ("train[:0]", "test", r"the split 'train\[:0\]' of voc_like has no images"),
        ("train", "test[3:]", r"the split 'test\[3:\]' of voc_like has no images"),
        ("train[:60%]", "train[2:]", "have 1 images in common"),
    ):
        with pytest.raises(ModelPatchError, match=message):
            open_detection_data(f"tfds:voc_like?data_dir={data_dir}&train={train}&test={test}")


def test_boxes_are_turned_with_their_image(tmp_path):
    write_photograph(tmp_path)
    ((image, boxes, *_),) = (
        open_detection_data(f"tfds:photographs?data_dir={tmp_path}").train.dataset().as_numpy_iterator()
    )
    assert image.shape == (20, 40, 3)
    ymin, xmin, ymax, xmax = (boxes[0] * [20, 40, 20, 40]).round().astype(int)
    inside = np.zeros(image.shape[:2], bool)
    inside[ymin:ymax, xmin:xmax] = True
    assert ((image[..., 0] > 140) == inside).all()
