"""Random files in COCO's format with one contradiction each: refused by name, or read as pycocotools reads them."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from model_patch import ModelPatchError
from model_patch.detection.data import coco, coco_file

coco_api = pytest.importorskip("pycocotools.coco")

SIZES = {"a.png": (40, 20), "b.jpg": (30, 33), "c.png": (64, 48), "deep/d.png": (21, 50), "e.bmp": (40, 20)}
"""Width and height of the images, by name."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep").mkdir()
    for name, size in SIZES.items():
        Image.new("RGB", size, (90, 90, 90)).save(folder / name)
    (folder / "text.png").write_text("not an image")
    return folder


def consistent(random: np.random.RandomState) -> dict:
    """Returns a random file without a contradiction; `area`, outlines, crowds and sizes are there in some only."""
    names = random.permutation(list(SIZES))[: random.randint(2, 6)].tolist()
    ids = random.choice(1000, 20, replace=False).tolist()
    keys = [f"image {i}" for i in ids] if random.rand() < 0.2 else ids
    images = [{"id": key, "file_name": name} for key, name in zip(keys, names, strict=False)]
    if random.rand() < 0.8:
        for image in images:
            image["width"], image["height"] = SIZES[image["file_name"]]
    categories = [{"id": ids[10 + i], "name": name} for i, name in enumerate(["cat", "dog", "cow"])]
    with_area, with_outline = random.rand(2) < 0.5
    annotations = []
    for number in random.permutation(random.randint(3, 9)).tolist():
        image = images[random.randint(len(images))]
        width, height = SIZES[image["file_name"]]
        x, y = (round(float(random.uniform(0, 0.7 * side)), 2) for side in (width, height))
        w, h = (round(float(random.uniform(2, side - low)), 2) for side, low in ((width, x), (height, y)))
        each = {"id": number, "image_id": image["id"], "category_id": categories[random.randint(3)]["id"]}
        annotations.append({**each, "bbox": [x, y, w, h]})
        if with_area:
            annotations[-1]["area"] = w * h
        if with_outline:
            annotations[-1]["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if random.rand() < 0.2:
            annotations[-1]["iscrowd"] = int(random.randint(2))
    return {"images": images, "categories": categories, "annotations": annotations}


def twice(part: str, **other):
    """Lists an entry twice, with other values the second time."""

    def change(content, random):
        entry = content[part][random.randint(len(content[part]))]
        content[part].append({**entry, **other})
        return entry["id"]

    return change


def again(part: str, field: str, wrap=lambda value: value):
    """Gives one entry a value of another, in a form that means the same."""

    def change(content, random):
        first, second = random.choice(len(content[part]), 2, replace=False)
        content[part][first][field] = wrap(content[part][second][field])
        return content[part][second][field]

    return change


def put(part: str, field: str, *values):
    """Gives one entry a value that cannot be right; returns the value or the entry's id, or else its place."""

    def change(content, random):
        i = random.randint(len(content[part]))
        entry = content[part][i]
        value = values[random.randint(len(values))]
        names_value = value is not None and (field == "id" or part == "images")
        key = value if names_value else f"number {i + 1}" if field == "id" else entry["id"]
        entry[field] = value
        return key

    return change


def without(part: str, field: str):
    def change(content, random):
        i = random.randint(len(content[part]))
        key = f"number {i + 1}" if field == "id" else content[part][i]["id"]
        del content[part][i][field]
        return key

    return change


def a_size(change_size):
    def change(content, random):
        image = content["images"][random.randint(len(content["images"]))]
        size = change_size(*SIZES[image["file_name"]])
        image["width"], image["height"] = size
        return image["id"]

    return change


def swapped(content, random):
    first, second = content["images"][:2]
    first["file_name"], second["file_name"] = second["file_name"], first["file_name"]
    return first["id"]


def boxes(change_box, some: int | None = None):
    """Changes all boxes, or some."""

    def change(content, random):
        files = {image["id"]: image["file_name"] for image in content["images"]}
        for each in content["annotations"][:some]:
            each["bbox"] = [float(value) for value in change_box(*each["bbox"], *SIZES[files[each["image_id"]]])]
        return content["annotations"][0]["id"] if some else "has the box ["

    return change


def as_fractions(x, y, w, h, width, height):
    return x / width, y / height, w / width, h / height


def as_corners(x, y, w, h, *_):
    return x, y, x + w, y + h


def as_centre(x, y, w, h, *_):
    return x + w / 2, y + h / 2, w, h


REFUSED = {
    "image id twice": twice("images", file_name="e.bmp"),
    "same image twice": twice("images"),
    "category id twice": twice("categories", name="horse"),
    "annotation id twice": twice("annotations", bbox=[1, 1, 5, 5]),
    "category name twice": again("categories", "name"),
    "file twice": again("images", "file_name"),
    "file twice by another path": again("images", "file_name", lambda name: f"./x/../{name}"),
    "image unknown": put("annotations", "image_id", 5000, "1", -1, 1.5, True, [1], {}),
    "category unknown": put("annotations", "category_id", 5000, "cat", -1, True, [1]),
    "category ids of two types": put("categories", "id", "7"),
    "no id": put("images", "id", None, True, [1], {}),
    "crowd": put("annotations", "iscrowd", 2, "0", -1, 0.5, "false", [0]),
    "no box": put("annotations", "bbox", None, [], [1, 2, 3], [1, 2, 3, 4, 5], "box", [1, 2, 3, None], {"x": 1}),
    "no finite box": put("annotations", "bbox", [1, 2, 3, float("nan")], [1, float("inf"), 3, 4]),
    "negative size": put("annotations", "bbox", [9, 9, -5, 4], [9, 9, 5, -4]),
    "outside": put("annotations", "bbox", [500, 1, 5, 5], [1, 400, 5, 5], [-90, 1, 5, 5]),
    "box in fractions": boxes(as_fractions, 1),
    "boxes in fractions": boxes(as_fractions),
    "other size": a_size(lambda width, height: (2 * width, 2 * height)),
    "sides swapped": a_size(lambda width, height: (height, width)),
    "one side": a_size(lambda width, height: (width, None)),
    "size of no number": a_size(lambda width, height: ("wide", height)),
    "size 0": a_size(lambda width, height: (width, 0)),
    "file without name": put("images", "file_name", None, "", 7),
    "file missing": put("images", "file_name", "nowhere.png"),
    "no image": put("images", "file_name", "text.png"),
    "no field of an image": without("images", "file_name"),
    "no id of a category": without("categories", "id"),
    "no name of a category": without("categories", "name"),
    "no image of an annotation": without("annotations", "image_id"),
    "no category of an annotation": without("annotations", "category_id"),
}
"""Contradictions that are always seen."""

PERHAPS = {
    "boxes are corners": boxes(as_corners),
    "box is corners": boxes(as_corners, 1),
    "boxes are centres": boxes(as_centre),
    "box is a centre": boxes(as_centre, 1),
    "files of two images swapped": swapped,
    "no annotation id": without("annotations", "id"),
}
"""Contradictions of which the file may say nothing: then pycocotools reads the same."""


def by_pycocotools(path) -> dict[str, list]:
    """Returns boxes as fractions, cut off at the edges, class names and crowds by file, those without area left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco_api.COCO(str(path))
    names = {key: category["name"] for key, category in api.cats.items()}
    found: dict[str, list] = {image["file_name"]: [] for image in api.imgs.values()}
    for image in api.imgs.values():
        width, height = SIZES[image["file_name"]]
        for each in api.imgToAnns[image["id"]]:
            x, y, w, h = each["bbox"]
            box = np.clip([y / height, x / width, (y + h) / height, (x + w) / width], 0, 1)
            if (box[2:] > box[:2]).all():
                row = (box.round(5).tolist(), names[each["category_id"]], bool(each.get("iscrowd", 0)))
                found[image["file_name"]].append(row)
    return {name: sorted(rows) for name, rows in found.items()}


def by_us(path, folder) -> dict[str, list]:
    """Returns the same as `by_pycocotools`."""
    file = coco_file.read(path)
    return {
        each.path.relative_to(folder).as_posix(): sorted(
            (box.astype("float64").round(5).tolist(), file.labels[label], bool(crowd))
            for box, label, crowd in zip(each.boxes, each.classes, each.crowds, strict=True)
        )
        for each in coco.annotated(file, folder, [])
    }


def assert_equal(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys()
    for name, rows in theirs.items():
        assert [row[1:] for row in ours[name]] == [row[1:] for row in rows]
        np.testing.assert_allclose([row[0] for row in ours[name]], [row[0] for row in rows], atol=2e-5)


def test_files_without_a_contradiction_are_read_as_pycocotools_reads_them(folder, tmp_path):
    for seed in range(60):
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps(consistent(np.random.RandomState(seed))))
        assert_equal(by_us(path, folder), by_pycocotools(path))


@pytest.mark.parametrize("kind", [*REFUSED, *PERHAPS])
def test_a_file_with_a_contradiction_is_refused_by_name_or_read_as_pycocotools_reads_it(kind, folder, tmp_path):
    refused = 0
    for seed in range(8):
        random = np.random.RandomState(seed)
        content = consistent(random)
        before, named = copy.deepcopy(content), (REFUSED | PERHAPS)[kind](content, random)
        assert content != before
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps(content))
        try:
            ours = by_us(path, folder)
        except ModelPatchError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert str(named) in str(error).replace(str(path), "")
            refused += 1
            continue
        assert kind in PERHAPS, (seed, ours)
        if kind != "no annotation id":  # pycocotools needs them.
            assert_equal(ours, by_pycocotools(path))
    assert refused or kind == "no annotation id"


def test_a_list_twice_or_not_at_all_is_refused(folder, tmp_path):
    path = tmp_path / "a.json"
    for part in ("images", "categories", "annotations"):
        content = consistent(np.random.RandomState(0))
        for text in (
            json.dumps(content)[:-1] + f', "{part}": []}}',
            json.dumps({**content, part: {}}),
            json.dumps({key: value for key, value in content.items() if key != part}),
            json.dumps(content[part]),
        ):
            path.write_text(text)
            with pytest.raises(ModelPatchError, match=f"a.json .*('{part}'|'images')"):
                by_us(path, folder)
