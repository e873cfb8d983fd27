"""`csv:FILE`: rows become labelled images, and bad rows follow the rules for bad images."""

import pytest

from model_patch import ModelPatchError
from model_patch.data import open_data
from tests.data.test_folder import COLOURS, contents, make_classes, save


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Returns a function that writes rows to a table beside ten images per class, and its spec."""
    monkeypatch.setenv("MODEL_PATCH_CACHE", str(tmp_path / "cache"))
    make_classes(tmp_path / "paints", number=10)

    def write(*rows, name="table.csv"):
        (tmp_path / name).write_text("\n".join(rows) + "\n", "utf-8")
        return f"csv:{tmp_path / name}"

    return write


ALL = [f"paints/{name}/{i}.png,{name}" for name in COLOURS for i in range(10)]


def test_rows_are_the_images_that_the_same_folders_would_be(table, tmp_path):
    data, folders = open_data(table("path,label", *ALL)), open_data(f"folder:{tmp_path / 'paints'}")
    assert (data.name, data.labels, data.augmentation, data.notes) == ("table", folders.labels, "crop+flip", ())
    assert data.train.num_images + data.test.num_images == 30 and data.test.num_images >= 3
    for image, label in data.train.dataset().as_numpy_iterator():
        assert tuple(image[0, 0]) == COLOURS[data.labels[label]]


def test_the_split_column_says_what_is_tested_on(table):
    rows = [f"{row},{'val' if '/9.' in row else 'Test' if '/8.' in row else 'training'}" for row in ALL]
    data = open_data(table("split_is_last,LABEL,split", *rows) + "?path=split_is_last")
    assert (data.train.num_images, data.validation.num_images, data.test.num_images) == (24, 3, 3)
    data = open_data(table("path,label,split", *(row for row in rows if "Test" not in row)))
    assert (data.train.num_images, data.test.num_images) == (24, 3)


def test_columns_may_have_other_names_and_places_and_tabs(table, tmp_path):
    rows = [f"x\t{label}\t{tmp_path}/{path}" for path, label in (row.split(",") for row in ALL)]
    spec = table("other\tKind of paint\tImage", *rows, name="t.tsv")
    data = open_data(f"{spec}?label=kind of paint")
    assert data.train.num_images + data.test.num_images == 30
    assert len(contents(data.test)) == data.test.num_images
    with pytest.raises(
        ModelPatchError, match="no column for the label among other, Kind of paint, Image: expected one"
    ):
        open_data(spec)


def test_numbers_are_classes_in_the_order_of_their_values(table):
    rows = [row.replace(",blue", ",10").replace(",green", ",9").replace(",red", ",100") for row in ALL]
    assert open_data(table("path,label", *rows)).labels == ("9", "10", "100")


BAD = ["paints/red/0.png,red", ",red", "paints/red/0.png,", "paints/red/1.png,red,more"]


def test_bad_rows_are_errors_that_name_their_lines_or_are_left_out(table):
    spec = table("path,label", *ALL, *BAD)
    named = r"4 of 34 rows in .*table.csv cannot be used: line 32 \(paints/red/0.png again\), line 33 \(no path\), "
    with pytest.raises(ModelPatchError, match=named):
        open_data(spec)
    data = open_data(spec, skip_bad_images=True)
    assert data.train.num_images + data.test.num_images == 30
    assert "4 rows that cannot be used: left out: line 32" in data.notes[0]


def test_missing_and_unreadable_files_are_bad_images(table, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    spec = table("path,label", *ALL, "bad.png,red", "missing.png,red")
    with pytest.raises(ModelPatchError, match=r"2 of 32 images in .*table.csv cannot be read: bad.png, missing.png"):
        open_data(spec)
    assert "2 cannot be read: left out" in open_data(spec, skip_bad_images=True).notes[0]
    save(tmp_path / "missing.png", "red")
    save(tmp_path / "bad.png", "red")
    assert open_data(spec).notes == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,label"], "has no row to train on"),
        ([""], "no column for the path among none"),
        (["path,label", "paints/red/1.png,red"], "only one class, 'red'"),
        (["path,label,split", *(f"{row},other" for row in ALL)], r"line 2 \(the split 'other'\)"),
        (
            ["path,label,split", *(f"{row},{'test' if 'red' in row else 'train'}" for row in ALL)],
            "the class 'red' in line 22 to test on, but no image of it to train on",
        ),
    ],
)
def test_what_is_no_data_set_is_one_sentence(table, rows, message):
    with pytest.raises(ModelPatchError, match=message):
        open_data(table(*rows))
    with pytest.raises(ModelPatchError, match="does not exist"):
        open_data("csv:nowhere.csv")
