import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model_patch import ModelPatchError
from model_patch.data import open_data

COLOURS = {"blue": (20, 40, 230), "green": (30, 200, 40), "red": (220, 30, 20)}


def save(path, colour, size=(14, 11)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_classes(folder, number=20, extension=".png"):
    for name, colour in COLOURS.items():
        for i in range(number):
            save(folder / name / f"{i}{extension}", colour)
    return folder


def contents(split):
    return [(image.tobytes(), int(label)) for image, label in split.dataset().as_numpy_iterator()]


def test_class_folders_are_read_and_a_fifth_kept_for_testing(tmp_path):
    data = open_data(f"folder:{make_classes(tmp_path / 'paints')}")
    assert (data.name, data.labels, data.augmentation, data.notes) == (
        "paints",
        ("blue", "green", "red"),
        "crop+flip",
        (),
    )
    assert data.train.num_images + data.test.num_images == 60
    assert 3 <= data.test.num_images <= 24
    for split in (data.train, data.test):
        seen = list(split.dataset().as_numpy_iterator())
        assert len(seen) == split.num_images
        assert {int(label) for _, label in seen} == {0, 1, 2}
        for image, label in seen:
            assert image.dtype == np.uint8 and image.shape == (11, 14, 3) and label.dtype == np.int64
            assert tuple(image[0, 0]) == COLOURS[data.labels[label]]


def test_every_format_in_any_case_is_read_and_grey_becomes_colour(tmp_path):
    for name in ("a", "b"):
        for i, extension in enumerate((".jpg", ".JPEG", ".Png", ".bmp", ".GIF", ".webp")):
            save(tmp_path / name / f"{i}{extension}", (90, 90, 90))
        Image.new("L", (6, 5), 90).save(tmp_path / name / "grey.png")
    data = open_data(f"folder:{tmp_path}")
    images = [image for split in (data.train, data.test) for image, _ in split.dataset().as_numpy_iterator()]
    assert len(images) == 14
    assert all(image.shape[-1] == 3 and abs(image.astype(int) - 90).max() < 4 for image in images)


def test_train_and_test_folders_are_kept_apart(tmp_path):
    make_classes(tmp_path / "train", number=3)
    for name in COLOURS:
        save(tmp_path / "validation" / name / "x.png", (1, 2, 3))
    data = open_data(f"folder:{tmp_path}")
    assert (data.train.num_images, data.test.num_images) == (9, 3)
    assert all(image[0, 0].tolist() == [1, 2, 3] for image, _ in data.test.dataset().as_numpy_iterator())


def test_test_goes_before_validation_and_train_alone_is_divided(tmp_path):
    make_classes(tmp_path / "train", number=4)
    assert (
        sum(s.num_images for s in (open_data(f"folder:{tmp_path}").train, open_data(f"folder:{tmp_path}").test)) == 12
    )
    make_classes(tmp_path / "val", number=1)
    make_classes(tmp_path / "test", number=2)
    data = open_data(f"folder:{tmp_path}")
    assert [split.num_images for split in (data.train, data.validation, data.test)] == [12, 3, 6]
    for part, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert all(path.startswith(f"{tmp_path}/{folder}/") for path in getattr(data, part).paths)


def test_a_class_may_be_called_train(tmp_path):
    make_classes(tmp_path, number=3)
    save(tmp_path / "train" / "express.png", (0, 0, 0))
    save(tmp_path / "train" / "tram.png", (0, 0, 0))
    assert open_data(f"folder:{tmp_path}").labels == ("blue", "green", "red", "train")


def test_a_new_file_moves_no_other(tmp_path):
    for i in range(40):
        save(tmp_path / "a" / f"{i}.png", (i, 0, 0))
        save(tmp_path / "b" / f"{i}.png", (i, 1, 0))
    before = open_data(f"folder:{tmp_path}")
    for i in range(40, 60):
        save(tmp_path / "a" / f"{i}.png", (i, 0, 0))
    after = open_data(f"folder:{tmp_path}")
    for split in ("train", "test"):
        old, new = contents(getattr(before, split)), contents(getattr(after, split))
        assert [image for image in new if image in set(old)] == old
        assert len(new) > len(old)


def test_the_order_is_fixed_mixes_classes_and_does_not_depend_on_the_place(tmp_path):
    first = open_data(f"folder:{make_classes(tmp_path / 'here', 40)}")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    second = open_data(f"folder:{tmp_path / 'there'}")
    assert contents(first.train) == contents(first.train) == contents(second.train)
    prefix = [int(label) for _, label in first.train.dataset(30)]
    assert np.bincount(prefix, minlength=3).min() >= 4
    assert prefix == [label for _, label in contents(first.train)][:30]


def test_a_tiny_class_has_an_image_on_both_sides(tmp_path):
    data = open_data(f"folder:{make_classes(tmp_path, number=2)}")
    for split in (data.train, data.test):
        assert sorted(int(label) for _, label in split.dataset()) == [0, 1, 2]


def test_what_is_no_image_is_left_out_and_said(tmp_path):
    make_classes(tmp_path, number=2)
    save(tmp_path / ".cache" / "x.png", (0, 0, 0))
    save(tmp_path / "__MACOSX" / "red" / "x.png", (0, 0, 0))
    save(tmp_path / "red" / "inner" / "x.png", (0, 0, 0))
    (tmp_path / "red" / "._0.png").write_bytes(b"not an image")
    (tmp_path / "red" / "Thumbs.db").write_bytes(b"not an image")
    (tmp_path / "red" / "list.txt").write_text("a list")
    Image.new("RGB", (4, 4)).save(tmp_path / "red" / "scan.tiff")
    (tmp_path / "readme.md").write_text("beside the classes")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "red" / "again").symlink_to(tmp_path / "red")
    data = open_data(f"folder:{tmp_path}")
    assert data.labels == ("blue", "green", "red")
    assert data.train.num_images + data.test.num_images == 6
    (note,) = data.notes
    assert note.splitlines() == [
        f"{tmp_path}: 6 images are used, and found were",
        "  4 hidden, or of an operating system: left out: .cache, __MACOSX, red/._0.png, ...",
        "  3 links that lead nowhere, or back: left out: loop, nowhere, up",
        "  1 beside the class folders: left out: readme.md",
        "  2 folders inside a class: left out: red/again, red/inner",
        "  2 no JPEG, PNG, BMP, GIF or WebP by their names: left out: red/list.txt, red/scan.tiff",
    ]


