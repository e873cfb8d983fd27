"""A detector as a user makes it and uses it: trained, measured, asked about files, exported, and made a classifier."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from model_patch import Patch, bind_patch
from model_patch.export import clean_saved_model
from model_patch.export.verify import clean_process
from model_patch.trunks import open_trunk
from tests.conftest import small_net
from tests.scripts.run_script import error_of, run_script
from tests.trunks import slim_nets
from tests.trunks.slim_nets import SlimNet
from tests.trunks.test_slim import as_detector, values_of, write_checkpoint

DATA = "--data=scenes:digits?size=64&train=48&test=12&objects=2"
SMALL = (
    "--image_size=64",
    "--epochs=1",
    "--seeds=0",
    "--config.num_trunk_maps=2",
    "--config.num_maps=4",
    "--config.width=0.1",
    "--config.batch_size=16",
)

pytestmark = (
    pytest.mark.slow
)  # Each step is a process of its own; tests/experiments/test_detector.py calls the functions.


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with an image and a trained detector."""
    work = tmp_path_factory.mktemp("work")
    small_net(size=64).save(work / "trunk.keras")
    Image.fromarray(np.full((40, 60, 3), 90, "uint8")).save(work / "image.png")
    flags = (f"--trunk=file:{work}/trunk.keras", f"--workdir={work}/detect", DATA)
    ran = run_script("detect", "train", *flags, *SMALL)
    assert ran.returncode == 0 and "mAP@50" in ran.stdout, ran.stderr[-2000:]
    return work


def detector(work):
    return f"{work}/detect/detectors/seed0.safetensors"


def test_it_is_measured_and_asked_about_files(work, tmp_path):
    ran = run_script("detect", "evaluate", detector(work), DATA)
    assert ran.returncode == 0, ran.stderr[-2000:]
    measured = {line.split()[0]: float(line.split()[1]) for line in ran.stdout.splitlines()}
    (row,) = json.loads((work / "detect" / "results.json").read_text())["rows"]
    assert measured == pytest.approx({name: row[name] for name in ("mAP", "mAP@50", "mAP@75")}, abs=1e-4)
    ran = run_script("detect", "predict", detector(work), f"{work}/image.png", f"--output={tmp_path}/out", "--score=0")
    assert ran.returncode == 0 and "image.png  " in ran.stdout and " ymin " in ran.stdout, ran.stderr[-2000:]
    with Image.open(tmp_path / "out" / "image.png") as picture:
        assert picture.format == "PNG"


def test_its_export_runs_in_plain_tensorflow(work, tmp_path):
    ran = run_script("detect", "export", detector(work), f"--output={tmp_path}/saved")
    assert ran.returncode == 0 and "10 labels, 64 px" in ran.stdout, ran.stderr[-2000:]
    calls = [(tmp_path / "saved", np.zeros((2, 20, 30, 3), "float32"), ())]
    with clean_process(clean_saved_model.__file__) as run:
        (predictions,) = run(calls)
    assert predictions["boxes"].shape == (2, 100, 4)
    assert predictions["scores"].shape == predictions["classes"].shape == predictions["labels"].shape == (2, 100)


def test_its_trunk_becomes_a_classifier(work, tmp_path):
    flags = (f"--detector={work}/detect", "--data=textures", "--train=last,scale_bias+last", "--epochs=1")
    ran = run_script("ssd_to_classification", *flags, f"--workdir={tmp_path}/run", "--config.max_train_images=64")
    assert ran.returncode == 0, ran.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "/detect/trunks/seed0" in results["trunk"]
    assert [row["train"] for row in results["rows"]] == ["last", "scale_bias+last"]


def test_the_trunk_of_a_detector_of_the_object_detection_api_becomes_a_classifier(tmp_path):
    net = SlimNet("MobilenetV2", slim_nets.mobilenet_v2(0.35), 32)
    checkpoint = write_checkpoint(as_detector(values_of(net)), tmp_path / "ssd" / "model.ckpt")
    small = ("--epochs=1", "--image_size=32", "--config.max_train_images=64", "--config.max_test_images=32")
    flags = (f"--detector=slim:{checkpoint}", "--data=digits", "--train=last,scale_bias+last", *small)
    ran = run_script("ssd_to_classification", *flags, f"--workdir={tmp_path}/run")
    assert ran.returncode == 0, ran.stderr[-2000:]
    report = (tmp_path / "run" / "results.md").read_text()
    assert "Trunk weights left unchanged: last 100.0 %, scale_bias+last 96.6 %." in report
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert [(row["train"], row["trained_parameters"]) for row in rows] == [
        ("last", 12_810),
        ("scale_bias+last", 14_080 + 12_810),
    ]
    # The patch stands on the detector's own values.
    trunk = open_trunk(f"slim:{checkpoint}", 32)
    for row in rows:
        bind_patch(trunk, Patch.load(tmp_path / "run" / "patches" / f"{row['train']}-seed0.safetensors"))
    stem = next(variable for key, variable in trunk.variables().items() if key == "Conv1/kernel")
    assert np.array_equal(stem, net.by_name["MobilenetV2/Conv/weights"])


def test_what_cannot_be_used_is_one_sentence_and_nothing_is_written(work, tmp_path):
    run = f"--workdir={tmp_path}/run"
    cases = {
        (
            "detect",
            "train",
            f"--trunk=file:{work}/trunk.keras",
            run,
            DATA,
            "--train=heads",
        ): "unknown patch kind 'heads'",
        ("detect", "predict", detector(work), "--output=x"): "predict expects DETECTOR IMAGE [IMAGES...] --output=..",
        ("detect", "export", detector(work), f"--output={tmp_path}/x", "--config.epochs=3"): "not take --config.epochs",
        ("ssd_to_classification", "--detector=runs/nowhere", run): "the folder runs/nowhere does not exist",
    }
    with ThreadPoolExecutor(2) as pool:  # A process spends most of its time importing.
        for ran, message in zip(pool.map(lambda case: run_script(*case), cases), cases.values(), strict=True):
            assert message in error_of(ran)
    assert not list(tmp_path.iterdir())
