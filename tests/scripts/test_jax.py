"""The scripts on JAX, on one device and on two: what TensorFlow alone does says so."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from PIL import Image

from model_patch import Patch
from tests.conftest import small_net
from tests.scripts.run_script import error_of, run_script

pytestmark = [
    # With `make test-jax` JAX is there, or nothing runs.
    pytest.mark.skipif(
        importlib.util.find_spec("jax") is None and keras.backend.backend() != "jax", reason="needs the package jax"
    ),
    pytest.mark.slow,
]

# Batches of 19, 16 and 16: two devices cannot share the first evenly, and it is padded with a copy.
UNEVEN = ("--epochs=2", "--max_train_images=51", "--max_test_images=31", "--batch_size=20")
EVEN = ("--epochs=2", "--max_train_images=48", "--max_test_images=31", "--batch_size=16")


def run(script, *flags, devices=1):
    environment = {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return run_script(script, *flags, timeout=600, **environment)


def run_at_once(*runs):
    with ThreadPoolExecutor() as pool:
        for ran in pool.map(lambda each: run(*each[0], devices=each[1]), runs):
            assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with what the scripts trained: one task and joined tasks, each on one device and on two."""
    work = tmp_path_factory.mktemp("jax")
    small_net().save(work / "trunk.keras")
    Image.fromarray(np.full((40, 60, 3), 90, "uint8")).save(work / "image.png")
    trunk = f"--trunk=file:{work}/trunk.keras"
    digits = ("transfer", trunk, "--data=digits")
    runs = {
        "transfer": (*digits, "--train=last,scale_bias+last", "--norm_statistics=batch", *EVEN),
        # Batch norms see the copies of an uneven batch (docs/scaling.md), unless their statistics are frozen.
        "uneven": (*digits, "--train=scale_bias+last", "--norm_statistics=frozen", *UNEVEN),
        "multitask": ("multitask", trunk, "--data=digits,textures", "--share=trunk", *UNEVEN),
    }
    run_at_once(*(((*flags, f"--workdir={work}/{name}"), 1) for name, flags in runs.items()))
    run_at_once(*(((*flags, f"--workdir={work}/{name}2", "--strategy=mirrored"), 2) for name, flags in runs.items()))
    return work


@pytest.mark.parametrize(("name", "number"), [("transfer", 2), ("uneven", 1), ("multitask", 2)])
def test_two_devices_end_with_the_loss_of_one(work, name, number):
    patches = {path.name: Patch.load(path) for path in (work / name / "patches").iterdir()}
    assert len(patches) == number
    for file, one in patches.items():
        two = Patch.load(work / f"{name}2" / "patches" / file)
        assert one.versions["backend"] == "jax"
        assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=1e-5), file


def test_a_detector_is_trained_and_measured(tmp_path):
    small_net(size=64).save(tmp_path / "trunk.keras")
    data = "--data=scenes:digits?size=64&train=32&test=6&objects=2"
    size = (
        "--image_size=64",
        "--config.num_trunk_maps=1",
        "--config.num_maps=1",
        "--config.batch_size=16",
        "--epochs=1",
    )
    trunk, workdir = f"--trunk=file:{tmp_path}/trunk.keras", tmp_path / "detect"
    flags = (trunk, data, *size, "--seeds=0", f"--workdir={workdir}", "--strategy=mirrored")
    ran = run("detect", "train", *flags, devices=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (row,) = json.loads((workdir / "results.json").read_text())["rows"]
    assert 0 <= row["mAP@50"] <= 1 and row["final_loss"] > 0
    assert Patch.load(workdir / "detectors" / "seed0.safetensors").task.type == "detection"


def test_patches_predict_and_exports_need_tensorflow(work):
    patch = f"--patches={work}/transfer/patches/scale_bias+last-seed0.safetensors"
    trunk = f"--trunk=file:{work}/trunk.keras"
    ran = run("predict", trunk, patch, f"--images={work}/image.png")
    assert ran.returncode == 0 and "digits: " in ran.stdout, ran.stderr[-2000:]
    message = error_of(run("export", trunk, patch, f"--output={work}/exported"))
    assert "is written by TensorFlow and Keras runs on jax: set KERAS_BACKEND=tensorflow" in message
    assert not (work / "exported").exists()
    message = error_of(run("transfer", trunk, "--data=digits", "--strategy=tpu", f"--workdir={work}/tpu"))
    assert "--strategy=tpu is one of TensorFlow's: with KERAS_BACKEND=jax give mirrored" in message
