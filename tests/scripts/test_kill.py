"""Killed scripts resume with the same command, and end with the same files as uninterrupted ones."""

import contextlib
import dataclasses
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import pytest
import safetensors

from model_patch import Patch
from model_patch.patch import METADATA_KEY
from tests.conftest import small_net
from tests.scripts.run_script import ROOT, default_interrupt, error_of

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

JOBS = {
    "transfer": (
        "--trunk=file:{trunk}",
        "--data=digits",
        "--train=scale_bias+last,full",
        "--epochs=6",
        "--max_train_images=160",
        "--max_test_images=50",
        "--augmentation=shift",
    ),
    "multitask": (
        "--trunk=file:{trunk}",
        "--data=digits,textures",
        "--share=nothing,trunk",
        "--epochs=4",
        "--max_train_images=96",
        "--max_test_images=50",
    ),
    "detect": (
        "train",
        "--trunk=file:{trunk}",
        "--data=scenes:digits?size=32&train=64&test=12&objects=1",
        "--image_size=32",
        "--seeds=0,1",
        "--epochs=4",
        "--config.num_trunk_maps=2",
        "--config.num_maps=3",
        "--config.width=0.1",
        "--config.batch_size=16",
    ),
    "ssd_to_classification": (
        "--detector={detector}",
        "--data=textures",
        "--train=last,scale_bias+last",
        "--image_size=32",
        "--epochs=4",
        "--config.max_train_images=96",
        "--config.max_test_images=50",
    ),
    "pretrain": (
        "--config.trunk=file:{trunk}",
        "--data=digits",
        "--config.image_size=32",
        "--config.epochs=8",
        "--config.batch_size=16",
        "--config.max_train_images=160",
        "--config.max_test_images=50",
    ),
}
"""The flags of every training script, with places for what it begins with."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A script with its flags, which begins with what stands at `places`."""

    script: str
    places: dict[str, Path]

    def command(self, workdir: Path) -> list[str]:
        flags = [flag.format(**self.places) for flag in JOBS[self.script]]
        return [sys.executable, str(ROOT / "scripts" / f"{self.script}.py"), *flags, f"--workdir={workdir}"]

    def run(self, workdir: Path, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(workdir), capture_output=True, text=True, **options)

    def start(self, workdir: Path, **options) -> subprocess.Popen:
        return subprocess.Popen(self.command(workdir), preexec_fn=default_interrupt, **options)

    def run_timed(self, workdir: Path) -> float:
        """Runs to the end; returns how long it took from the first file on."""
        with self.start(workdir, stderr=subprocess.PIPE, text=True) as process:
            wait_for(workdir / "config.json", process)
            start = time.monotonic()
            said = process.communicate()[1]
        assert process.returncode == 0, said[-2000:]
        return time.monotonic() - start

    def kill(self, workdir: Path, seconds: float, number: signal.Signals):
        """Starts, waits for the run's first file and some seconds more, and sends the signal.

        Ctrl-C must end in one sentence, wherever it comes.
        """
        with tempfile.TemporaryFile("w+") as said, self.start(workdir, stderr=said) as process:
            wait_for(workdir / "config.json", process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
            for _ in range(5):  # Python drops an interrupt that comes while it cleans an object up.
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=300)
                    break
            said.seek(0)
            printed = said.read()
        if number == signal.SIGINT and process.returncode:
            # -2: Python itself was ending, after the script's last line.
            assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in printed, printed[-2000:]
            said_so = "error: interrupted: rows that are finished are kept; the same command resumes" in printed
            assert said_so == (process.returncode == 130), printed[-2000:]


def wait_for(file: Path, process: subprocess.Popen):
    """Waits until a process has written a file; fails if it ends without."""
    while not file.exists():
        assert process.poll() is None or file.exists(), f"{file.name} was not written"
        time.sleep(0.01)


def ends(workdir: Path) -> dict:
    """Returns what a run ends with: its results without times and machine, and every bit of every patch and trunk.

    The path of the workdir, which stands in the specs of trunks that were trained in it, is left aside. The workdirs that are
    compared must have names of one length, so that patches, which hold those specs, have one size.
    """
    found: dict = {}
    for file in sorted(each for each in workdir.rglob("*") if each.suffix in (".safetensors", ".keras")):
        found[str(file.relative_to(workdir))] = contents(file)
    results = json.loads((workdir / "results.json").read_text().replace(str(workdir), ""))
    results.pop("machine", None)  # How busy it is, too.
    for row in [results, *results.get("rows", ())]:
        for time_taken in ("train_seconds", "input_wait"):
            row.pop(time_taken, None)
    return found | {"results.json": results}


