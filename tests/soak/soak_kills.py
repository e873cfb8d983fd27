"""The long form of `tests/scripts/test_kill.py`: 20 random moments for each script."""

import os

import pytest

from tests.scripts.test_kill import MULTITASK, TRANSFER, Job, ends, kill_at_random, trunk  # noqa: F401 (a fixture)

POINTS = int(os.environ.get("KILL_POINTS", "20"))


@pytest.mark.parametrize("arguments", [TRANSFER, MULTITASK], ids=["transfer", "multitask"])
def test_every_killed_run_ends_as_one_that_nobody_disturbed(trunk, tmp_path, arguments):  # noqa: F811
    job = Job(trunk, arguments)
    seconds = job.run_timed(tmp_path / "whole")
    kill_at_random(job, ends(tmp_path / "whole"), seconds, POINTS, seed=0, folder=tmp_path)
