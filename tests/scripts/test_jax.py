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

# Batches of 19, 16 and 16: two devices cannot share the first evenly.
FLAGS = ("--epochs=2", "--max_train_images=51", "--max_test_images=31", "--batch_size=20")


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
    transfer = ("transfer", trunk, "--data=digits", "--train=last,scale_bias+last", "--norm_statistics=batch", *FLAGS)
    multitask = ("multitask", trunk, "--data=digits,textures", "--share=trunk", *FLAGS)
    run_at_once(
        ((*transfer, f"--workdir={work}/transfer"), 1),
        ((*transfer, f"--workdir={work}/transfer2", "--strategy=mirrored"), 2),
        ((*multitask, f"--workdir={work}/multitask"), 1),
        ((*multitask, f"--workdir={work}/multitask2", "--strategy=mirrored"), 2),
    )
    return work


@pytest.mark.parametrize("script", ["transfer", "multitask"])
def test_two_devices_end_with_the_loss_of_one(work, script):
    patches = {path.name: Patch.load(path) for path in (work / script / "patches").iterdir()}
    assert len(patches) == 2
    for name, one in patches.items():
        two = Patch.load(work / f"{script}2" / "patches" / name)
        assert one.versions["backend"] == "jax"
        assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=1e-3), name


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


def test_patches_are_asked_and_exports_are_tensorflows(work):
    patch = f"--patches={work}/transfer/patches/scale_bias+last-seed0.safetensors"
    trunk = f"--trunk=file:{work}/trunk.keras"
    ran = run("predict", trunk, patch, f"--images={work}/image.png")
    assert ran.returncode == 0 and "digits: " in ran.stdout, ran.stderr[-2000:]
    message = error_of(run("export", trunk, patch, f"--output={work}/exported"))
    assert "is written by TensorFlow and Keras runs on jax: set KERAS_BACKEND=tensorflow" in message
    assert not (work / "exported").exists()
    message = error_of(run("transfer", trunk, "--data=digits", "--strategy=tpu", f"--workdir={work}/tpu"))
    assert "--strategy=tpu is one of TensorFlow's: with KERAS_BACKEND=jax give mirrored" in message
