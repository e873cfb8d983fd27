import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError
from model_patch.data import open_data

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources")  # TFDS needs it to write a data set, but does not install it.

LABEL = tfds.features.ClassLabel(names=["across", "down"])
IMAGE = tfds.features.Image(shape=(None, None, 1))


def stripes(number: int, label=None):
    """Grey images 12 high and 14 or more wide, striped across (label 0) or down (label 1)."""

    def generate():
        for i in range(number):
            image = np.zeros((12, 14 + i, 1), "uint8")
            if i % 2:
                image[:, ::2] = 255
            else:
                image[::2] = 255
            yield {"image": image, "label": i % 2 if label is None else label, "id": str(i)}

    signature = {"image": tf.TensorSpec((None, None, 1), "uint8"), "label": tf.TensorSpec((), "int64")}
    return tf.data.Dataset.from_generator(generate, output_signature={**signature, "id": tf.TensorSpec((), "string")})


def write(data_dir, name, label_feature=LABEL, **splits):
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": IMAGE, "label": label_feature, "id": tfds.features.Text()}),
        split_datasets=splits,
        data_dir=data_dir,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write(folder, "stripes", train=stripes(20), validation=stripes(10))
    write(folder, "tested", train=stripes(4), validation=stripes(2), test=stripes(6))
    write(folder, "alone", train=stripes(20))
    write(folder, "hidden", train=stripes(4), test=stripes(4, label=-1))
    write(folder, "numbers", label_feature=tfds.features.Scalar(dtype=np.int64), train=stripes(4))
    return folder


def test_a_data_set_on_disk_is_read(data_dir):
    data = open_data(f"tfds:stripes?data_dir={data_dir}")
    assert (data.name, data.labels, data.augmentation, data.notes) == ("stripes", ("across", "down"), "crop+flip", ())
    assert (data.train.num_images, data.test.num_images) == (20, 10)
    widths = []
    for image, label in data.train.dataset().as_numpy_iterator():
        assert image.dtype == np.uint8 and image.shape[::2] == (12, 3) and label.dtype == np.int64
        assert image[:, 1].any() == (label == 0)
        widths.append(image.shape[1])
    assert sorted(widths) == list(range(14, 34)) and widths != sorted(widths)
    assert [image.shape[1] for image, _ in data.train.dataset(7)] == widths[:7]


def test_test_goes_before_validation_and_splits_can_be_chosen(data_dir):
    data = open_data(f"tfds:tested?data_dir={data_dir}")
    assert [split.num_images for split in (data.train, data.validation, data.test)] == [4, 2, 6]
    data = open_data(f"tfds:tested?data_dir={data_dir}&train=train[:2]&validation=train[2:]&test=test")
    assert [split.num_images for split in (data.train, data.validation, data.test)] == [2, 2, 6]
    assert open_data(f"tfds:tested?data_dir={data_dir}&train=train+validation&test=test").validation is None
    data = open_data(f"tfds:tested?data_dir={data_dir}&train=train[:75%]&test=validation+test")
    assert (data.train.num_images, data.test.num_images) == (3, 8)
    assert len(list(data.test.dataset())) == 8


def test_without_a_test_split_the_last_fifth_is_used_with_a_note(data_dir):
    data = open_data(f"tfds:alone?data_dir={data_dir}")
    widths = [[image.shape[1] for image, _ in split.dataset()] for split in (data.train, data.test)]
    assert [len(each) for each in widths] == [16, 4] and sorted(widths[0] + widths[1]) == list(range(14, 34))
    assert data.notes == ("alone has no test split: the last fifth of 'train' is used",)


def test_what_cannot_be_used_is_named(data_dir):
    with pytest.raises(ModelPatchError, match="unknown split of stripes 'dev': expected one of train, validation"):
        open_data(f"tfds:stripes?data_dir={data_dir}&test=dev")
    with pytest.raises(ModelPatchError, match="alone has no test split: give .train=SPLIT&test=SPLIT out of train"):
        open_data(f"tfds:alone?data_dir={data_dir}&train=train[:50%25]")
    with pytest.raises(ModelPatchError, match=r"examples of numbers are not .*label \(Scalar\)"):
        open_data(f"tfds:numbers?data_dir={data_dir}")
    with pytest.raises(
        ModelPatchError, match="the split 'test' of hidden has no labels: expected another of test, train"
    ):
        open_data(f"tfds:hidden?data_dir={data_dir}")
    with pytest.raises(
        ModelPatchError, match=f"there is no data set 'no_such', neither in TFDS nor in its folder {data_dir}"
    ):
        open_data(f"tfds:no_such?data_dir={data_dir}")
    with pytest.raises(ModelPatchError, match="'tfds:' names no data set"):
        open_data("tfds:")


def test_splits_without_images_or_with_the_same_images_are_refused(data_dir):
    for train, test, message in (
        ("train[:0]", "validation", r"the split 'train\[:0\]' of stripes has no images"),
        ("train", "validation[5:5]", r"the split 'validation\[5:5\]' of stripes has no images"),
        ("train", "train", "the splits 'train' and 'train' of stripes have 20 images in common"),
        ("train[:60%]", "train[50%:]", "have 2 images in common"),
        ("train+validation", "validation[8:]", "have 2 images in common"),
    ):
        with pytest.raises(ModelPatchError, match=message):
            open_data(f"tfds:stripes?data_dir={data_dir}&train={train}&test={test}")
    data = open_data(f"tfds:stripes?data_dir={data_dir}&train=train[:50%]+validation[:5]&test=train[50%:]")
    assert (data.train.num_images, data.test.num_images) == (15, 10)


def test_a_data_set_that_cannot_be_downloaded_says_where_to_put_it(tmp_path):
    # ImageNet has to be fetched by hand, so this fails alike with a network and without.
    expected = (
        f"'imagenet2012' is not in {tmp_path} and could not be prepared there .*--data='tfds:imagenet2012.data_dir="
    )
    with pytest.raises(ModelPatchError, match=expected):
        open_data(f"tfds:imagenet2012?data_dir={tmp_path}")
