import json

import numpy as np
import pytest
from PIL import Image

from configs import detect_scenes
from model_patch import ModelPatchError, Patch, Task, bind
from model_patch.data.stream import BadImagesError
from model_patch.detection.detector import evaluate_on, open_detector, predict_files
from model_patch.experiments.detector import detector_path, train_detector, trunk_of
from model_patch.trunks import open_trunk
from tests.conftest import small_net
from tests.detection.conftest import SIZE

SCENES = "scenes:digits?size=64&train=48&test=12&objects=2"


def config(trunk, **fields):
    config = detect_scenes.get_config()
    small = {"data": SCENES, "image_size": SIZE, "num_trunk_maps": 2, "num_maps": 2, "width": 0.1, "batch_size": 16}
    config.update(trunk=f"file:{trunk}", epochs=2, seeds=(0,), **small)
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("trunk") / "trunk.keras"
    small_net(size=SIZE).save(path)
    return path


@pytest.fixture(scope="module")
def run(trunk_file, tmp_path_factory):
    """A trained detector: its workdir and results."""
    workdir = tmp_path_factory.mktemp("run") / "detect"
    return workdir, train_detector(config(trunk_file), workdir)


def test_a_run_writes_the_detector_its_trunk_a_picture_and_a_table(run):
    workdir, results = run
    assert json.loads((workdir / "results.json").read_text()) == results
    (row,) = results["rows"]
    assert {"mAP", "mAP@50", "mAP@75", "trunk", "trained_parameters", "head_parameters"} <= row.keys()
    assert detector_path(workdir, 0).is_file() and (workdir / "results.md").read_text().startswith("# scenes:digits")
    with Image.open(workdir / "detections-seed0.png") as picture:
        assert picture.size == (4 * 384, 3 * 384)


def test_the_detector_is_a_head_on_a_trunk_that_learnt(run, trunk_file):
    workdir, results = run
    patch = Patch.load(detector_path(workdir, 0))
    assert all("/" not in key for key in patch.values) and str(patch.train_spec) == "last"
    before, after = (open_trunk(spec, SIZE).variables() for spec in (f"file:{trunk_file}", results["rows"][0]["trunk"]))
    assert before.keys() == after.keys()
    assert not any(np.array_equal(before[key], after[key]) for key in before if "kernel" in key or "gamma" in key)


def test_it_is_opened_with_the_trunk_that_it_names_and_measures_the_same(run):
    workdir, results = run
    bound = open_detector(detector_path(workdir, 0))
    again = evaluate_on(bound, SCENES)
    assert again == pytest.approx({name: results["rows"][0][name] for name in again}, abs=1e-6)


def test_another_task_is_bound_to_its_trunk(run):
    workdir, results = run
    spec = trunk_of(str(workdir))
    assert spec == results["rows"][0]["trunk"] and trunk_of(spec) == spec
    trunk = open_trunk(spec, 32)
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last")
    assert bound.model.output.shape == (None, 2)


def test_the_same_run_goes_on_where_it_stopped(run, trunk_file):
    workdir, results = run
    before = detector_path(workdir, 0).stat().st_mtime_ns
    assert train_detector(config(trunk_file), workdir) == results
    assert detector_path(workdir, 0).stat().st_mtime_ns == before, "nothing is trained again"
    with pytest.raises(ModelPatchError, match="holds another run .epochs 2 there and 3 here"):
        train_detector(config(trunk_file, epochs=3), workdir)


def test_a_detector_can_be_a_patch_on_the_trunk_that_is_given(trunk_file, tmp_path):
    results = train_detector(config(trunk_file, train="scale_bias+last", epochs=1), tmp_path / "run")
    patch = Patch.load(detector_path(tmp_path / "run", 0))
    assert patch.trunk == f"file:{trunk_file}" == results["rows"][0]["trunk"]
    assert any("/" in key for key in patch.values)
    assert not (tmp_path / "run" / "trunks").exists()
    assert results["rows"][0]["trained_fraction"] < 1