def contents(file: Path):
    """Returns what a patch or trunk file holds, to the last bit; raises an error where it is not whole."""
    if file.suffix == ".keras":
        return [variable.numpy().tobytes() for variable in keras.models.load_model(file, compile=False).variables]
    with safetensors.safe_open(file, framework="numpy") as opened:
        if METADATA_KEY not in (opened.metadata() or {}):
            return file.read_bytes()
    patch = Patch.load(file)
    return patch.fingerprint, patch.metrics, {key: value.tobytes() for key, value in patch.values.items()}


def whole_or_absent(workdir: Path):
    """Checks that no file under a final name is cut short."""
    for file in workdir.rglob("*"):
        if file.suffix in (".safetensors", ".keras"):
            contents(file)
        elif file.suffix == ".json":
            json.loads(file.read_text())


def kill_at_random(job: Job, whole: dict, seconds: float, number: int, seed: int, folder: Path):
    """Kills a number of runs once each, at random moments of their `seconds`; each resumes and must end as `whole`."""
    draw = random.Random(seed)
    for k in range(1, number + 1):
        workdir = folder / f"run{k:02}"
        job.kill(workdir, draw.uniform(0, seconds), SIGNALS[k % len(SIGNALS)])
        whole_or_absent(workdir)
        check_goes_on(job, workdir, whole, f"point {k}")
        print(f"{job.script}: {k} of {number}", flush=True)


def check_goes_on(job: Job, workdir: Path, whole: dict, what: str):
    """The same command ends like the uninterrupted run, and leaves nothing behind."""
    ran = job.run(workdir)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ends(workdir) == whole, what
    assert not list(workdir.rglob(".*.tmp")) and not (workdir / "checkpoints").exists()


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trunk") / "trunk.keras"
    small_net().save(path)
    return path


@pytest.fixture(scope="module")
def detector(trunk, tmp_path_factory) -> tuple[Path, float]:
    """The folder of an uninterrupted training of detectors, and how long it took."""
    folder = tmp_path_factory.mktemp("detector") / "run00"
    return folder, Job("detect", {"trunk": trunk}).run_timed(folder)


@pytest.fixture
def undisturbed(script, trunk, request, tmp_path) -> tuple[Job, dict, float]:
    """A job, what it ends with, and how long it takes."""
    folder, places = tmp_path, {"trunk": trunk}
    if script in ("detect", "ssd_to_classification"):
        places["detector"], seconds = request.getfixturevalue("detector")
    job = Job(script, places)
    if script == "detect":
        return job, ends(places["detector"]), seconds
    seconds = job.run_timed(folder / "run00")
    return job, ends(folder / "run00"), seconds


KILLS = {
    "transfer": [(signal.SIGINT, 0.5), (signal.SIGKILL, 0.3)],
    "multitask": [(signal.SIGTERM, 0.7)],
    "detect": [(signal.SIGINT, 0.5)],
    "ssd_to_classification": [(signal.SIGTERM, 0.5)],
    "pretrain": [(signal.SIGKILL, 0.5)],
}
"""Signals, and the part of a run's time after which each comes, one after the other in one workdir."""


# The others resume by the same functions; `make soak` kills every script at 20 moments.
@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [pytest.param(each, marks=[pytest.mark.soak][: each not in ("transfer", "multitask")]) for each in JOBS]
)
def test_a_killed_run_ends_like_an_uninterrupted_one(undisturbed, tmp_path, script):
    job, whole, seconds = undisturbed
    for number, part in KILLS[script]:
        job.kill(tmp_path / "run01", part * seconds, number)
        whole_or_absent(tmp_path / "run01")
    check_goes_on(job, tmp_path / "run01", whole, script)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_where_there_is_room_again(trunk, tmp_path):
    job = Job("pretrain", {"trunk": trunk})

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    ran = job.run(tmp_path / "run", preexec_fn=no_room)
    assert "cannot be written (File too large): choose another place or free the disk" in error_of(ran)
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    whole_or_absent(tmp_path / "run")
    assert job.run(tmp_path / "run").returncode == 0
    assert len(ends(tmp_path / "run")) == 2
