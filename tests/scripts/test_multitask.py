"""Multi-task training as a user runs it, and what is done with its files."""

import json

import pytest
from PIL import Image

from model_patch.data import open_data
from tests.conftest import small_net
from tests.scripts.run_script import error_of, run_script

SHORT = ("--epochs=1", "--batch_size=16", "--max_train_images=48", "--max_test_images=50")

pytestmark = (
    pytest.mark.slow
)  # Each step is a process of its own; tests/experiments/test_multitask.py calls the functions.


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trunk, an image, and what a run wrote: two tasks of different image sizes, on a trained trunk."""
    work = tmp_path_factory.mktemp("work")
    small_net().save(work / "trunk.keras")
    pixels, _ = next(open_data("digits").test.dataset(1).as_numpy_iterator())
    Image.fromarray(pixels).resize((40, 40)).save(work / "digit.png")
    ran = run_script("multitask", *flags(work), "--share=trunk,trunk+patch", "--image_sizes=0,23", *SHORT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "share=trunk+patch, seed 0: mean test accuracy" in ran.stderr
    assert "digits, textures on file:" in ran.stdout and "trunk+patch" in ran.stdout
    return work


def flags(work, **others):
    given = {"trunk": f"file:{work}/trunk.keras", "data": "digits,textures", "workdir": f"{work}/run"} | others
    return [f"--{name}={value}" for name, value in given.items()]


def test_the_results_are_written(work):
    results = json.loads((work / "run" / "results.json").read_text())
    assert [(row["share"], row["task"], row["image_size"]) for row in results["rows"]] == [
        (share, task, size) for share in ("trunk", "trunk+patch") for task, size in (("digits", 32), ("textures", 23))
    ]
    assert (work / "run" / "accuracy_by_task.png").exists()


def test_what_was_learnt_predicts_on_the_trained_trunk_and_not_on_the_old_one(work):
    row = json.loads((work / "run" / "results.json").read_text())["rows"][0]
    patches = ",".join(f"{work}/run/patches/trunk-{task}-seed0.safetensors" for task in ("digits", "textures"))
    arguments = (f"--patches={patches}", f"--images={work}/digit.png")
    ran = run_script("predict", f"--trunk={row['trunk']}", *arguments)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "digits:" in ran.stdout and "textures:" in ran.stdout
    picked = run_script("predict", f"--trunk={row['trunk']}", *arguments, "--pick_resolution")
    assert "digits:" in picked.stdout and "textures:" not in picked.stdout
    old = run_script("predict", f"--trunk=file:{work}/trunk.keras", *arguments)
    assert "belongs to another trunk" in error_of(old)
