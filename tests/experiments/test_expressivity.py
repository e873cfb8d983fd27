import json

import numpy as np
import pytest

from configs import expressivity as expressivity_config
from model_patch import ModelPatchError
from model_patch.experiments.expressivity import expressivity, fit_function, net


@pytest.fixture
def config():
    config = expressivity_config.get_config()
    config.update(functions=("sine", "step"), widths=(4, 64), steps=300, seeds=(0,), num_points=64)
    return config


def test_biases_alone_are_learnt():
    model = net(7, seed=1)
    assert [tuple(v.shape) for v in model.trainable_variables] == [(7,), (1,)]
    before = model.get_weights()
    model.compile("adam", loss="mse")
    model.fit(np.linspace(-1, 1, 16)[:, None], np.ones((16, 1)), epochs=2, verbose=0)
    assert [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)] == [
        True,
        False,
        True,
        False,
    ]


def test_more_biases_learn_more(config):
    few, many = (fit_function("sine", width, config)[0] for width in (4, 256))
    assert many < 0.5 * few


def test_the_run_writes_a_figure_and_goes_on_with_the_rows_that_are_missing(config, tmp_path):
    config.steps = 20
    results = expressivity(config, tmp_path / "run")
    assert [(row["function"], row["trained_parameters"]) for row in results["rows"]] == [
        (function, number) for function in ("sine", "step") for number in (5, 65)
    ]
    assert (tmp_path / "run" / "expressivity.png").exists() and (tmp_path / "run" / "results.md").exists()
    path = tmp_path / "run" / "results.json"
    path.write_text(json.dumps(results | {"rows": results["rows"][:3]}))
    resumed = expressivity(config, tmp_path / "run")["rows"]
    assert resumed[:3] == results["rows"][:3]
    assert [row | {"train_seconds": 0} for row in resumed] == [row | {"train_seconds": 0} for row in results["rows"]]


def test_an_unknown_function_is_refused_before_anything_is_written(config, tmp_path):
    config.functions = ("sine", "cosine")
    with pytest.raises(ModelPatchError, match="unknown function 'cosine': expected one of absolute, sine, step"):
        expressivity(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
