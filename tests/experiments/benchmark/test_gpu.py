"""The suite for accelerators runs from one end to the other on JAX, without TensorFlow; times are not looked at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.conftest import small_net

ROOT = Path(__file__).resolve().parents[3]

WITHOUT_TENSORFLOW = """import runpy, sys
sys.modules["tensorflow"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None and keras.backend.backend() != "jax", reason="needs the package jax"
)
def test_it_runs_on_jax_without_tensorflow(tmp_path):
    small_net().save(tmp_path / "net.keras")
    script = ROOT / "scripts" / "benchmark.py"
    flags = [
        *("--suite=gpu", f"--trunk=file:{tmp_path}/net.keras?preprocessing=tf", "--gpu_size=32", "--gpu_batches=3"),
        *("--gpu_tasks=2", "--rounds=3", f"--workdir={tmp_path}/out"),
    ]
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(script), *flags],
        env=os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    forms = [row["form"] for row in results["rows"]]
    assert forms == ["scale_bias+last", "scale_bias+last, batch", "full", "joint", "bank", "bank, one task", "folded"]
    assert {each["form"].partition(" ")[0].strip(",") for each in results["not_run"]} == {"torch"}
    assert results["versions"]["backend"] == "jax"
    assert "## prediction, batch 3" in (tmp_path / "out" / "gpu.md").read_text()
