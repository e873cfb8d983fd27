import pytest
from PIL import Image

from configs import demo as demo_config
from model_patch import Patch
from model_patch.experiments.demo import demo
from tests.conftest import small_net


@pytest.mark.slow
def test_every_task_is_trained_exported_verified_and_drawn(tmp_path, capsys):
    small_net().save(tmp_path / "trunk.keras")
    config = demo_config.get_config()
    config.update(tasks=("digits", "faces"), compare=("last", "scale_bias+last"), num_images=12)
    config.transfer.update(trunk=f"file:{tmp_path}/trunk.keras", epochs=1, max_train_images=48, max_test_images=32)
    demo(config, tmp_path / "run")
    for name in config.tasks:
        assert Patch.load(tmp_path / "run" / "patches" / f"{name}.safetensors").task.name == name
        assert (tmp_path / "run" / "saved_models" / name / "saved_model.pb").exists()
    with Image.open(tmp_path / "run" / "predictions.png") as picture:
        assert picture.format == "PNG"
    printed = capsys.readouterr().out
    assert " of 12" in printed and printed.endswith(f"Report: {tmp_path}/run/report.html\n")
