import shutil

import numpy as np
import pytest
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


def test_all_four_formats_in_any_case_are_read_and_grey_becomes_colour(tmp_path):
    for name in ("a", "b"):
        for i, extension in enumerate((".jpg", ".JPEG", ".Png", ".bmp", ".GIF")):
            save(tmp_path / name / f"{i}{extension}", (90, 90, 90))
        Image.new("L", (6, 5), 90).save(tmp_path / name / "grey.png")
    data = open_data(f"folder:{tmp_path}")
    images = [image for split in (data.train, data.test) for image, _ in split.dataset().as_numpy_iterator()]
    assert len(images) == 12
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
    assert open_data(f"folder:{tmp_path}").test.num_images == 6


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


def test_hidden_names_are_ignored_and_other_files_noted(tmp_path):
    make_classes(tmp_path, number=2)
    save(tmp_path / ".cache" / "x.png", (0, 0, 0))
    (tmp_path / "red" / "._0.png").write_bytes(b"not an image")
    (tmp_path / "red" / "list.txt").write_text("a list")
    (tmp_path / "readme.md").write_text("beside the classes")
    data = open_data(f"folder:{tmp_path}")
    assert data.labels == ("blue", "green", "red")
    assert data.train.num_images + data.test.num_images == 6
    assert data.notes == (f"1 files in {tmp_path} are no JPEG, PNG, BMP or GIF and were ignored: red/list.txt",)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_jpeg_is_named_and_can_be_skipped(tmp_path):
    make_classes(tmp_path, number=10, extension=".jpg")
    truncate(tmp_path / "red" / "7.jpg")
    with pytest.raises(ModelPatchError, match=r"1 of 30 images in .* cannot be read: red/7\.jpg; .*--skip_bad_images"):
        open_data(f"folder:{tmp_path}")
    data = open_data(f"folder:{tmp_path}", skip_bad_images=True)
    assert data.train.num_images + data.test.num_images == len(contents(data.train) + contents(data.test)) == 29
    assert data.notes == (f"1 of 30 images in {tmp_path} cannot be read and were skipped: red/7.jpg",)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".gif"])
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


def test_photographs_stand_upright_names_may_be_long_or_strange_and_links_that_lead_nowhere_are_no_classes(tmp_path):
    make_classes(tmp_path, number=3)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "red" / "inner").symlink_to(tmp_path / "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    names = ["über 日本 🐈.jpg", "x" * 250 + ".jpg"]
    for name in names:
        Image.new("RGB", (20, 10), COLOURS["red"]).save(tmp_path / "red" / name, exif=exif)
    Image.new("RGB", (20_000, 2), COLOURS["red"]).save(tmp_path / "red" / "wide.png")
    Image.new("RGB", (1, 1), COLOURS["red"]).save(tmp_path / "red" / "one.png")
    Image.new("CMYK", (5, 5), (0, 255, 255, 0)).save(tmp_path / "red" / "cmyk.jpg")
    Image.new("RGB", (5, 5), COLOURS["red"]).save(tmp_path / "red" / "a_png.jpg", "PNG")
    data = open_data(f"folder:{tmp_path}")
    assert data.labels == ("blue", "green", "red") and data.notes == ()
    shapes = [image.shape for split in (data.train, data.test) for image, _ in split.dataset().as_numpy_iterator()]
    assert len(shapes) == 9 + 6 and shapes.count((20, 10, 3)) == 2
    assert {(2, 20_000, 3), (1, 1, 3)} <= set(shapes)
