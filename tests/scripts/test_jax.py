"""The scripts on JAX, on one device and on two: what TensorFlow alone does says so."""

import functools
import importlib.util
import json
import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from PIL import Image

from model_patch import ModelPatchError, Patch, bind, export
from model_patch.training.strategies import devices
from tests.conftest import small_net
from tests.scripts.run_script import run_script

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
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {"KERAS_BACKEND": "jax", "XLA_FLAGS": xla}
    return run_script(script, *flags, **environment)


TASKS = {
    "transfer": ("transfer", "--data=digits", "--train=last,scale_bias+last", "--norm_statistics=batch", *EVEN),
    # Batch norms see the copies of an uneven batch (docs/scaling.md), unless their statistics are frozen.
    "uneven": ("transfer", "--data=digits", "--train=scale_bias+last", "--norm_statistics=frozen", *UNEVEN),
    "multitask": ("multitask", "--data=digits,textures", "--share=trunk", *UNEVEN),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trunk and an image."""
    work = tmp_path_factory.mktemp("jax")
    small_net().save(work / "trunk.keras")
    Image.fromarray(np.full((40, 60, 3), 90, "uint8")).save(work / "image.png")
    return work


@pytest.fixture(scope="module")
def trained(work):
    """A function from a name in `TASKS` to the folder of a run on one device; that of two devices has a 2 at its end."""

    @functools.cache
    def trained(name: str):
        script, *flags = TASKS[name]
        flags.append(f"--trunk=file:{work}/trunk.keras")
        with ThreadPoolExecutor() as pool:
            one = pool.submit(run, script, *flags, f"--workdir={work}/{name}")
            two = pool.submit(run, script, *flags, f"--workdir={work}/{name}2", "--strategy=mirrored", devices=2)
        for ran in (one.result(), two.result()):
            assert ran.returncode == 0, ran.stderr[-3000:]
        return work / name

    return trained


@pytest.mark.parametrize(
    ("name", "number"), [pytest.param("transfer", 2, marks=pytest.mark.soak), ("uneven", 1), ("multitask", 2)]
)
def test_two_devices_end_with_the_loss_of_one(trained, name, number):
    workdir = trained(name)
    patches = {path.name: Patch.load(path) for path in (workdir / "patches").iterdir()}
    assert len(patches) == number
    for file, one in patches.items():
        two = Patch.load(f"{workdir}2/patches/{file}")
        assert one.versions["backend"] == "jax"
        assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5, abs=1e-5), file


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


def test_patches_predict(work, trained):
    patch = f"--patches={trained('uneven')}/patches/scale_bias+last-seed0.safetensors"
    ran = run("predict", f"--trunk=file:{work}/trunk.keras", patch, f"--images={work}/image.png")
    assert ran.returncode == 0 and "digits: " in ran.stdout, ran.stderr[-2000:]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras runs on JAX in `make test-jax` only")
def test_exports_and_tpus_by_name_need_tensorflow(trunk, task, tmp_path):
    message = "is written by TensorFlow and Keras runs on jax: set KERAS_BACKEND=tensorflow"
    with pytest.raises(ModelPatchError, match=message):
        export("saved_model", [bind(trunk, task)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    message = "--strategy=tpu is one of TensorFlow's: with KERAS_BACKEND=jax give mirrored"
    with pytest.raises(ModelPatchError, match=message), devices("tpu"):
        pass
