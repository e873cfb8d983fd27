import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from model_patch import ModelPatchError
from model_patch.detection.data import coco_file, open_detection_data
from model_patch.detection.data.coco import annotated

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
IMAGES = [
    {"id": 7, "file_name": "a.png", "width": 40, "height": 20},
    {"id": 9, "file_name": "b.png", "width": 30, "height": 30},
]
TEST_IMAGE = {"id": 7, "file_name": "c.png", "width": 40, "height": 20}


def annotation(image, category, box, number=None, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a data set, with other annotations or parts where given, and its spec."""
    (tmp_path / "images").mkdir()
    for each in (*IMAGES, TEST_IMAGE):
        pixels = np.full((each["height"], each["width"], 3), each["id"], "uint8")
        Image.fromarray(pixels).save(tmp_path / "images" / each["file_name"])

    def write(annotations, **parts):
        content = {"images": IMAGES, "categories": CATEGORIES, "annotations": annotations, **parts}
        (tmp_path / "train.json").write_text(json.dumps(content))
        test = {"images": [TEST_IMAGE], "categories": CATEGORIES, "annotations": [annotation(7, 3, [1, 1, 5, 5])]}
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
        "2 of 4 boxes",  # Half a pixel, of the second, is not mentioned.
        "2 of 4 boxes",
        "1 of 2 images",
    ]
    assert (
        "were clipped" in data.notes[0]
        and "have no area" in data.notes[1]
        and "trained on as background" in data.notes[2]
    )


@pytest.mark.parametrize(
    ("annotations", "parts", "message"),
    [
        (
            [annotation(7, 4, [1, 1, 2, 2], 55)],
            {},
            "annotation 55 in .*train.json is of the category 4, which is not in the file",
        ),
        ([annotation(8, 3, [1, 1, 2, 2])], {}, "annotation number 1 in .* is of the image 8, which is not in the file"),
        (
            [annotation(7, 3, [50, 1, 2, 2])],
            {},
            "has the box .50.0, 1.0, 2.0, 2.0., which is outside its image of 40 x 20 pixels",
        ),
        ([annotation(7, 3, [1, 2, 3])], {}, r"expected \[x, y, width, height\] in pixels"),
        ([annotation(7, 3, [1, 2, 3, float("nan")])], {}, r"expected \[x, y, width, height\] in pixels"),
        ([{"id": 1, "image_id": 7}], {}, "annotation 1 in .*train.json has no 'category_id': expected COCO's format"),
        ([], {"images": []}, "has 0 images and 2 categories: expected some of both"),
        (
            [],
            {"images": [{**IMAGES[0], "width": 0}]},
            "image 7 in .*train.json is 0 x 20 pixels: expected its true width and height",
        ),
        ([], {"images": [{**IMAGES[0], "file_name": "d.png"}]}, "1 of 1 images .* do not exist, such as .*d.png"),
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


def photograph(path, orientation, size=(32, 48), box=(6, 8, 10, 12)):
    """Saves a grey JPEG with a red box in its upright pixels, `size` as stored; returns the size upright and the box there."""
    exif, pixels = Image.Exif(), np.full((*size[::-1], 3), 30, "uint8")
    x, y, width, height = box
    pixels[y : y + height, x : x + width] = (250, 30, 30)
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels)
    stored.save(path, exif=exif, quality=100, subsampling=0)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    red = np.asarray(upright)[..., 0] > 140
    rows, columns = (np.flatnonzero(red.any(axis=axis)) for axis in (1, 0))
    low, high = (int(columns[0]), int(rows[0])), (int(columns[-1]) + 1, int(rows[-1]) + 1)
    return upright.size, [*low, high[0] - low[0], high[1] - low[1]]


@pytest.fixture
def photographs(tmp_path):
    """Returns a function that writes a file of photographs, given as (size, box, orientation), and opens it."""

    def write(*given):
        images, annotations = [], []
        for i, (size, box, orientation) in enumerate(given):
            upright = photograph(tmp_path / f"{i}.jpg", orientation)
            size, box = (upright[0] if size == "upright" else size), (upright[1] if box == "upright" else box)
            sizes = {} if size is None else {"width": size[0], "height": size[1]}
            images.append({"id": i, "file_name": f"{i}.jpg", **sizes})
            annotations.append(annotation(i, 18, box, i))
        content = {"images": images, "categories": CATEGORIES, "annotations": annotations}
        for name in ("train", "test"):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return open_detection_data(f"coco:{tmp_path}")

    return write


def is_in_its_box(image, boxes) -> bool:
    """Whether an image is red in its box, and nowhere else."""
    height, width = image.shape[:2]
    ymin, xmin, ymax, xmax = np.round(boxes[0] * [height, width, height, width]).astype(int)
    inside = np.zeros((height, width), bool)
    inside[ymin:ymax, xmin:xmax] = True
    return bool(((image[..., 0] > 140) == inside).all())


STORED, BOX = (32, 48), [6, 8, 10, 12]


@pytest.mark.parametrize("drawn", ["as stored", "upright"])
def test_boxes_and_images_are_upright_whichever_pixels_the_boxes_were_drawn_on(photographs, drawn):
    given = (STORED, BOX) if drawn == "as stored" else ("upright", "upright")
    # Of orientations from 5 on the sides differ, which says for all how their boxes were drawn.
    data = photographs(*((*given, orientation) for orientation in range(1, 9)))
    for split in (data.train, data.test):
        examples = list(split.dataset().as_numpy_iterator())
        assert sorted(image.shape[:2] for image, *_ in examples) == [(32, 48)] * 4 + [(48, 32)] * 4
        assert all(is_in_its_box(image, boxes) for image, boxes, *_ in examples)


def test_boxes_in_200_files_of_turned_photographs_are_right_or_refused_or_noted(tmp_path):
    """Random orientations, sizes and ways to draw; in some files one size is not the image's."""
    sizes = {STORED: BOX, (48, 32): [20, 3, 8, 20], (40, 40): [4, 25, 20, 9]}
    upright = {
        (size, turn): photograph(tmp_path / f"{size[0]}{turn}.jpg", turn, size, sizes[size])
        for size in sizes
        for turn in range(1, 9)
    }
    ends = {"right": 0, "refused": 0, "noted": 0}
    for seed in range(200):
        random = np.random.default_rng(seed)
        chosen = [list(upright)[i] for i in random.permutation(len(upright))[: random.integers(1, 4)]]
        is_stored, is_sized, is_wrong = random.random(3) < (0.5, 0.8, 0.2)
        content = {"images": [], "categories": CATEGORIES, "annotations": []}
        for i, (size, turn) in enumerate(chosen):
            drawn, box = (size, sizes[size]) if is_stored else upright[size, turn]
            says = {"width": drawn[0] + 8 * (is_wrong and i == 0), "height": drawn[1]}
            content["images"].append({"id": i, "file_name": f"{size[0]}{turn}.jpg"} | (says if is_sized else {}))
            content["annotations"].append(annotation(i, 18, box, i))
        (tmp_path / f"{seed}.json").write_text(json.dumps(content, default=int))
        notes: list[str] = []
        try:
            found = annotated(coco_file.read(tmp_path / f"{seed}.json"), tmp_path, notes)
        except ModelPatchError as error:
            assert is_wrong and is_sized and "image 0 in" in str(error), (seed, str(error))
            ends["refused"] += 1
            continue
        assert not (is_wrong and is_sized), seed
        boxes = {each.path.name: each.boxes[0] for each in found}
        for size, turn in chosen:
            (width, height), (x, y, w, h) = upright[size, turn]
            true = np.array([y / height, x / width, (y + h) / height, (x + w) / width])
            if not np.allclose(boxes[f"{size[0]}{turn}.jpg"], true, atol=1e-6):
                assert any("taken as drawn on the upright image" in note for note in notes), seed
                ends["noted"] += 1
                break
        else:
            ends["right"] += 1
    assert ends["right"] > 100 and ends["refused"] > 20


@pytest.mark.parametrize("size", [None, STORED])
def test_where_nothing_says_which_pixels_boxes_are_taken_as_upright_with_a_note(photographs, size):
    data = photographs((size, "upright", 3))
    assert "1 of 1 images" in data.notes[1] and "taken as drawn on the upright image" in data.notes[1]
    ((image, boxes, *_),) = data.train.dataset().as_numpy_iterator()
    assert is_in_its_box(image, boxes)


def test_images_of_which_either_is_true_are_not_guessed_at(photographs):
    with pytest.raises(ModelPatchError, match="image 2 in .* is turned by EXIF, and its size does not say whether"):
        photographs((STORED, BOX, 6), ("upright", "upright", 8), (STORED, BOX, 3))


@pytest.mark.parametrize(("size", "orientation"), [((64, 96), 1), ((48, 32), 1), ((48, 32), 3), ((96, 64), 6)])
def test_a_size_that_is_not_the_images_is_refused(photographs, size, orientation):
    with pytest.raises(
        ModelPatchError, match=rf"image 0 in .* is {size[0]} x {size[1]} pixels, but .*0\.jpg is 32 x 48"
    ):
        photographs((size, BOX, orientation))


def test_images_that_cannot_be_read_or_are_tested_on_too_are_named(write, tmp_path):
    spec = write([])
    shutil.copy(tmp_path / "train.json", tmp_path / "test.json")
    (note, *_) = open_detection_data(spec).notes
    assert note.startswith("2 of 2 test images are training images too, such as ") and "a.png" in note
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.png", "TIFF")
    with pytest.raises(ModelPatchError, match=r"1 of 2 images in .*train\.json cannot be read, such as .*a\.png"):
        open_detection_data(spec)


def test_boxes_that_all_lie_in_a_quarter_are_mentioned(write):
    """As those in percent of larger images, or of images that were enlarged."""
    boxes = [annotation(7, 3, [i % 5, i % 4, 8, 5], i) for i in range(30)]
    assert any("lie in the top left quarter" in note for note in open_detection_data(write(boxes)).notes)
    boxes[7]["bbox"] = [20, 5, 18, 5]
    assert not any("lie in the top left quarter" in note for note in open_detection_data(write(boxes)).notes)
