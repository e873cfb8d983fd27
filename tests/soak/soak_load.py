"""The long form of `tests/test_load.py`: ten minutes each, and memory stays flat."""

import os

from tests.test_load import THREADS, check_bank, check_saved_model

SECONDS = float(os.environ.get("LOAD_SECONDS", "600"))
GROWTH = 0.02
"""How much more memory the process may hold at the end than in the middle, in parts."""


def flat(calls: int, wrong: list[str], memory: list[int]):
    print(f"{calls} calls in {SECONDS:.0f} s, memory {min(memory) / 2**20:.0f} to {max(memory) / 2**20:.0f} MiB")
    assert not wrong and calls > THREADS
    assert memory[-1] <= memory[0] * (1 + GROWTH)


def test_a_bank(trunk, images):
    flat(*check_bank(trunk, images[:5], SECONDS)[0])


def test_one_saved_model(trunk, images, tmp_path):
    flat(*check_saved_model(trunk, (images[:5] + 1) * 127.5, tmp_path / "out", SECONDS))
