import pytest

from configs import transfer as transfer_config
from model_patch import ModelPatchError
from model_patch.experiments.sweep import sweep
from tests.conftest import small_net


@pytest.fixture
def config(tmp_path):
    small_net().save(tmp_path / "trunk.keras")
    config = transfer_config.get_config()
    config.update(trunk=f"file:{tmp_path}/trunk.keras", train=("last",), epochs=1, max_train_images=96)
    config.learning_rates = (0.1, 0.003)
    return config


def test_each_rate_is_a_run_of_its_own_and_all_are_compared(config, tmp_path):
    results = sweep(config, tmp_path / "run")
    assert [row["learning_rate"] for row in results["rows"]] == [0.1, 0.003]
    high, low = ((tmp_path / "run" / f"rate-{rate}" / "patches" / "last-seed0.safetensors") for rate in (0.1, 0.003))
    assert high.read_bytes() != low.read_bytes()
    assert (tmp_path / "run" / "accuracy_vs_learning_rate.png").exists()
    assert "best rate" in (tmp_path / "run" / "results.md").read_text()
    again = sweep(config, tmp_path / "run")
    assert again["rows"] == results["rows"], "nothing is trained again, so even the seconds are those of the first run"


@pytest.mark.parametrize("rates", [(0.1, 0.0), (0.1, -1.0)])
def test_rates_that_cannot_be_compared_are_refused(config, tmp_path, rates):
    config.learning_rates = rates
    with pytest.raises(ModelPatchError, match="expected positive numbers"):
        sweep(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
