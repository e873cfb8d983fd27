import pytest

from configs import transfer as transfer_config
from model_patch import ModelPatchError, Patch
from model_patch.experiments.sweep import sweep
from model_patch.experiments.transfer import transfer
from model_patch.graph.fused_norm import FusedNormModel
from tests.conftest import smaller_net


@pytest.fixture
def config(tmp_path):
    smaller_net().save(tmp_path / "trunk.keras")
    config = transfer_config.get_config()
    config.update(trunk=f"file:{tmp_path}/trunk.keras", train=("last",), epochs=1, max_train_images=96)
    config.learning_rates = (0.1, 0.003)
    return config


@pytest.mark.slow
def test_each_rate_is_a_run_of_its_own_and_all_are_compared(config, tmp_path):
    results = sweep(config, tmp_path / "run")
    assert [row["learning_rate"] for row in results["rows"]] == [0.1, 0.003]
    high, low = ((tmp_path / "run" / f"rate-{rate}" / "patches" / "last-seed0.safetensors") for rate in (0.1, 0.003))
    assert high.read_bytes() != low.read_bytes()
    assert (tmp_path / "run" / "accuracy_vs_learning_rate.png").exists()
    assert "best rate" in (tmp_path / "run" / "results.md").read_text()
    again = sweep(config, tmp_path / "run")
    assert again["rows"] == results["rows"], "nothing is trained again, so even the seconds are those of the first run"


def test_rates_share_one_traced_step_and_give_the_patches_of_separate_runs(config, tmp_path, monkeypatch):
    steps, traced = [], FusedNormModel.train_step
    monkeypatch.setattr(FusedNormModel, "train_step", lambda self, data: steps.append(self) or traced(self, data))
    config.update(train=("scale_bias+last",), max_train_images=32, max_test_images=16)
    sweep(config, tmp_path / "sweep")
    assert len(steps) == 1
    config.update(learning_rate=0.003, learning_rates=())
    transfer(config, tmp_path / "alone")
    name = "patches/scale_bias+last-seed0.safetensors"
    in_sweep, alone = (Patch.load(tmp_path / each / name).values for each in ("sweep/rate-0.003", "alone"))
    assert {key: value.tobytes() for key, value in in_sweep.items()} == {k: v.tobytes() for k, v in alone.items()}


@pytest.mark.parametrize("rates", [(0.1, 0.0), (0.1, -1.0)])
def test_rates_that_cannot_be_compared_are_refused(config, tmp_path, rates):
    config.learning_rates = rates
    with pytest.raises(ModelPatchError, match="expected positive numbers"):
        sweep(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