def test_image_files_are_predicted_with_labels_boxes_and_pictures(run, tmp_path):
    for name in ("a.png", "b.jpg", "[ab].png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), "uint8")).save(tmp_path / name)
    bound = open_detector(detector_path(run[0], 0))
    one, two = predict_files(bound, [f"{tmp_path}/[a-b].*g"], 0.0, tmp_path / "out")
    assert (one.file, two.file) == (f"{tmp_path}/a.png", f"{tmp_path}/b.jpg") and one.objects
    label, score, box = one.objects[0]
    assert label in "0123456789" and 0 <= score <= 1 and len(box) == 4
    with Image.open(two.picture) as picture:
        assert picture.size == (80 * 8, 50 * 8)
    (named,) = predict_files(bound, [f"{tmp_path}/[ab].png"])
    assert named.file == f"{tmp_path}/[ab].png", "a name that exists is that file, though it is a pattern, too"


def test_detections_are_a_stream_in_which_bad_images_are_named_at_the_end(run, tmp_path):
    """Over 64 images, one of them alone, and no pictures: every one gets what it gets by itself."""
    random = np.random.default_rng(0)
    for i in range(67):
        Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), "uint8")).save(tmp_path / f"{i:02}.png")
    (tmp_path / "30.png").write_bytes(b"no image")
    bound, found = open_detector(detector_path(run[0], 0)), []
    with pytest.raises(BadImagesError, match=r"1 of 67 images cannot be read: .*30.png"):
        found.extend(predict_files(bound, str(tmp_path), score=0.0))
    assert [each.file[-6:] for each in found] == [f"{i:02}.png" for i in range(67) if i != 30]
    for each in (found[0], found[-1]):
        (alone,) = predict_files(bound, each.file, score=0.0)
        assert each.picture is None and [label for label, _, _ in alone.objects] == [
            label for label, _, _ in each.objects
        ]
        np.testing.assert_allclose([o[1] for o in alone.objects], [o[1] for o in each.objects], atol=1e-5)


def test_what_cannot_be_used_is_refused(run, trunk_file, trunk, tmp_path):
    detector = detector_path(run[0], 0)
    bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "last").patch().save(tmp_path / "two.safetensors")
    with pytest.raises(ModelPatchError, match="is for the classification task 'two': expected a detector"):
        open_detector(tmp_path / "two.safetensors")
    with pytest.raises(ModelPatchError, match="belongs to another trunk"):
        open_detector(detector, f"file:{trunk_file}")
    bound = open_detector(detector)
    other = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": []}
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(other | {"categories": [{"id": 1, "name": "car"}]}))
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "x" / "a.png"):
        Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(path)
    with pytest.raises(
        ModelPatchError, match="has 1 classes, 'car' first, and the detector 'digits-scenes' 10, '0' first"
    ):
        evaluate_on(bound, f"coco:{tmp_path}?train_images=.&test_images=.")
    with pytest.raises(ModelPatchError, match="nowhere.png does not exist"):
        next(predict_files(bound, [f"{tmp_path}/a.png", f"{tmp_path}/nowhere.png"], 0.5, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    found = predict_files(bound, [f"{tmp_path}/a.png", f"{tmp_path}/x/a.png"], 0.5, tmp_path / "out")
    assert [each.picture.name for each in found] == ["a.png", "a-2.png"]
    with pytest.raises(ModelPatchError, match="holds no detector yet: train it"):
        trunk_of(str(tmp_path))
    with pytest.raises(ModelPatchError, match="holds no detector of seed 3, only 0"):
        trunk_of(str(run[0]), 3)
    with pytest.raises(ModelPatchError, match="the folder runs/nowhere does not exist"):
        trunk_of("runs/nowhere")


def test_bad_settings_are_found_before_anything_is_written(trunk_file, tmp_path):
    for fields, message in (
        ({"seeds": ()}, "seeds is empty"),
        ({"augmentation": "shift"}, "unknown augmentation of detection 'shift'"),
        ({"confidence": "own"}, "unknown confidence"),
        ({"layers": ("nowhere",)}, "has no layer 'nowhere'"),
        ({"min_scale": 2.0}, "expected 0 < min <= max <= 1"),
    ):
        with pytest.raises(ModelPatchError, match=message):
            train_detector(config(trunk_file, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
