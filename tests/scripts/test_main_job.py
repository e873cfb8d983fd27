"""Transfer, export and predict as a user runs them, one after the other, and what they say when they cannot."""

import json

import numpy as np
import pytest
from PIL import Image

from model_patch.data import open_data
from model_patch.export import clean_saved_model
from model_patch.export.verify import clean_process
from tests.conftest import small_net
from tests.scripts.run_script import error_of, run_script

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
    assert results.keys() == {"trunk", "data", "image_size", "images", "versions", "machine", "rows"}
    assert [row["train"] for row in results["rows"]] == ["last", "scale_bias+last"]
    page = (work / "digits" / "results.md").read_text()
    assert "| last | 170 |" in page and "| scale_bias+last |" in page


def test_an_exported_task_runs_in_plain_tensorflow(work):
    output = work / "saved_model"
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={patch(work, 'digits', 'scale_bias+last')}")
    ran = run_script("export", *flags, f"--output={output}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "10 labels" in ran.stdout and float(ran.stdout.rpartition("largest difference ")[2]) < 1e-4
    calls = [(output, np.zeros((2, 20, 30, 3), "float32"), ())]
    with clean_process(clean_saved_model.__file__) as run:
        (predictions,) = run(calls)
    assert predictions["probabilities"].shape == (2, 10)


def test_predict_asks_every_task_about_every_image(work):
    patches = f"{patch(work, 'digits', 'last')},{patch(work, 'faces', 'depthwise+last')}"
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={patches}", f"--images={work}/*.png", "--top=2")
    ran = run_script("predict", *flags)
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = ran.stdout.splitlines()
    assert len(lines) == 2 and all("digit.png" in line for line in lines)
    assert "digits" in lines[0] and "faces" in lines[1] and "face" in lines[1]


def test_weights_that_need_a_download_say_so_where_there_is_no_network(tmp_path):
    flags = ("--trunk=keras:MobileNetV2?alpha=0.35&weights=imagenet", "--image_size=96", f"--workdir={tmp_path}/run")
    # A proxy that nobody listens at cuts the network off, wherever the test runs; an empty home holds no older download.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    error = error_of(run_script("transfer", *flags, HOME=str(tmp_path), KERAS_HOME=str(tmp_path), **nowhere))
    assert "weights" in error and "download" in error
    assert not (tmp_path / "run").exists()
