import json

import numpy as np
import pytest
from PIL import Image

from model_patch import ModelPatchError
from model_patch.detection.data import open_detection_data

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
IMAGES = [
    {"id": 7, "file_name": "a.png", "width": 40, "height": 20},
    {"id": 9, "file_name": "b.png", "width": 30, "height": 30},
]


def annotation(image, category, box, number=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a data set, with other annotations or parts where given, and its spec."""
    (tmp_path / "images").mkdir()
    for each in IMAGES:
        pixels = np.full((each["height"], each["width"], 3), each["id"], "uint8")
        Image.fromarray(pixels).save(tmp_path / "images" / each["file_name"])

    def write(annotations, **parts):
        content = {"images": IMAGES, "categories": CATEGORIES, "annotations": annotations, **parts}
        (tmp_path / "train.json").write_text(json.dumps(content))
        test = {"images": IMAGES[:1], "categories": CATEGORIES, "annotations": [annotation(7, 3, [1, 1, 5, 5])]}
        (tmp_path / "test.json").write_text(json.dumps(test))
        return f"coco:{tmp_path}?train_images=images&test_images=images"

    return write


def examples(split):
    """By the value that fills the image: its size, boxes, classes, ignored."""
    return {int(image[0, 0, 0]): (image.shape, *rest) for image, *rest in split.dataset().as_numpy_iterator()}


def test_boxes_become_fractions_and_classes_indices(write):
    spec = write(
        [
            annotation(7, 18, [4, 5, 16, 10]),
            annotation(9, 3, [0, 15, 30, 15], iscrowd=1),
            annotation(9, 3, [3, 3, 3, 6]),
        ]
    )
    data = open_detection_data(spec)
    assert (
        data.labels == ("car", "dog") and data.notes == () and (data.train.num_images, data.test.num_images) == (2, 1)
    )
    train = examples(data.train)
    shape, boxes, classes, ignored = train[7]
    assert shape == (20, 40, 3) and classes.tolist() == [1] and ignored.tolist() == [False]
    np.testing.assert_allclose(boxes, [[5 / 20, 4 / 40, 15 / 20, 20 / 40]], atol=1e-6)
    assert train[9][3].tolist() == [True, False], "a crowd is to be ignored"
    np.testing.assert_allclose(train[9][1][1], [0.1, 0.1, 0.3, 0.2], atol=1e-6)


def test_boxes_that_stick_out_are_cut_off_and_boxes_without_area_left_out_with_notes(write):
    boxes = [[-5, 2, 20, 10], [30, 2, 10.5, 5], [3, 3, 0, 6], [40, 3, 5, 5]]
    data = open_detection_data(write([annotation(7, 3, box, i) for i, box in enumerate(boxes)]))
    (_, kept, _, _), (_, none, _, _) = (examples(data.train)[key] for key in (7, 9))
    np.testing.assert_allclose(kept, [[0.1, 0, 0.6, 15 / 40], [0.1, 30 / 40, 0.35, 1.0]], atol=1e-6)
    assert none.shape == (0, 4)
    assert [note.replace("train.json", "") and note.split(" in ")[0] for note in data.notes] == [
        "2 of 4 boxes",  # Half a pixel, of the second, is not told.
        "2 of 4 boxes",
        "1 of 2 images",
    ]
    assert (
        "were cut off" in data.notes[0] and "have no area" in data.notes[1] and "learnt as background" in data.notes[2]
    )


@pytest.mark.parametrize(
    ("annotations", "parts", "message"),
    [
        (
            [annotation(7, 4, [1, 1, 2, 2], 55)],
            {},
            "annotation 55 in .*train.json is of the category 4, which is not among",
        ),
        ([annotation(8, 3, [1, 1, 2, 2])], {}, "is of the image 8, which is not among the file's images"),
        (
            [annotation(7, 3, [50, 1, 2, 2])],
            {},
            "has the box .50.0, 1.0, 2.0, 2.0. outside its image of 40 x 20 pixels",
        ),
        ([annotation(7, 3, [1, 2, 3])], {}, r"expected \[x, y, width, height\] in pixels"),
        ([annotation(7, 3, [1, 2, 3, float("nan")])], {}, r"expected \[x, y, width, height\] in pixels"),
        ([{"id": 1, "image_id": 7}], {}, "train.json is not in COCO's format .KeyError.'category_id'.."),
        ([], {"images": []}, "has 0 images and 2 categories: expected some of both"),
        ([], {"images": [{**IMAGES[0], "width": 0}]}, "the image 7 in .*train.json is 0 x 20 pixels"),
        ([], {"images": [{**IMAGES[0], "file_name": "c.png"}]}, "1 of 1 images .* do not exist, such as .*c.png"),
        ([], {"categories": CATEGORIES[:1]}, r"differ in their categories \(car\): expected the same in both"),
    ],
)
def test_annotations_that_cannot_be_right_are_refused(write, annotations, parts, message):
    with pytest.raises(ModelPatchError, match=message):
        open_detection_data(write(annotations, **parts))


def test_files_that_are_not_there_are_named(write, tmp_path):
    spec = write([])
    with pytest.raises(ModelPatchError, match="nowhere.json is not a readable JSON file"):
        open_detection_data(f"{spec}&train=nowhere.json")
    with pytest.raises(ModelPatchError, match="names no folder: expected coco:FOLDER"):
        open_detection_data(f"coco:{tmp_path}/nowhere")
