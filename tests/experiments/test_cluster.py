"""Rows as tasks of a Ray cluster: the same results as here, a worker that is killed included."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `serve`")

from model_patch.experiments.many import transfer_many
from tests.experiments.test_many import CLASSES, config_of, values_of, work  # noqa: F401 - a fixture.


def kill_a_worker(when: Path, killed: list):
    """Kills the first worker that has written a checkpoint, once."""
    while not list(when.glob("checkpoints/*.safetensors")):
        time.sleep(0.05)
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_worker = status.read_bytes().startswith(b"ray::_train_row")
        except OSError:
            continue
        if is_worker:
            os.kill(int(status.parent.name), signal.SIGKILL)
            killed.append(status.parent.name)
            return


@pytest.mark.slow
def test_results_are_those_of_a_local_run_though_a_worker_is_killed(work, tmp_path):  # noqa: F811
    data = f"folder:{work}/customers/*"
    options = {"epochs": 3}
    local = transfer_many(config_of(work, data, **options), tmp_path / "local")
    killed: list[str] = []
    watching = threading.Thread(target=kill_a_worker, args=(tmp_path / "ray", killed), daemon=True)
    watching.start()
    in_cluster = transfer_many(config_of(work, data, runner="ray", **options), tmp_path / "ray")
    assert killed
    times = ("train_seconds", "input_wait")
    for one, other in zip(local["rows"], in_cluster["rows"], strict=True):
        assert {k: v for k, v in one.items() if k not in times} == {k: v for k, v in other.items() if k not in times}
    for name in CLASSES:
        one, other = (tmp_path / run / "patches" / f"{name}.safetensors" for run in ("local", "ray"))
        assert values_of(one) == values_of(other)
    assert not (tmp_path / "ray" / "checkpoints").exists()
