"""Transfer, export and predict as a user runs them, one after the other, and what they say when they cannot."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_patch.data import open_data
from model_patch.export import clean_saved_model
from tests.conftest import small_net
from tests.scripts.run_script import ROOT, error_of, run_script

SHORT = ("--epochs=1", "--max_train_images=64", "--max_test_images=50")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trunk, an image of a digit, and what two runs of transfer wrote."""
    work = tmp_path_factory.mktemp("work")
    small_net().save(work / "trunk.keras")
    pixels, _ = next(open_data("digits").test.dataset(1).as_numpy_iterator())
    Image.fromarray(pixels).resize((40, 40)).save(work / "digit.png")
    for data, train in (("digits", "last,scale_bias+last"), ("faces", "depthwise+last")):
        flags = (f"--trunk=file:{work}/trunk.keras", f"--data={data}", f"--train={train}", f"--workdir={work}/{data}")
        ran = run_script("transfer", *flags, *SHORT)
        assert ran.returncode == 0, ran.stderr[-2000:]
    return work


def patch(work, data, train):
    return f"{work}/{data}/patches/{train}-seed0.safetensors"


def test_transfer_prints_a_table_and_writes_results(work):
    results = json.loads((work / "digits" / "results.json").read_text())
    assert results.keys() == {"trunk", "data", "image_size", "versions", "machine", "rows"}
    assert [row["train"] for row in results["rows"]] == ["last", "scale_bias+last"]
    assert (work / "digits" / "results.md").read_text().count("\n| ") == 4


def test_an_exported_task_runs_in_plain_tensorflow(work):
    output = work / "saved_model"
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={patch(work, 'digits', 'scale_bias+last')}")
    ran = run_script("export", *flags, f"--output={output}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "10 classes" in ran.stdout and float(ran.stdout.rpartition("largest difference ")[2]) < 1e-4
    np.save(work / "images.npy", np.zeros((2, 20, 30, 3), "float32"))
    subprocess.run(
        [sys.executable, clean_saved_model.__file__, output, work / "images.npy", work / "answers.npz"],
        check=True,
        cwd=work,
    )
    assert np.load(work / "answers.npz")["probabilities"].shape == (2, 10)
    assert "exists: choose another --output" in error_of(run_script("export", *flags, f"--output={output}"))


def test_predict_asks_every_task_about_every_image(work):
    patches = f"{patch(work, 'digits', 'last')},{patch(work, 'faces', 'depthwise+last')}"
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={patches}", f"--images={work}/*.png", "--top=2")
    ran = run_script("predict", *flags)
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = ran.stdout.splitlines()
    assert len(lines) == 2 and all("digit.png" in line for line in lines)
    assert "digits" in lines[0] and "faces" in lines[1] and "face" in lines[1]
    assert error_of(run_script("predict", *flags, "--tasks=face")) == (
        "unknown task 'face': expected one of digits, faces"
    )


def test_a_patch_of_another_trunk_is_refused(work):
    small_net(seed=1).save(work / "other.keras")
    flags = (f"--trunk=file:{work}/other.keras", f"--patches={patch(work, 'digits', 'scale_bias+last')}")
    error = error_of(run_script("export", *flags, f"--output={work}/never"))
    assert "belongs to another trunk" in error and "open the trunk it was made on" in error
    assert not (work / "never").exists()


@pytest.mark.parametrize("change", ["cut", "turned", "text", "missing"])
def test_a_damaged_patch_is_refused(work, tmp_path, change):
    whole = Path(patch(work, "digits", "last")).read_bytes()
    at = len(whole) - 100
    contents = {
        "cut": whole[:-1000],
        "turned": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "text": b"not a patch",
    }
    if change in contents:
        (tmp_path / "patch.safetensors").write_bytes(contents[change])
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={tmp_path}/patch.safetensors")
    error = error_of(run_script("predict", *flags, f"--images={work}/digit.png"))
    assert "patch.safetensors" in error


def test_an_image_that_is_none_is_refused(work, tmp_path):
    (tmp_path / "broken.png").write_bytes((work / "digit.png").read_bytes()[:-30])
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={patch(work, 'digits', 'last')}")
    ran = run_script("predict", *flags, f"--images={work}/digit.png,{tmp_path}/broken.png")
    assert "broken.png is not a readable image" in error_of(ran) and not ran.stdout


def test_the_workdir_of_another_run_is_refused(work):
    flags = (f"--trunk=file:{work}/trunk.keras", "--data=faces", f"--workdir={work}/digits")
    before = (work / "digits" / "results.json").read_bytes()
    error = error_of(run_script("transfer", *flags))
    assert "holds another run" in error and "data 'digits' there and 'faces' here" in error
    assert (work / "digits" / "results.json").read_bytes() == before


def test_a_loss_that_becomes_nan_ends_the_run_and_keeps_no_row(work, tmp_path):
    flags = (f"--trunk=file:{work}/trunk.keras", "--train=last", "--learning_rate=1e38", "--optimizer=sgd")
    error = error_of(run_script("transfer", *flags, *SHORT, "--epochs=9", f"--workdir={tmp_path}/run"))
    assert "use a lower --learning_rate" in error
    assert not (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "patches").exists()


def test_weights_that_need_a_download_say_so_where_there_is_no_network(tmp_path):
    flags = ("--trunk=keras:MobileNetV2?alpha=0.35&weights=imagenet", "--image_size=96", f"--workdir={tmp_path}/run")
    # A proxy that nobody listens at cuts the network off, wherever the test runs; an empty home holds no older download.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    error = error_of(run_script("transfer", *flags, HOME=str(tmp_path), KERAS_HOME=str(tmp_path), **nowhere))
    assert "weights" in error and "download" in error
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_says_how_it_goes_on_and_does(work, tmp_path):
    flags = (
        f"--trunk=file:{work}/trunk.keras",
        "--train=last,full",
        "--max_test_images=50",
        f"--workdir={tmp_path}/run",
    )
    command = [sys.executable, str(ROOT / "scripts" / "transfer.py"), *flags, "--epochs=24"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    results = tmp_path / "run" / "results.json"
    deadline = time.monotonic() + 120
    while not results.exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    # Python drops an interrupt that comes while it cleans an object up: then, as people do, press the keys again.
    for _ in range(3):
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=4)
            break
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in stderr, stderr[-2000:]
    assert "error: interrupted: rows that are finished are kept; the same command goes on" in stderr
    (kept,) = json.loads(results.read_text())["rows"]
    ran = run_script("transfer", *flags, "--epochs=24")
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = json.loads(results.read_text())["rows"]
    assert rows[0] == kept and [row["train"] for row in rows] == ["last", "full"]
