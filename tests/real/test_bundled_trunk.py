"""What the paper says, on real images from the bundled trunk, with the defaults of scripts/transfer.py but fewer epochs."""

import pytest

from configs import transfer as transfer_config
from model_patch.experiments.transfer import transfer
from model_patch.trunks import bundled


@pytest.mark.slow
def test_a_patch_halves_the_errors_of_the_last_layer_alone(tmp_path):
    config = transfer_config.get_config()
    config.train, config.epochs = ("last", "scale_bias+last"), 6
    last, patched = transfer(config, tmp_path / "run")["rows"]
    assert (1 - patched["test_accuracy"]) <= (1 - last["test_accuracy"]) / 2


def test_the_bundled_weights_are_small_and_say_how_they_were_made():
    assert (bundled.FOLDER / bundled.WEIGHTS).stat().st_size <= 2_000_000
    card = (bundled.FOLDER / "card.md").read_text()
    for part in ("Data: ", "Recipe: ", "Test accuracy: ", "To reproduce: "):
        assert part in card