def test_folders_beside_train_and_test_are_left_out_with_a_warning(tmp_path, caplog):
    make_classes(tmp_path / "train", number=2)
    make_classes(tmp_path / "test", number=1)
    save(tmp_path / "unlabelled" / "0.png", (0, 0, 0))
    (tmp_path / "readme.md").write_text("beside the folders")
    assert open_data(f"folder:{tmp_path}").notes == (
        f"{tmp_path}: 9 images are used, and found were\n  1 beside the class folders: left out: readme.md",
    )
    assert caplog.messages == [
        f"{tmp_path}: images to train on are in train, images to test on are in test; left out: unlabelled"
    ]


NAMES = [
    ("train", "valid"),
    ("Train", "Test"),
    ("TRAINING", "testing"),
    ("training_set", "validation-set"),
    ("train2017", "val2017"),
    ("train_images", "Dev"),
    ("trainset", "eval"),
]


@pytest.mark.parametrize(("train", "test"), NAMES)
def test_usual_names_of_split_folders_are_known_in_any_case(tmp_path, train, test, caplog):
    make_classes(tmp_path / train, number=3)
    make_classes(tmp_path / test, number=2)
    data = open_data(f"folder:{tmp_path}")
    assert (data.train.num_images, data.test.num_images, data.notes, caplog.messages) == (9, 6, (), [])


@pytest.mark.parametrize("names", [("train", "Training", "test"), ("train", "val", "valid"), ("train", "test", "Test")])
def test_two_folders_of_one_part_are_refused(tmp_path, names):
    for name in names:
        make_classes(tmp_path / name, number=2)
    with pytest.raises(ModelPatchError, match=f"has {'|'.join(names)} and .*, both .* folders: rename or move one"):
        open_data(f"folder:{tmp_path}")


def test_test_images_without_classes_are_left_out_with_a_warning(tmp_path, caplog):
    make_classes(tmp_path / "train", number=5)
    save(tmp_path / "test" / "0.png", (0, 0, 0))
    data = open_data(f"folder:{tmp_path}")
    assert data.train.num_images + data.test.num_images == 15
    assert "a fifth of them is split off to test on; left out: test" in caplog.text
    make_classes(tmp_path / "valid", number=2)
    assert open_data(f"folder:{tmp_path}").test.num_images == 6


