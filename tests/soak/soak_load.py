"""The long form of `tests/test_load.py`: ten minutes each, and memory stays flat."""

import os

import pytest

from tests.test_load import THREADS, Load, under_load

SECONDS = float(os.environ.get("LOAD_SECONDS", "600"))
GROWTH = 0.02
"""How much more memory the process may hold at the end than in the middle, in parts."""


@pytest.mark.parametrize("what", ["bank", "exported bank", "SavedModel", "all"])
def test_predictions_are_right_and_memory_stays_flat(trunk, images, tmp_path, what):
    load = Load(trunk, images[:5])
    ways = {"bank": load.ask_bank}
    if what in ("exported bank", "all"):
        ways["exported bank"] = load.exported_bank(tmp_path / "bank")
    if what in ("SavedModel", "all"):
        ways["SavedModel"] = load.saved_model(tmp_path / "all")
    asked = [*ways.values()] if what == "all" else [ways[what]]
    calls, wrong, memory = under_load(
        lambda random: asked[random.integers(len(asked))](random), load.change, seconds=SECONDS
    )
    print(
        f"{what}: {calls} calls in {SECONDS:.0f} s, memory {min(memory) / 2**20:.0f} to {max(memory) / 2**20:.0f} MiB"
    )
    assert not wrong and calls > THREADS
    assert memory[-1] <= memory[0] * (1 + GROWTH)
