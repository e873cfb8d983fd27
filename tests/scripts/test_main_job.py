"""Transfer, export and predict as a user runs them, one after the other."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model_patch import Patch, Task, bind, bind_patch, open_data, open_trunk
from tests.conftest import smaller_net
from tests.scripts.run_script import run_script

SHORT = ("--epochs=1", "--max_train_images=64", "--max_test_images=50")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trunk, an image of a digit, what a run of transfer wrote, and a patch of another task."""
    work = tmp_path_factory.mktemp("work")
    smaller_net().save(work / "trunk.keras")
    pixels, _ = next(open_data("digits").test.dataset(1).as_numpy_iterator())
    Image.fromarray(pixels).resize((40, 40)).save(work / "digit.png")
    flags = ("--data=digits", "--train=last,scale_bias+last", f"--workdir={work}/digits")
    ran = run_script("transfer", f"--trunk=file:{work}/trunk.keras", *flags, *SHORT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    trunk = open_trunk(f"file:{work}/trunk.keras")
    faces = Task("faces", ("face", "no face"), trunk.preprocessing)
    bind(trunk, faces, "depthwise+last").patch().save(work / "faces.safetensors")
    return work


def patch(work, train):
    return f"{work}/digits/patches/{train}-seed0.safetensors"


def test_transfer_prints_a_table_and_writes_results(work):
    results = json.loads((work / "digits" / "results.json").read_text())
    assert results.keys() == {"trunk", "data", "image_size", "images", "versions", "machine", "rows"}
    assert [row["train"] for row in results["rows"]] == ["last", "scale_bias+last"]
    page = (work / "digits" / "results.md").read_text()
    assert "| last | 170 |" in page and "| scale_bias+last |" in page


def test_an_exported_task_runs_in_plain_tensorflow(work):
    """And predicts the same: what the script says of its own check is tested in `test_export`."""
    output = work / "saved_model"
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={patch(work, 'scale_bias+last')}", "--nocheck")
    ran = run_script("export", *flags, f"--output={output}")
    assert ran.returncode == 0 and "task digits, 10 labels, 32 px" in ran.stdout, ran.stderr[-2000:]
    serve = tf.saved_model.load(output).signatures["serving_default"]
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    predictions = serve(images=images)
    assert predictions["probabilities"].shape == (2, 10)
    bound = bind_patch(open_trunk(f"file:{work}/trunk.keras"), Patch.load(patch(work, "scale_bias+last")))
    expected = bound.model(bound.task.preprocessing(images))
    np.testing.assert_allclose(predictions["logits"], expected, atol=1e-4)


def test_predict_asks_every_task_about_every_image(work):
    patches = f"{patch(work, 'last')},{work}/faces.safetensors"
    flags = (f"--trunk=file:{work}/trunk.keras", f"--patches={patches}", f"--images={work}/*.png", "--top=2")
    ran = run_script("predict", *flags)
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = ran.stdout.splitlines()
    assert len(lines) == 2 and all("digit.png" in line for line in lines)
    assert "digits" in lines[0] and "faces" in lines[1] and "face" in lines[1]
