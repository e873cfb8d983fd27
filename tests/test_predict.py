import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from model_patch import ModelPatchError, Patch, Preprocessing, Task, Trunk, bind
from model_patch.data.stream import BATCH, BadImagesError
from model_patch.errors import PatchError
from model_patch.predict import choose_tasks, open_tasks, pick, predict
from tests.conftest import SIZE, smaller_net


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return Trunk(smaller_net(), "test", Preprocessing(SIZE, "tf"))


@pytest.fixture(scope="module")
def written(trunk, tmp_path_factory):
    """A folder with the trunk, the patches of two tasks, and two images."""
    folder = tmp_path_factory.mktemp("written")
    trunk.model.save(folder / "trunk.keras")
    names = {"shapes": ("circle", "square", "star"), "colours": ("red", "blue")}
    for i, (name, labels) in enumerate(names.items()):
        bind(trunk, Task(name, labels, trunk.preprocessing), seed=i).patch().save(folder / f"{name}.safetensors")
        Image.new("RGB", (20 + i, 30), (200, 30 * i, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def files(written, tmp_path):
    """A copy of the folder, for the test alone."""
    return shutil.copytree(written, tmp_path / "files")


def tasks_of(files, *names):
    return open_tasks(f"file:{files}/trunk.keras", [str(files / f"{name}.safetensors") for name in names])


def test_every_task_predicts_for_every_image_most_probable_label_first(files):
    predictions = list(predict(tasks_of(files, "shapes", "colours"), [f"{files}/*.png"], top=2))
    assert [(prediction.file[-5:], prediction.task) for prediction in predictions] == [
        (file, task) for file in ("0.png", "1.png") for task in ("shapes", "colours")
    ]
    for prediction in predictions:
        (_, first), (_, second) = prediction.top
        assert 1 >= first >= second >= 0
    assert {label for label, _ in predictions[1].top} == {"red", "blue"}


def test_a_mistyped_task_is_refused_and_the_known_ones_named(files):
    tasks = tasks_of(files, "shapes", "colours")
    assert [bound.task.name for bound in choose_tasks(tasks, ["colours"])] == ["colours"]
    assert choose_tasks(tasks, None) == tasks
    with pytest.raises(ModelPatchError, match="unknown task 'color': expected one of colours, shapes"):
        choose_tasks(tasks, ["color"])


def test_two_tasks_of_one_name_are_refused(files):
    with pytest.raises(ModelPatchError, match="two patches are for a task named 'shapes'"):
        tasks_of(files, "shapes", "shapes")


def test_a_missing_patch_and_a_missing_image_are_named(files):
    with pytest.raises(PatchError, match=r"nothing\.safetensors cannot be read"):
        tasks_of(files, "nothing")
    with pytest.raises(ModelPatchError, match=r"the image .*7\.png does not exist"):
        list(predict(tasks_of(files, "shapes"), [f"{files}/7.png"]))


def test_many_images_are_predicted_in_batches_as_each_by_itself(files, trunk):
    rng = np.random.default_rng(0)
    for i in range(BATCH + 3):
        height, width = rng.integers(5, 90, 2)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype="uint8")).save(files / f"many{i:03}.png")
    tasks = tasks_of(files, "shapes", "colours")
    several = list(predict(tasks, [f"{files}/many*.png"]))
    assert len(several) == 2 * (BATCH + 3)
    for i in (0, 5, BATCH, BATCH + 2):
        for bound, prediction in zip(tasks, several[2 * i : 2 * i + 2], strict=True):
            image = bound.task.preprocessing(np.asarray(Image.open(prediction.file)))
            expected = keras.ops.softmax(bound.model(np.asarray(image)[None], training=False))[0]
            assert prediction.task == bound.task.name and prediction.file == f"{files}/many{i:03}.png"
            np.testing.assert_allclose(
                [prediction.probabilities[label] for label in bound.task.labels], expected, atol=1e-5
            )


def test_tasks_with_a_last_layer_only_share_the_features_of_the_trunk(files, trunk):
    for name, seed in (("one", 1), ("two", 2)):
        task = Task(name, ("a", "b", "c"), trunk.preprocessing)
        bind(trunk, task, "last", seed=seed).patch().save(files / f"{name}.safetensors")
    tasks = tasks_of(files, "one", "shapes", "two")
    for prediction, bound in zip(predict(tasks, f"{files}/0.png"), tasks, strict=True):
        image = bound.task.preprocessing(np.asarray(Image.open(f"{files}/0.png")))
        expected = keras.ops.softmax(bound.model(np.asarray(image)[None], training=False))[0]
        np.testing.assert_allclose(list(prediction.probabilities.values()), expected, atol=1e-5)


