"""Suites: their configurations, and one experiment from its process to the page."""

import importlib
import json
import shutil

import pytest

from model_patch import ModelPatchError
from model_patch.experiments.dry_run import dry_run_multitask, dry_run_transfer
from model_patch.experiments.reproduce import ROOT, SORTS, SUITES, reproduce, write_results_page

EXPERIMENTS = {each.name: each for each in SUITES["small"]}


@pytest.mark.parametrize("name", [name for name, each in EXPERIMENTS.items() if each.sort != "expressivity"])
def test_every_configuration_can_be_built(name):
    experiment = EXPERIMENTS[name]
    path, _, argument = experiment.config.partition(":")
    config = importlib.import_module("configs." + path.removesuffix(".py").replace("/", ".")).get_config(
        *filter(None, [argument])
    )
    assert len(config.seeds) == 3
    if experiment.needs:
        known = "tfds:fashion_mnist"  # To a dry run, also where the images are not installed.
        config.data = (known, *config.data[1:]) if experiment.sort == "multitask" else known
    assert "trunk" in config.get("share", ["trunk"]) and "scale_bias+last" in config.train
    if "resolutions" in config:
        config.resolutions = config.resolutions[:2]
    config.update({"share": ("trunk",)} if "share" in config else {"train": ("scale_bias+last",)})
    rows = (dry_run_multitask if experiment.sort == "multitask" else dry_run_transfer)(config, step=False)
    assert {row.counts.patch for row in rows} == {14_080}


def test_every_experiment_has_a_sort_a_script_and_a_configuration_of_its_own():
    experiments = [each for suite in SUITES.values() for each in suite]
    assert {each.sort for each in experiments} == SORTS.keys()
    for suite in SUITES.values():
        assert len({each.config for each in suite}) == len({each.name for each in suite}) == len(suite)
    assert all((ROOT / "scripts" / f"{sort.script}.py").exists() for sort in SORTS.values())


def test_an_experiment_runs_once_and_makes_a_page(tmp_path):
    output = tmp_path / "page"
    reproduce("small", tmp_path / "work", output, only=["expressivity"], smoke=True)
    page = (output / "results.md").read_text()
    assert "## Expressivity: biases alone" in page and "*Not run*: transfer-digits, transfer-mnist" in page
    assert "![Expressivity: biases alone](results/expressivity.png)" in page
    assert str(tmp_path) not in page and "--workdir=runs/small/expressivity" in page
    raw = json.loads((output / "results" / "expressivity.json").read_text())
    # Of the trainings, not of the process: an interrupted run ends in a process that trains only what was missing.
    assert raw["seconds"] == sum(row["train_seconds"] for row in raw["rows"]) > 0 and "cores" in raw["hardware"]
    assert (output / "results" / "expressivity.png").stat().st_size > 1000
    finished = tmp_path / "work" / "expressivity" / "finished.json"
    before = finished.stat().st_mtime_ns
    reproduce("small", tmp_path / "work", output, only=["expressivity"], smoke=True)
    assert finished.stat().st_mtime_ns == before

    # Another workdir, as on another computer: what an earlier page shows is shown again, unless it was another command.
    again = tmp_path / "again"
    write_results_page("small", again, output)
    assert "## Expressivity" not in (output / "results.md").read_text()
    raw["command"] = [each for each in raw["command"] if each not in SORTS["expressivity"].smoke]
    (output / "results" / "expressivity.json").write_text(json.dumps(raw))
    write_results_page("small", again, output)
    assert "## Expressivity" in (output / "results.md").read_text()


def test_the_page_in_the_docs_is_what_its_raw_numbers_make(tmp_path):
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    write_results_page("small", tmp_path / "nothing", tmp_path)
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text()


def test_the_seconds_of_a_joint_run_count_each_training_once(tmp_path):
    found = json.loads((ROOT / "docs" / "results" / "multitask.json").read_text())
    rows = [row | {"train_seconds": 60.0} for row in found["rows"] if row["share"] != "nothing" and row["seed"] == 0]
    assert len(rows) == 6  # Two trainings of three tasks.
    (tmp_path / "multitask").mkdir()
    (tmp_path / "multitask" / "results.json").write_text(json.dumps(found | {"rows": rows}))
    write_results_page("small", tmp_path, tmp_path)
    assert "Trained in 2.0 minutes" in (tmp_path / "results.md").read_text()


def test_what_is_unknown_is_refused(tmp_path):
    with pytest.raises(ModelPatchError, match="unknown suite 'large': expected one of real, small"):
        reproduce("large", tmp_path, tmp_path)
    with pytest.raises(ModelPatchError, match="unknown experiment 'rate': expected one of expressivity"):
        reproduce("small", tmp_path, tmp_path, only=["rate"])
