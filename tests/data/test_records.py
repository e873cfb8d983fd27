"""`tfrecord:PATTERN`: records become labelled images, and bad ones follow the rules for bad images."""

import pytest
import tensorflow as tf

from model_patch import ModelPatchError
from model_patch.data import open_data
from tests.data.test_folder import COLOURS

NAMES = tuple(COLOURS)


def png(colour):
    return tf.io.encode_png(tf.zeros((9, 7, 3), "uint8") + tf.constant(colour, "uint8")).numpy()


def example(encoded=None, label=None, text=None):
    features = {}
    if encoded is not None:
        features["image/encoded"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    if label is not None:
        features["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    if text is not None:
        features["image/class/text"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_PATCH_CACHE", str(tmp_path / "cache"))
    for name, number in (("train-00000-of-00002", 6), ("train-00001-of-00002", 6), ("validation-00000-of-00001", 3)):
        write(tmp_path / name, [example(png(COLOURS[NAMES[i % 3]]), i % 3 + 1, NAMES[i % 3]) for i in range(number)])
    return tmp_path


def colours_are_right(data):
    return all(
        tuple(image[0, 0]) == COLOURS[data.labels[label]]
        for split in (data.train, data.test)
        for image, label in split.dataset().as_numpy_iterator()
    )


def test_files_are_the_parts_that_their_names_say_and_texts_the_labels(folder):
    data = open_data(f"tfrecord:{folder}/*-of-*", verify_images=True)
    assert (data.labels, data.train.num_images, data.test.num_images) == (NAMES, 12, 3)
    assert colours_are_right(data) and data.notes == ()
    again = open_data(f"tfrecord:{folder}/*-of-*")  # Out of the cache.
    assert (again.labels, again.train.num_images) == (NAMES, 12) and colours_are_right(again)
    held_out = open_data(f"tfrecord:{folder}/train-*?test={folder}/validation-*")
    assert (held_out.train.num_images, held_out.test.num_images) == (12, 3) and colours_are_right(held_out)


def test_without_texts_labels_are_numbers_or_named_by_the_option(tmp_path):
    write(tmp_path / "all.tfrecord", [example(png(COLOURS[NAMES[i % 3]]), i % 3) for i in range(15)])
    data = open_data(f"tfrecord:{tmp_path}/all.tfrecord")
    assert data.labels == ("0", "1", "2") and data.train.num_images + data.test.num_images == 15
    data = open_data(f"tfrecord:{tmp_path}/all.tfrecord?labels={','.join(NAMES)}")
    assert data.labels == NAMES and colours_are_right(data)
    with pytest.raises(ModelPatchError, match=r"record 2 of .*all.tfrecord \(the label 2, expected less than 2\)"):
        open_data(f"tfrecord:{tmp_path}/all.tfrecord?labels=a,b")


def test_bad_records_are_named_or_left_out(folder):
    good = [example(png(COLOURS[NAMES[i % 3]]), i % 3 + 1, NAMES[i % 3]) for i in range(12)]
    bad = [example(b"no image", 1, "blue"), example(None, 1, "blue"), example(png((1, 2, 3))), b"\xff\xff"]
    write(folder / "train-bad", [*good, *bad])
    with (folder / "train-bad").open("ab") as file:
        file.write(b"\x05\0\0")
    spec = f"tfrecord:{folder}/train-bad"
    with pytest.raises(
        ModelPatchError, match=r"4 of 17 rows .* record 13 of .*train-bad \(no image/encoded\), record 14"
    ):
        open_data(spec)
    data = open_data(spec, skip_bad_images=True)
    assert data.train.num_images + data.test.num_images == 12 and colours_are_right(data)
    assert "4 rows that cannot be used" in data.notes[0] and "1 cannot be read" in data.notes[0]


def test_compressed_files_are_refused(folder):
    with tf.io.TFRecordWriter(str(folder / "train.gz"), "GZIP") as writer:
        writer.write(example(png((1, 2, 3)), 1))
    with pytest.raises(ModelPatchError, match="train.gz is compressed: decompress it"):
        open_data(f"tfrecord:{folder}/train.gz")