def test_a_folder_train_that_could_be_a_class_is_refused(tmp_path):
    make_classes(tmp_path / "train", number=2)
    save(tmp_path / "bus" / "0.png", (0, 0, 0))
    with pytest.raises(ModelPatchError, match="has train with class folders in it, and beside it bus with images"):
        open_data(f"folder:{tmp_path}")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_jpeg_is_named_and_can_be_skipped(tmp_path):
    make_classes(tmp_path, number=10, extension=".jpg")
    truncate(tmp_path / "red" / "7.jpg")
    with pytest.raises(ModelPatchError, match=r"1 of 30 images in .* cannot be read: red/7\.jpg; .*--skip_bad_images"):
        open_data(f"folder:{tmp_path}")
    data = open_data(f"folder:{tmp_path}", skip_bad_images=True)
    assert data.train.num_images + data.test.num_images == len(contents(data.train) + contents(data.test)) == 29
    note = f"{tmp_path}: 29 images are used, and found were\n  1 cannot be read: left out: red/7.jpg"
    assert data.notes == (note,)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".gif", ".webp"])
def test_other_truncated_formats_are_found(tmp_path, extension):
    make_classes(tmp_path, number=2, extension=extension)
    truncate(tmp_path / "blue" / f"1{extension}")
    with pytest.raises(ModelPatchError, match=f"1 of 6 .*blue/1{extension}"):
        open_data(f"folder:{tmp_path}")


def test_ten_bad_images_are_named_at_most(tmp_path):
    make_classes(tmp_path, number=6)
    for i in range(12):
        (tmp_path / "blue" / f"bad{i:02}.png").write_bytes(b"" if i else b"no image")
    with pytest.raises(ModelPatchError, match=r"12 of 30 images .*blue/bad09\.png, \.\.\.; ") as error:
        open_data(f"folder:{tmp_path}")
    assert "bad10" not in str(error.value)


def test_a_class_without_a_readable_image_is_named(tmp_path):
    make_classes(tmp_path, number=2)
    for i in range(2):
        (tmp_path / "green" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ModelPatchError, match="the class 'green' has no readable image: .*green"):
        open_data(f"folder:{tmp_path}", skip_bad_images=True)


def test_a_class_without_an_image_is_named(tmp_path):
    make_classes(tmp_path, number=2)
    (tmp_path / "violet").mkdir()
    with pytest.raises(ModelPatchError, match="the class 'violet' has no image: .*violet"):
        open_data(f"folder:{tmp_path}")


def test_a_class_with_one_image_cannot_be_divided(tmp_path):
    make_classes(tmp_path, number=2)
    (tmp_path / "red" / "1.png").unlink()
    with pytest.raises(ModelPatchError, match="the class 'red' in .* has one image"):
        open_data(f"folder:{tmp_path}")


def test_different_classes_to_train_and_to_test_on_are_named(tmp_path):
    make_classes(tmp_path / "train", number=1)
    make_classes(tmp_path / "test", number=1)
    shutil.rmtree(tmp_path / "test" / "green")
    with pytest.raises(ModelPatchError, match="the class 'green' is in only one of .*train and .*test"):
        open_data(f"folder:{tmp_path}")


def test_folders_that_are_no_data_are_refused(tmp_path):
    with pytest.raises(ModelPatchError, match="the folder '.*nowhere' does not exist"):
        open_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(ModelPatchError, match="the folder '' does not exist: expected folder:PATH"):
        open_data("folder:")
    with pytest.raises(ModelPatchError, match=f"{tmp_path} has none of the class folders"):
        open_data(f"folder:{tmp_path}")
    save(tmp_path / "red" / "0.png", (0, 0, 0))
    with pytest.raises(ModelPatchError, match=f"{tmp_path} has only one, 'red', of the class folders"):
        open_data(f"folder:{tmp_path}")
    with pytest.raises(ModelPatchError, match=r"0\.png is a file"):
        open_data(f"folder:{tmp_path / 'red' / '0.png'}")


