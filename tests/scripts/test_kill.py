"""Scripts that are killed go on with the same command and end with the same files as ones that nobody disturbed."""

import contextlib
import dataclasses
import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_patch import Patch
from tests.conftest import small_net
from tests.scripts.run_script import ROOT, error_of, run_script

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

TRANSFER = ("transfer", "--data=digits", "--train=scale_bias+last,full", "--epochs=6", "--max_test_images=50")
MULTITASK = ("multitask", "--data=digits,textures", "--share=nothing,trunk", "--epochs=4", "--max_test_images=50")
FEW = {"transfer": ("--max_train_images=160", "--augmentation=shift"), "multitask": ("--max_train_images=96",)}


@dataclasses.dataclass(frozen=True)
class Job:
    """A script with its flags, which runs on the small net at `trunk`."""

    trunk: Path
    arguments: tuple[str, ...]

    def command(self, workdir: Path) -> list[str]:
        script, *flags = self.arguments
        flags += [*FEW[script], f"--trunk=file:{self.trunk}", f"--workdir={workdir}"]
        return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *flags]

    def run(self, workdir: Path, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(workdir), capture_output=True, text=True, timeout=300, **options)

    def run_timed(self, workdir: Path) -> float:
        """Runs to the end; returns how long it took from the first file on."""
        with subprocess.Popen(self.command(workdir), stderr=subprocess.PIPE, text=True) as process:
            start = wait_for(workdir / "config.json", process)
            assert process.wait(timeout=300) == 0, process.stderr.read()[-2000:]
        return time.monotonic() - start

    def kill(self, workdir: Path, seconds: float, number: signal.Signals):
        """Starts, waits for the run's first file and so many seconds more, and sends the signal."""
        with subprocess.Popen(self.command(workdir), stderr=subprocess.DEVNULL) as process:
            wait_for(workdir / "config.json", process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
            for _ in range(5):  # Python drops an interrupt that comes while it cleans an object up.
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                    break


def wait_for(file: Path, process: subprocess.Popen) -> float:
    deadline = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return time.monotonic()


def ends(workdir: Path) -> dict:
    """Returns what a run ends with: its results without times, and every bit of every patch.

    The path of the workdir, which stands in the specs of trunks that were trained in it, is left aside. What such a trunk
    learnt is in its patches' fingerprints.
    """
    found: dict = {}
    for file in sorted((workdir / "patches").iterdir()):
        patch = Patch.load(file)
        values = {key: value.tobytes() for key, value in patch.values.items()}
        found[file.name] = (patch.fingerprint, patch.metrics, values)
    results = json.loads((workdir / "results.json").read_text().replace(str(workdir), ""))
    for row in results["rows"]:
        del row["train_seconds"], row["patch_bytes"]
    return found | {"results.json": results}


def whole_or_absent(workdir: Path):
    """Checks that no file under a final name is cut short."""
    for file in (workdir / "patches").glob("*.safetensors"):
        Patch.load(file)
    if (workdir / "results.json").exists():
        json.loads((workdir / "results.json").read_text())


def kill_at_random(job: Job, whole: dict, seconds: float, number: int, seed: int, folder: Path):
    """Kills so many runs once each, at random moments of their `seconds`; each goes on and must end as `whole`."""
    draw = random.Random(seed)
    for k in range(number):
        workdir = folder / f"killed-{k}"
        job.kill(workdir, draw.uniform(0, seconds), SIGNALS[k % len(SIGNALS)])
        whole_or_absent(workdir)
        ran = job.run(workdir)
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert ends(workdir) == whole, f"point {k}"
        assert not list(workdir.rglob(".*.tmp")) and not (workdir / "checkpoints").exists()


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trunk") / "trunk.keras"
    small_net().save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "kills"),
    [
        (TRANSFER, [(signal.SIGKILL, 0.5), (signal.SIGTERM, 0.3), (signal.SIGINT, 0.3)]),
        (MULTITASK, [(signal.SIGKILL, 0.7)]),
    ],
    ids=["transfer", "multitask"],
)
def test_a_killed_run_ends_as_one_that_nobody_disturbed(trunk, tmp_path, arguments, kills):
    job = Job(trunk, arguments)
    seconds = job.run_timed(tmp_path / "whole")
    whole = ends(tmp_path / "whole")
    # Killed once or more in one workdir, and then left to end.
    for number, part in kills:
        job.kill(tmp_path / "killed", part * seconds, number)
        whole_or_absent(tmp_path / "killed")
    assert job.run(tmp_path / "killed").returncode == 0
    assert ends(tmp_path / "killed") == whole


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_where_there_is_room_again(trunk, tmp_path):
    job = Job(trunk, ("transfer", "--data=digits", "--train=last,scale_bias+last", "--epochs=2"))

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    ran = job.run(tmp_path / "run", preexec_fn=no_room)
    assert "cannot be written (File too large): choose another place or free the disk" in error_of(ran)
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    whole_or_absent(tmp_path / "run")
    assert job.run(tmp_path / "run").returncode == 0
    assert len(ends(tmp_path / "run")) == 3


def test_the_same_run_in_a_second_process_is_refused(trunk, tmp_path):
    job = Job(trunk, TRANSFER)
    with subprocess.Popen(job.command(tmp_path / "run"), stderr=subprocess.DEVNULL) as first:
        wait_for(tmp_path / "run" / "config.json", first)
        second = run_script(*job.arguments, *FEW["transfer"], f"--trunk=file:{trunk}", f"--workdir={tmp_path}/run")
        assert first.poll() is None, "the first ended too early to tell"
        first.kill()
    assert "another process is running in the workdir" in error_of(second)
