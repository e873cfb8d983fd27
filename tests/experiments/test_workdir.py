import importlib
import json
import subprocess
import sys

import pytest

from model_patch import ModelPatchError
from model_patch.experiments.detector import train_detector
from model_patch.experiments.expressivity import expressivity
from model_patch.experiments.multitask import multitask
from model_patch.experiments.pretrain import pretrain
from model_patch.experiments.reproduce import ROOT, reproduce
from model_patch.experiments.sweep import sweep
from model_patch.experiments.transfer import transfer
from model_patch.experiments.workdir import Workdir, versions
from tests.conftest import full_disk, small_net

CONFIG = {"trunk": "bundled", "epochs": 3, "train": ["last"]}


def test_a_new_folder_is_made_and_the_same_run_goes_on_in_it(tmp_path):
    folder = Workdir(tmp_path / "a" / "b", CONFIG)
    assert folder.results() == {}
    folder.write_results({"rows": [1]})
    assert Workdir(tmp_path / "a" / "b", CONFIG).results() == {"rows": [1]}


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    Workdir(tmp_path / "run", CONFIG)
    with pytest.raises(ModelPatchError, match=r"holds another run \(epochs 3 there and 4 here\): choose another"):
        Workdir(tmp_path / "run", CONFIG | {"epochs": 4})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ModelPatchError, match="is not empty and holds no run"):
        Workdir(tmp_path, CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelPatchError, match="is a file: expected a folder"):
        Workdir(tmp_path / "file", CONFIG)


def test_damaged_results_are_refused(tmp_path):
    folder = Workdir(tmp_path / "run", CONFIG)
    (folder.path / Workdir.RESULTS).write_text('{"rows": [')
    with pytest.raises(ModelPatchError, match="is not a readable JSON file"):
        folder.results()


def test_versions_name_what_computes():
    assert {"python", "model_patch", "keras", "tensorflow", "numpy", "backend"} <= versions().keys()


HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("running", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A workdir that a process which lives runs in, and a small trunk beside it."""
    folder = tmp_path_factory.mktemp("held")
    small_net().save(folder / "trunk.keras")
    (folder / "run").mkdir()
    command = [sys.executable, "-c", HOLDER, folder / "run" / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        yield folder
        process.kill()


RUNS = {
    "transfer": (transfer, "transfer", {"data": "digits"}),
    "sweep": (sweep, "transfer", {"data": "digits", "learning_rates": (0.1, 0.2)}),
    "multitask": (multitask, "multitask", {"data": ("digits",), "share": ("trunk",)}),
    "detect": (
        train_detector,
        "detect_scenes",
        {"data": "scenes:digits?size=32&train=8&test=4", "image_size": 32, "num_trunk_maps": 2, "num_maps": 2},
    ),
    "pretrain": (pretrain, "pretrain_fashion_mnist", {"data": "digits", "image_size": 32}),
    "expressivity": (expressivity, "expressivity", {}),
}
"""What writes to a workdir: a function, its configuration, and what is smaller in it."""


@pytest.mark.parametrize("name", RUNS)
def test_no_run_begins_where_another_process_is_running(held, name):
    run, file, smaller = RUNS[name]
    config = importlib.import_module(f"configs.{file}").get_config()
    config.update(smaller | ({"trunk": f"file:{held}/trunk.keras"} if "trunk" in config else {}))
    with pytest.raises(ModelPatchError, match="another process is running in the workdir .*run: wait for its end"):
        run(config, held / "run")
    assert [file.name for file in (held / "run").iterdir()] == [".lock"]


FIRST = """
import sys
from model_patch.experiments.workdir import Workdir, claim
Workdir(sys.argv[1], {"epochs": 3})
for folder in sys.argv[2:]:
    claim(folder)
print("running", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_while_the_first_lives_and_a_new_folder_without_files_goes_with_it(tmp_path):
    (tmp_path / "mine").mkdir()
    command = [sys.executable, "-c", FIRST, *(tmp_path / name for name in ("run", "new", "mine"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "running\n"
        with pytest.raises(ModelPatchError, match="another process is running in the workdir .*run: wait for its end"):
            Workdir(tmp_path / "run", {"epochs": 3})
        assert (tmp_path / "new").exists()
    assert first.returncode == 0
    assert Workdir(tmp_path / "run", {"epochs": 3}).results() == {}
    assert not (tmp_path / "new").exists() and (tmp_path / "mine").exists()


def test_no_suite_begins_where_another_process_is_running(held, tmp_path):
    with pytest.raises(ModelPatchError, match="another process is running in the workdir .*run: wait for its end"):
        reproduce("small", held / "run", tmp_path)
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", "--suite=joint", f"--workdir={held}/run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2 and "another process is running in the workdir" in ran.stderr
    assert [file.name for file in (held / "run").iterdir()] == [".lock"]


def test_results_that_find_no_room_leave_what_was_there(tmp_path):
    folder = Workdir(tmp_path / "run", CONFIG)
    folder.write_results({"rows": [1]})
    checkpoint = folder.checkpoint("last-seed0")
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"x")
    with (
        full_disk(),
        pytest.raises(ModelPatchError, match=r"results.json cannot be written \(.*\): choose another place"),
    ):
        folder.write_results({"rows": [1, 2]})
    assert folder.results() == {"rows": [1]} and checkpoint.exists()
    assert not list(folder.path.rglob(".*.tmp"))
