"""The patch tools as a user runs them, and what they say when they cannot."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor

import keras
import pytest

from configs import transfer as transfer_config
from model_patch import Patch, Preprocessing, Task, Trunk, bind
from model_patch.experiments.transfer import transfer
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, small_net
from tests.scripts.run_script import error_of, run_script


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trunk, two patches of one task on it, and one of another kind."""
    work = tmp_path_factory.mktemp("work")
    small_net().save(work / "trunk.keras")
    trunk = Trunk(keras.models.load_model(work / "trunk.keras"), "file:trunk.keras", Preprocessing(SIZE, "tf"))
    task = Task("shapes", ("circle", "square"), trunk.preprocessing)
    for name, train, seed in (("a", "scale_bias+last", 0), ("b", "scale_bias+last", 1), ("c", "depthwise+last", 0)):
        bind(trunk, task, train, seed=seed).patch({"accuracy": 0.75}).save(work / "patches" / f"{name}.safetensors")
    return work


def run(*arguments):
    ran = run_script("patch", *map(str, arguments))
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_list_and_info_say_what_the_files_say(work):
    lines = run("list", work).splitlines()
    assert len(lines) == 4 and lines[1].split()[1:4] == ["shapes", "2", "scale_bias+last"]
    assert "accuracy 0.7500" in lines[3]
    a = work / "patches" / "a.safetensors"
    said = run("info", a)
    for expected in ("2: circle, square", "32 px, tf", "frozen", Patch.load(a).fingerprint, "gamma", "head.kernel"):
        assert expected in said


@pytest.mark.slow
def test_verify_prints_the_hashes_which_stay_while_another_task_is_learnt(work, tmp_path):
    patches, spec = [work / "patches" / f"{name}.safetensors" for name in "ac"], f"file:{work}/trunk.keras"
    said = run("verify", *patches, f"--trunk={spec}")
    assert said.count("whole, and belongs to") == 2
    for path in patches:
        assert Patch.load(path).fingerprint in said and hashlib.sha256(path.read_bytes()).hexdigest() in said
    trunk = open_trunk(spec)
    assert said.count(trunk.fingerprint(trunk.variables())) == 2
    config = transfer_config.get_config()
    config.update(
        {
            "trunk": spec,
            "data": "digits",
            "train": ("full",),
            "epochs": 1,
            "max_train_images": 64,
            "max_test_images": 32,
        }
    )
    transfer(config, tmp_path / "run")
    assert run("verify", *patches, f"--trunk={spec}") == said


def test_diff_average_and_convert(work, tmp_path):
    a, b = (work / "patches" / f"{name}.safetensors" for name in "ab")
    assert "0 of 8" not in run("diff", a, b)
    run("average", a, b, f"--output={tmp_path}/mean.safetensors", "--weights=3,1", "--dtype=float16")
    one, two, mean = (Patch.load(path).values["head.kernel"] for path in (a, b, tmp_path / "mean.safetensors"))
    assert abs(mean - (0.75 * one + 0.25 * two)).max() < 1e-3
    assert (tmp_path / "mean.safetensors").stat().st_size < a.stat().st_size


BAD = {
    "": "no command is given: expected one of list, info, verify, diff, average, convert",
    "diff A": "diff expects FIRST SECOND:",
    "convert A --output=OUT": "convert expects PATCH --output=.. --dtype=..:",
    "info A --trunk=bundled": "info does not take --trunk: it expects PATCH [PATCHES...]",
    "average A C --output=OUT": "have different trained kinds: scale_bias+last and depthwise+last",
    "average A B --output=A": "A.safetensors exists: choose another --output",
    "list CUT": "CUT.safetensors is damaged",
}


def test_what_cannot_be_used_is_one_sentence_and_nothing_is_written(work, tmp_path):
    (work / "patches" / "cut").write_bytes((work / "patches" / "a.safetensors").read_bytes()[:-9])
    places = {name: f"{work}/patches/{name.lower()}.safetensors" for name in ("A", "B", "C")}
    places |= {"CUT": f"{work}/patches/cut", "OUT": f"{tmp_path}/out"}

    def error(command: str) -> str:
        words = [re.sub("[A-Z]+$", lambda name: places[name[0]], word) for word in command.split()]
        said = error_of(run_script("patch", *words))
        return said.replace(places["A"], "A.safetensors").replace(places["CUT"], "CUT.safetensors")

    with ThreadPoolExecutor(2) as pool:  # A process spends most of its time importing.
        for command, said in zip(BAD, pool.map(error, BAD), strict=True):
            assert BAD[command] in said
    assert not list(tmp_path.iterdir())