def test_images_of_real_life_become_what_the_rules_say(tmp_path):
    make_classes(tmp_path, number=3)
    exif, red = Image.Exif(), Image.new("RGB", (20, 10), COLOURS["red"])
    exif[0x0112] = 6
    deep = np.zeros((5, 5, 3), "uint8") + COLOURS["red"]
    of = {
        "über 日本 🐈.jpg": (red, {"exif": exif}),
        "x" * 250 + ".jpg": (red, {}),
        "not-turned.png": (red, {"exif": exif}),
        "wide.png": (Image.new("RGB", (20_000, 2), COLOURS["red"]), {}),
        "one.png": (Image.new("RGB", (1, 1), COLOURS["red"]), {}),
        "cmyk.jpg": (Image.new("RGB", (5, 5), COLOURS["red"]).convert("CMYK"), {}),
        "a_png.jpg": (red, {"format": "PNG"}),
        "alpha.png": (red.convert("RGBA"), {}),
        "palette.png": (red.quantize(4), {}),
        "palette.bmp": (red.quantize(4), {}),
        "palette.gif": (red.quantize(4), {"save_all": True, "append_images": [Image.new("P", (20, 10), 3)]}),
    }
    for name, (image, options) in of.items():
        image.save(tmp_path / "red" / name, **options)
    (tmp_path / "red" / "deep.png").write_bytes(tf.io.encode_png(deep.astype("uint16") * 256 + 77).numpy())
    data = open_data(f"folder:{tmp_path}")
    images = [
        image
        for split in (data.train, data.test)
        for image, label in split.dataset().as_numpy_iterator()
        if data.labels[label] == "red"
    ]
    assert len(images) == 3 + len(of) + 1
    off = [(image.shape, image[0, 0]) for image in images if np.abs(image.astype(int) - COLOURS["red"]).max() > 4]
    assert not off
    shapes = [image.shape for image in images]
    assert shapes.count((20, 10, 3)) == 1 and {(2, 20_000, 3), (1, 1, 3), (10, 20, 3)} <= set(shapes)
    assert set(data.notes[0].splitlines()[1:]) == {
        "  1 turned as their EXIF orientation says: red/über 日本 🐈.jpg",
        "  1 with an EXIF orientation that is not followed, because they are not JPEG: red/not-turned.png",
        "  1 more than 10,000 pixels high or wide: red/wide.png",
        "  1 one pixel high or wide: red/one.png",
        "  1 CMYK: made RGB: red/cmyk.jpg",
        "  1 of another format than their names say: read by their contents: red/a_png.jpg",
        "  1 with alpha, laid on white if a PNG channel, else left out: red/alpha.png",
        "  3 with a palette: made RGB: red/palette.bmp, red/palette.gif, red/palette.png",
        "  1 animated, of which the first frame is taken: red/palette.gif",
        "  1 of 16 bits, of which the upper 8 are taken: red/deep.png",
    }


def test_a_class_whose_name_is_no_text_is_refused(tmp_path):
    make_classes(tmp_path, number=2)
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(ModelPatchError, match="the class folder 'caf.*' in .* has a name that is no text: rename it"):
        open_data(f"folder:{tmp_path}")


def test_an_image_in_several_folders_has_several_labels(tmp_path):
    root = tmp_path / "tagged"
    for i in range(8):
        save(root / f"{i}.png", (10 * i, 20, 30))  # Some of one size: contents tell them apart.
    for name, members in {"dark": (0, 1, 2), "even": (0, 2, 4, 6), "odd": (1, 3, 5)}.items():
        (root / name).mkdir()
        for k, i in enumerate(members):
            target = root / name / f"copy{i}.png"
            if k == 0:
                shutil.copy(root / f"{i}.png", target)
            elif k == 1:
                os.link(root / f"{i}.png", target)
            else:
                target.symlink_to(root / f"{i}.png")
    save(root / "odd" / "alone.png", (0, 250, 0))
    data = open_data(f"folder:{root}?type=multi_label")
    assert (data.type, data.labels) == ("multi_label", ("dark", "even", "odd")) and not data.notes
    found = {
        path.rpartition("/")[2]: tuple(row)
        for split in (data.train, data.test)
        for path, row in zip(split.paths, split.known_labels.tolist(), strict=True)
    }
    assert found == {
        "0.png": (1, 1, 0),
        "1.png": (1, 0, 1),
        "2.png": (1, 1, 0),
        "3.png": (0, 0, 1),
        "4.png": (0, 1, 0),
        "5.png": (0, 0, 1),
        "6.png": (0, 1, 0),
        "7.png": (0, 0, 0),
        "alone.png": (0, 0, 1),
    }
    with pytest.raises(ModelPatchError, match="unknown type 'regression': expected one of classification, multi_label"):
        open_data(f"folder:{root}?type=regression")
