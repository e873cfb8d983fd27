"""Twenty tasks learnt in one process, against a process for each: seconds, and the bits of the patches.

pytest -s tests/soak/soak_many.py              # about 8 minutes of CPU time
TASKS=5 pytest -s tests/soak/soak_many.py      # a shorter form
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from model_patch import Patch

ROOT = Path(__file__).parents[2]
TASKS = int(os.environ.get("TASKS", "20"))
APART = int(os.environ.get("APART", TASKS))
IMAGES = {"train": 100, "test": 25}
TRAIN = "scale_bias+last"


def write_tasks(folder: Path):
    """Writes data sets of 100 training images, each of 3 to 6 digits in a tint of its own."""
    digits, random = load_digits(), np.random.default_rng(0)
    for task in range(TASKS):
        tint = random.uniform(0.3, 1.0, 3)
        classes = random.choice(10, 3 + task % 4, replace=False)
        for part, number in IMAGES.items():
            for i in range(number):
                digit = classes[i % len(classes)]
                chosen = digits.images[random.choice(np.flatnonzero(digits.target == digit))]
                pixels = (chosen[..., None] / 16 * 255 * tint).astype("uint8")
                path = folder / f"task{task}" / part / str(digit) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).resize((48, 48)).save(path)


def transfer(data: str, workdir: Path) -> np.ndarray:
    """Runs scripts/transfer.py; returns the seconds on the clock and of CPU time."""
    command = [
        sys.executable,
        ROOT / "scripts/transfer.py",
        "--trunk=bundled",
        f"--data={data}",
        f"--workdir={workdir}",
    ]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*map(str, command), f"--train={TRAIN}", "--epochs=3"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return np.array([time.perf_counter() - start, used])


def test_one_process_for_all_tasks_takes_a_quarter_of_the_time(tmp_path):
    write_tasks(tmp_path / "tasks")
    together = transfer(f"folder:{tmp_path}/tasks/*", tmp_path / "together")
    apart = np.zeros(2)
    for task in range(APART):
        apart += transfer(f"folder:{tmp_path}/tasks/task{task}", tmp_path / f"alone{task}")
        one = Patch.load(tmp_path / "together/patches" / f"task{task}.safetensors").values
        other = Patch.load(tmp_path / f"alone{task}/patches" / f"{TRAIN}-seed0.safetensors").values
        assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}, task
    for what, one, other in zip(("on the clock", "of CPU time"), together, apart, strict=True):
        other *= TASKS / APART
        print(f"{TASKS} tasks: {one:.0f} s {what} together, {other:.0f} s apart: {one / other:.2f}", flush=True)
