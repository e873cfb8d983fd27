"""A value that a list option has twice would be a second row of the same, and count as a seed without any spread."""

import pytest

import configs.benchmark
import configs.demo
import configs.detect_scenes
import configs.expressivity
import configs.multitask
import configs.transfer
from model_patch import ModelPatchError
from model_patch.experiments.benchmark import suite
from model_patch.experiments.demo import demo
from model_patch.experiments.detector import train_detector
from model_patch.experiments.dry_run import dry_run_transfer
from model_patch.experiments.expressivity import expressivity
from model_patch.experiments.multitask import multitask
from model_patch.experiments.sweep import sweep
from model_patch.experiments.transfer import transfer

REPEATED = [
    (transfer, configs.transfer, {"train": ("last", "full", "last")}, "train has last more than once"),
    (transfer, configs.transfer, {"train": ("scale_bias+last", "last+scale_bias")}, r"train has scale_bias\+last more"),
    (transfer, configs.transfer, {"train": ("full", "full+last")}, "train has full more than once"),
    (transfer, configs.transfer, {"seeds": (0, 1, 0)}, "seeds has 0 more than once"),
    (sweep, configs.transfer, {"learning_rates": (0.1, 1e-1)}, "learning_rates has 0.1 more than once"),
    (multitask, configs.multitask, {"share": ("trunk", "trunk")}, "share has trunk more than once"),
    (multitask, configs.multitask, {"seeds": (3, 3)}, "seeds has 3 more than once"),
    (multitask, configs.multitask, {"data": ("digits", "digits")}, "two tasks are named 'digits'"),
    (multitask, configs.multitask, {"data": ("digits",), "resolutions": (32, 32)}, "resolutions has 32 more than once"),
    (train_detector, configs.detect_scenes, {"seeds": (1, 1)}, "seeds has 1 more than once"),
    (expressivity, configs.expressivity, {"functions": ("sine", "sine")}, "functions has sine more than once"),
    (expressivity, configs.expressivity, {"widths": (8, 8)}, "widths has 8 more than once"),
    (expressivity, configs.expressivity, {"seeds": (0, 0)}, "seeds has 0 more than once"),
    (demo, configs.demo, {"tasks": ("faces", "faces")}, "tasks has faces more than once"),
    (suite("serving").run, configs.benchmark, {"mixes": ("uniform", "uniform")}, "mixes has uniform more than once"),
    (suite("serving").run, configs.benchmark, {"batch_sizes": (1, 1)}, "batch_sizes has 1 more than once"),
    (suite("training").run, configs.benchmark, {"training_sizes": (96, 96)}, "training_sizes has 96 more than once"),
    (suite("scale").run, configs.benchmark, {"scale_images": (1000, 1000)}, "scale_images has 1000 more than once"),
    (
        lambda config, workdir: dry_run_transfer(config),
        configs.transfer,
        {"train": ("last", "last")},
        "train has last more",
    ),
    (transfer, configs.transfer, {"seeds": (-1,)}, "seed is -1: expected at least 0"),
    (expressivity, configs.expressivity, {"seeds": (2**32,)}, "seed is 4294967296: .* and below 4294967296"),
    (multitask, configs.multitask, {"seeds": ()}, "seeds is empty, so there is nothing to run"),
]


@pytest.mark.parametrize(("run", "module", "fields", "message"), REPEATED)
def test_each_value_is_given_once(tmp_path, run, module, fields, message):
    config = module.get_config()
    config.update(fields)
    with pytest.raises(ModelPatchError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
