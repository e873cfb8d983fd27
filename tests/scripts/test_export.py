"""Export as a user runs it, in its formats, and what it says when it cannot."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import load_file

from model_patch import Preprocessing, Task, Trunk, bind
from tests.conftest import SIZE, small_net
from tests.scripts.run_script import run_script

LABELS = {"digits": tuple("0123456789"), "two": ("a", "b")}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of a trunk and of two patches on it."""
    work = tmp_path_factory.mktemp("work")
    net = small_net()
    net.save(work / "trunk.keras")
    trunk = Trunk(net, "test", Preprocessing(SIZE, "tf"))
    for name, labels in LABELS.items():
        bind(trunk, Task(name, labels, trunk.preprocessing)).patch().save(work / f"{name}.safetensors")
    return f"--trunk=file:{work}/trunk.keras", "--patches=" + ",".join(f"{work}/{name}.safetensors" for name in LABELS)


@pytest.mark.slow
def test_a_litert_set_is_checked_on_random_and_on_real_images(flags, tmp_path):
    options = ("--format=litert_set", "--quantize=dynamic", "--data=digits")
    ran = run_script("export", *flags, *options, f"--output={tmp_path}/set")
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [line for line in ran.stdout.splitlines() if "task" in line]
    for line, (name, labels) in zip(lines, LABELS.items(), strict=True):
        assert f"task {name}, {len(labels)} labels, 32 px, largest difference " in line
        assert float(line.rpartition("the same prediction on ")[2].partition("%")[0]) > 90
    assert {path.name for path in (tmp_path / "set").iterdir()} == {
        "net.tflite",
        "digits.safetensors",
        "two.safetensors",
    }
    ask = Interpreter(str(tmp_path / "set" / "net.tflite")).get_signature_runner("serving_default")
    prediction = ask(images=np.zeros((1, SIZE, SIZE, 3), "float32"), **load_file(tmp_path / "set" / "two.safetensors"))
    assert prediction["probabilities"].shape == (1, 10) and prediction["probabilities"][0, :2].sum() == pytest.approx(1)
