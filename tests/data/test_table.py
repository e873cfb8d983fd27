"""`csv:FILE`: rows become labelled images, and bad rows follow the rules for bad images."""

import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing
from model_patch.data import open_data
from model_patch.data.pipeline import batches
from tests.data.test_folder import COLOURS, contents, make_classes, save
from tests.data.test_folder_index import damage


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


def tags_of(data) -> dict[str, set]:
    """The labels of each image by the name of its file."""
    found = {}
    for split in (data.train, data.test):
        for path, row in zip(split.paths, split.known_labels, strict=True):
            found[path.rpartition("/")[2]] = {label for label, given in zip(data.labels, row, strict=True) if given}
        ((_, label), *_) = split.dataset(1).as_numpy_iterator()
        assert label.shape == (len(data.labels),) and (label == split.known_labels[0]).all()
    return found


EXPECTED = {"0.png": {"round", "red"}, "1.png": {"red"}, "2.png": set(), "3.png": {"large", "round"}}


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (("path,label", "0.png,round; red", "1.png,red|red", "2.png,", '3.png,"large,round"'), ""),
        (("path,label", "0.png,round red", "1.png,red", "2.png,", "3.png,large round"), "&separator= "),
        (("path,a,b", "0.png,round,red", "1.png,,red", "2.png,,", "3.png,large,round"), "&label=a+b"),
        (("path,label", "0.png,round", "0.png,red", "1.png,red", "2.png,", "3.png,round", "3.png,large"), ""),
        (
            ("path,large,round,red", "0.png,0,1,1", "1.png,no,False,yes", "2.png,0,0,", "3.png,1,TRUE,0"),
            "&label=large+round+red",
        ),
    ],
)
def test_several_labels_are_in_a_cell_in_cells_in_rows_or_in_columns_of_flags(table, rows, options):
    spec = table(rows[0], *(f"paints/red/{row}" for row in rows[1:]))
    data = open_data(f"{spec}?type=multi_label{options}")
    assert data.type == "multi_label" and set(data.labels) == {"large", "red", "round"}
    assert tags_of(data) == EXPECTED


def test_a_split_of_several_labels_needs_them_all_to_train_on(table):
    rows = ("paints/red/0.png,red,train", "paints/red/1.png,red;blue,test")
    with pytest.raises(ModelPatchError, match="has the class 'blue' in line 3 to test on, but no image of it to train"):
        open_data(table("path,label,split", *rows) + "?type=multi_label")
    with pytest.raises(ModelPatchError, match="has no label: expected at least one"):
        open_data(table("path,label", "paints/red/0.png,", "paints/red/1.png,") + "?type=multi_label")


def test_numbers_are_labels_of_a_regression(table):
    rows = [f"paints/red/{i}.png,{i}.5,{i - 3}e1" for i in range(10)]
    spec = table("path,age,height", *rows) + "?type=regression&label=age+height"
    data = open_data(spec)
    assert (data.type, data.labels, data.train.known_labels.dtype) == ("regression", ("age", "height"), "float32")
    assert data.train.num_images + data.test.num_images == 10 and data.test.num_images
    for path, (age, height) in zip(data.train.paths, data.train.known_labels, strict=True):
        assert (f"{age - 0.5:g}.png", height) == (path.rpartition("/")[2], 10 * (age - 3.5))
    assert len(data.folds(3)) == 3
    bad = table("path,age", *(row.rpartition(",")[0] for row in rows), "paints/red/9.png,old", "paints/blue/0.png,nan")
    with pytest.raises(ModelPatchError, match=r"2 of 12 rows.*line 12 \('old' for a number\), line 13 \('nan' for"):
        open_data(f"{bad}?type=regression&label=age")
    assert open_data(f"{bad}?type=regression&label=age", skip_bad_images=True).train.num_images > 5


@pytest.mark.parametrize(
    ("spec", "labels"),
    [("?type=regression&label=age", [9.0, 10.0, 20.0]), ("?type=multi_label&label=tags", ["a", "a;b", "c"])],
)
def test_an_image_that_turns_out_unreadable_gives_way_to_the_one_with_the_nearest_label(table, tmp_path, spec, labels):
    column = spec.rpartition("=")[2]
    rows = [
        f"paints/{colour}/0.png,{label},train" for colour, label in zip(("red", "blue", "green"), labels, strict=True)
    ]
    data = open_data(
        table(f"path,{column},split", *rows, f"paints/blue/1.png,{labels[0]},test") + spec, skip_bad_images=True
    )
    damage(tmp_path / "paints/red/0.png")
    images = batches(data.train, Preprocessing(32, "none"), 1, shuffle_seed=0)
    found = {tuple(label[0].numpy()): image[0].numpy() for image, label in images}
    label_of = dict(zip(data.train.paths, map(tuple, data.train.known_labels), strict=True))
    first, second, third = (found[label_of[f"{tmp_path}/paints/{c}/0.png"]] for c in ("red", "blue", "green"))
    assert np.array_equal(first, second) and not np.array_equal(second, third)
    assert len(list(data.train.dataset())) == 2


def test_a_type_that_a_table_cannot_have_is_refused(table):
    with pytest.raises(
        ModelPatchError, match="unknown type 'detection': expected one of classification, multi_label, reg"
    ):
        open_data(table("path,label", *ALL) + "?type=detection")
