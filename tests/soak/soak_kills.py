"""The long form of `tests/scripts/test_kill.py`: 20 random moments for each script, and disks of several sizes that are full."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.scripts.test_kill import JOBS, detector, ends, kill_at_random, trunk, undisturbed  # noqa: F401 (three fixtures)

POINTS = int(os.environ.get("KILL_POINTS", "20"))

ON_A_SMALL_DISK = """
disk=$0 size=$1; shift
mount -t tmpfs -o size="${size}k" none "$disk" || exit 99
"$@"; status=$?
find "$disk" -name '.*.tmp' | grep . && exit 98
mount -o remount,size=1g "$disk"
"$@" || exit 97
cp -r "$disk/run00" "$disk-after"
exit $status
"""
"""Runs a command on a disk of `kib` KiB, then again with room, and copies what it wrote to another place."""


@pytest.mark.parametrize("script", JOBS)
def test_every_killed_run_ends_like_an_uninterrupted_one(undisturbed, tmp_path, script):  # noqa: F811
    job, whole, seconds = undisturbed
    kill_at_random(job, whole, seconds, POINTS, seed=0, folder=tmp_path)


@pytest.mark.parametrize("script", ["pretrain", "transfer"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_where_there_is_room(undisturbed, tmp_path, script):  # noqa: F811
    job, whole, _ = undisturbed
    full = 0
    for kib in (4, 8, 12, 16, 24, 32, 48):
        disk = tmp_path / f"disk{kib:02}"
        disk.mkdir()
        small = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, str(disk), str(kib)]
        ran = subprocess.run([*small, *job.command(disk / "run00")], capture_output=True, text=True, check=False)
        assert ran.returncode in (0, 2) and "Traceback" not in ran.stderr, ran.stderr[-3000:]
        if ran.returncode:
            assert "cannot be written (No space left on device): choose another place or free the disk" in ran.stderr
            full += 1
        assert ends(Path(f"{disk}-after")) == whole
    print(f"{script}: {full} of 7 disks were full")
    assert full >= 3