def test_bad_images_are_named_at_the_end_and_the_others_predicted(files):
    (files / "bad.png").write_bytes(b"no image")
    (files / "cut.png").write_bytes((files / "0.png").read_bytes()[:60])
    paths = [f"{files}/{name}.png" for name in ("bad", "0", "nowhere", "1", "cut")]
    seen = []
    with pytest.raises(BadImagesError, match=r"3 of 5 images cannot be read: .*bad\.png, .*nowhere\.png, .*cut\.png"):
        seen.extend(prediction.file[-5:] for prediction in predict(tasks_of(files, "shapes"), iter(paths)))
    assert seen == ["0.png", "1.png"]


def test_a_folder_is_all_images_below_it(files):
    (files / "photos" / "inner").mkdir(parents=True)
    for name in ("photos/b.png", "photos/inner/a.JPG", "photos/.hidden.png", "photos/notes.txt"):
        Image.new("RGB", (9, 9)).save(files / name, format="PNG")
    found = [prediction.file for prediction in predict(tasks_of(files, "shapes"), str(files / "photos"))]
    assert found == [f"{files}/photos/b.png", f"{files}/photos/inner/a.JPG"]


def test_a_patch_is_loaded_and_not_passed_over(files, trunk):
    patch = Patch.load(files / "shapes.safetensors")
    (before,) = predict(tasks_of(files, "shapes"), [f"{files}/0.png"])
    key = next(key for key in patch.values if key.endswith("depthwise_bn/beta"))
    patch.values[key] = patch.values[key] + 1
    patch.save(files / "shapes.safetensors")
    (after,) = predict(tasks_of(files, "shapes"), [f"{files}/0.png"])
    assert before.top != after.top


def test_each_image_is_predicted_at_the_resolution_nearest_to_its_own(trunk, files):
    for size in (23, 41):
        other = Trunk(smaller_net(size=size), "test", Preprocessing(size, "tf"))
        task = Task(f"shapes-{size}px", ("circle", "square"), other.preprocessing)
        bind(other, task).patch().save(files / f"shapes-{size}px.safetensors")
    Image.new("RGB", (300, 400)).save(files / "2.png")
    tasks = tasks_of(files, "shapes-23px", "shapes-41px")
    predictions = list(predict(tasks, [f"{files}/*.png"], pick_resolution=True))
    assert [(a.file[-5:], a.task[-4:]) for a in predictions] == [
        ("0.png", "23px"),
        ("1.png", "23px"),
        ("2.png", "41px"),
    ]


@pytest.fixture(scope="module")
def sizes():
    bound = []
    for size in (32, 48, 96):
        preprocessing = Preprocessing(size, "tf")
        trunk = Trunk(smaller_net(size=size), "test", preprocessing)
        bound.append(bind(trunk, Task(f"{size}px", ("a", "b"), preprocessing)))
    return bound


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (32, 32, 32),
        (40, 40, 48),  # 48/40 is less than 40/32.
        (39, 39, 32),
        (64, 64, 48),
        (70, 70, 96),
        (96, 48, 96),  # As near to both: the larger.
        (1, 1, 32),
        (4000, 3000, 96),
        (16, 64, 32),
    ],
)
def test_the_nearest_size_in_proportion_is_picked(sizes, height, width, size):
    assert pick(sizes, height, width).task.name == f"{size}px"
    assert pick(reversed(sizes), height, width).task.name == f"{size}px"


def test_nothing_to_pick_from_and_images_without_pixels_are_refused(sizes):
    with pytest.raises(ModelPatchError, match="there is no task to pick from"):
        pick([], 32, 32)
    with pytest.raises(ModelPatchError, match="an image of 0 x 32 pixels"):
        pick(sizes, 0, 32)


def test_a_name_with_brackets_is_that_file_and_no_patch_an_error(files):
    Image.new("RGB", (20, 30)).save(files / "[01].png")
    tasks = tasks_of(files, "shapes")
    assert [prediction.file for prediction in predict(tasks, [f"{files}/[01].png"])] == [f"{files}/[01].png"]
    assert [prediction.file[-5:] for prediction in predict(tasks, f"{files}/[01].pn?")] == ["0.png", "1.png"]
    with pytest.raises(ModelPatchError, match="no patch is given: expected --patches=FILE"):
        tasks_of(files)
    with pytest.raises(ModelPatchError, match="no file is given"):
        list(predict(tasks, []))
