"""What was found out about image files is kept between processes, and only changed files are looked at again."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Recipe, Task, Trunk, bind, fit, open_data
from model_patch.data import pipeline
from model_patch.data.folder_index import cache_folder
from tests.conftest import SIZE, small_net
from tests.data.test_folder import make_classes, save

HOUR = 3600 * 10**9


def settle(folder: Path, nanoseconds: int = 10**18):
    """Gives every file an old modification time, so that the index keeps what is known of it."""
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(nanoseconds, nanoseconds))


def garble(path: Path):
    """Replaces the contents of a file; its size and its modification time stay."""
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def num_images(folder: Path, **options) -> int:
    data = open_data(f"folder:{folder}", **options)
    return data.train.num_images + data.test.num_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_PATCH_CACHE", str(tmp_path / "cache"))
    make_classes(tmp_path / "paints", number=4)
    settle(tmp_path / "paints")
    return tmp_path / "paints"


def test_a_file_of_the_same_size_and_time_is_not_read_again(folder):
    assert num_images(folder) == 12
    garble(folder / "red" / "1.png")
    assert num_images(folder) == 12


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_file_that_changed_is_read_again(folder, change):
    assert num_images(folder) == 12
    path = folder / "red" / "1.png"
    if change == "time":
        garble(path)
        os.utime(path, ns=(0, HOUR))
    else:
        path.write_bytes(b"no image")
        os.utime(path, ns=(10**18, 10**18))
    with pytest.raises(ModelPatchError, match=r"1 of 12 images .*: red/1\.png"):
        open_data(f"folder:{folder}")
    assert num_images(folder, skip_bad_images=True) == 11


def test_a_bad_file_is_remembered_and_can_be_mended(folder):
    (folder / "blue" / "2.png").write_bytes(b"")
    settle(folder)
    for _ in range(2):
        with pytest.raises(ModelPatchError, match=r"1 of 12 .*: blue/2\.png"):
            open_data(f"folder:{folder}")
    save(folder / "blue" / "2.png", (0, 0, 200))
    assert num_images(folder) == 12


def test_new_and_removed_files_leave_what_is_known_of_the_others(folder):
    assert num_images(folder) == 12
    garble(folder / "red" / "3.png")  # Is known, and stays so.
    save(folder / "red" / "0a.png", (200, 0, 0))
    (folder / "green" / "0.png").unlink()
    settle(folder)
    assert num_images(folder) == 12


def test_a_file_that_has_just_been_written_is_not_kept(folder):
    path = folder / "red" / "1.png"
    os.utime(path)
    assert num_images(folder) == 12
    garble(path)
    with pytest.raises(ModelPatchError, match=r"red/1\.png"):
        open_data(f"folder:{folder}")


def test_damage_that_a_header_does_not_show_is_found_by_verifying_and_is_remembered(folder):
    damage(folder / "red" / "1.png")
    settle(folder)
    assert num_images(folder) == 12
    with pytest.raises(ModelPatchError, match=r"1 of 12 .*: red/1\.png"):
        open_data(f"folder:{folder}", verify_images=True)
    with pytest.raises(ModelPatchError, match=r"1 of 12 .*: red/1\.png"):
        open_data(f"folder:{folder}")
    assert num_images(folder, skip_bad_images=True) == 11


def damage(path: Path):
    """Changes a PNG between its header and its end: only decoding shows it."""
    status = path.stat()
    contents = bytearray(path.read_bytes())
    middle = contents.index(b"IDAT") + 6
    contents[middle : middle + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(contents))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def bound_to(data):
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    return bind(trunk, Task("paints", data.labels, trunk.preprocessing))


def train_path(folder: Path) -> Path:
    """The first image to train on."""
    path = next(iter(open_data(f"folder:{folder}").train.stored(1)))[0].numpy()
    return Path(os.fsdecode(path))


@pytest.mark.parametrize("train", ["scale_bias+last", "last"])
def test_an_image_that_turns_out_unreadable_in_training_is_an_error_that_names_it(folder, train):
    path = train_path(folder)
    damage(path)
    data = open_data(f"folder:{folder}")
    bound = bound_to(data)
    bound = bind(bound.trunk, bound.task, train)
    with pytest.raises(
        ModelPatchError, match=rf"1 images cannot be read: {path.parent.name}/{path.name}; .*--skip_bad"
    ):
        fit(bound, data, Recipe(epochs=1, batch_size=4))


@pytest.mark.parametrize("augmentation", ["none", "shift"])
def test_or_it_is_left_out_with_a_warning_and_not_opened_again(folder, augmentation, caplog):
    path = train_path(folder)
    damage(path)
    data = open_data(f"folder:{folder}", skip_bad_images=True)
    images = pipeline.batches(
        data.train, Preprocessing(SIZE, "tf"), 4, augmentation=augmentation, shuffle_seed=0, epochs=range(2)
    )
    labels = [labels for _, labels in images]
    # An epoch keeps its length: another image with its label takes its place.
    assert sorted(np.concatenate(labels)) == sorted(np.tile(data.train.image_labels(), 2))
    assert f"{path} cannot be read and is left out" in caplog.text
    assert len(list(data.train.dataset())) == data.train.num_images - 1
    assert num_images(folder, skip_bad_images=True) == 11


def test_tests_count_each_image_once_where_one_is_left_out(folder):
    data = open_data(f"folder:{folder}", skip_bad_images=True)
    damage(Path(os.fsdecode(next(iter(data.test.stored(1)))[0].numpy())))
    images = pipeline.batches(data.test, Preprocessing(SIZE, "tf"), 2, cache=False)
    assert sum(len(labels) for _, labels in images) == data.test.num_images - 1


def test_an_index_knows_how_large_images_are_once_decoded_at_a_fraction(tmp_path):
    for name in ("blue", "red"):
        for i in range(3):
            save(tmp_path / name / f"{i}.jpg", (1, 2, 3), size=(401, 300))
        save(tmp_path / name / "3.png", (1, 2, 3), size=(401, 300))
    settle(tmp_path)
    for _ in range(2):  # Then from the index.
        data = open_data(f"folder:{tmp_path}")
        sizes = [sum(split.image_bytes(least) for split in (data.train, data.test)) for least in (0, 150, 151, 37)]
        assert sizes == [pytest.approx(3 * 401 * 300 * (2 + 6 / by), abs=8) for by in (1, 4, 1, 64)]


def test_the_summary_is_the_same_when_the_index_is_used(folder):
    save(folder / "red" / "photo.png", (1, 2, 3), size=(1, 1))
    (folder / "red" / "photo.png").rename(folder / "red" / "photo.jpg")
    settle(folder)
    first, second = (open_data(f"folder:{folder}").notes for _ in range(2))
    assert first == second and "one pixel high or wide" in first[0] and "of another format" in first[0]


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_a_damaged_index_is_made_again(folder, damage):
    assert num_images(folder) == 12
    (index,) = (cache_folder() / "folders").iterdir()
    contents = index.read_bytes()
    index.write_bytes({"cut": contents[:200], "foreign": b"a text", "empty": b""}[damage])
    assert num_images(folder) == 12
    garble(folder / "red" / "1.png")
    assert num_images(folder) == 12  # So it was written again.


def test_a_cache_that_cannot_be_written_changes_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MODEL_PATCH_CACHE", str(tmp_path / "file"))
    assert num_images(folder) == num_images(folder) == 12


OPEN = "import sys; from model_patch.data.folder import open_folder; from model_patch.spec import parse; open_folder(parse(sys.argv[1]))"


@pytest.mark.slow
def test_two_processes_that_open_one_folder_at_once_leave_a_whole_index(folder):
    running = [subprocess.Popen([sys.executable, "-c", OPEN, f"folder:{folder}"]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    garble(folder / "red" / "1.png")
    assert num_images(folder) == 12
    assert [each.suffix for each in (cache_folder() / "folders").iterdir()] == [".npz"]
