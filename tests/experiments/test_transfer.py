import json
import re
import shutil

import pytest

from configs import transfer as transfer_config
from model_patch import ModelPatchError, Patch, bind_patch, export, open_trunk
from model_patch.experiments.evaluate import evaluate_models
from model_patch.experiments.transfer import patch_path, transfer
from tests.conftest import smaller_net

ROW = {"train", "seed", "trained_parameters", "trained_fraction", "reused_fraction", "patch_bytes", "test_accuracy"}
ROW |= {"figure", "train_seconds", "input_wait", "validation_accuracy", "test_macro_accuracy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    smaller_net().save(folder / "trunk.keras")
    return folder


def make_config(folder):
    config = transfer_config.get_config()
    config.update(trunk=f"file:{folder}/trunk.keras", train=("last", "scale_bias+last"), epochs=1, max_train_images=96)
    config.validation_fraction = 0.1
    return config


@pytest.fixture
def config(folder):
    return make_config(folder)


@pytest.fixture(scope="module")
def run(folder):
    """A run of two seeds: its workdir and results. Tests leave it unchanged."""
    config = make_config(folder)
    config.seeds = (0, 3)
    return folder / "run", transfer(config, folder / "run")


def test_every_row_is_trained_saved_and_reported(run):
    workdir, results = run
    assert json.loads((workdir / "results.json").read_text()) == results
    assert [(row["train"], row["seed"]) for row in results["rows"]] == [
        (train, seed) for seed in (0, 3) for train in ("last", "scale_bias+last")
    ]
    last, patched = results["rows"][:2]
    assert last.keys() == ROW and patched.keys() == ROW | {"best_epoch", "curves"} and 0 <= last["test_accuracy"] <= 1
    assert last["trained_parameters"] == 16 * 10 + 10 < patched["trained_parameters"]
    for row in results["rows"]:
        path = patch_path(workdir, row["train"], row["seed"])
        assert path.stat().st_size == row["patch_bytes"]
        assert Patch.load(path).metrics["accuracy"] == row["test_accuracy"]
    best = (workdir / "best.safetensors").read_bytes()
    assert best in [patch_path(workdir, row["train"], row["seed"]).read_bytes() for row in results["rows"]]
    for name in (
        "results.md",
        "report.html",
        "evaluation.json",
        "accuracy_vs_parameters.png",
        "tensorboard/scale_bias+last-seed0",
    ):
        assert (workdir / name).exists()


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("train_seconds", "input_wait")}


def test_the_same_run_goes_on_with_the_rows_that_are_missing(config, run, tmp_path):
    workdir, whole = run
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(json.dumps(whole | {"rows": whole["rows"][:3]}))
    config.seeds = (0, 3)
    again = transfer(config, tmp_path / "run")
    for kind, seed, same in (("scale_bias+last", 0, True), ("scale_bias+last", 3, False)):
        there, here = (patch_path(each, kind, seed).stat().st_mtime_ns for each in (workdir, tmp_path / "run"))
        assert (there == here) == same
    assert [without_times(row) for row in again["rows"]] == [without_times(row) for row in whole["rows"]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trunk": "keras:MobilNetV2"}, "unknown net 'MobilNetV2'"),
        ({"trunk": "kers:MobileNetV2"}, "unknown trunk 'kers'"),
        ({"trunk": "file:nowhere.keras"}, "nowhere.keras"),
        ({"data": "digit"}, "unknown data 'digit'"),
        ({"data": "folder:nowhere"}, "'nowhere' does not exist"),
        ({"train": ("last", "scale_bais")}, "unknown patch kind 'scale_bais'"),
        ({"norm_statistics": "frosen"}, "unknown norm_statistics 'frosen'"),
        ({"optimizer": "adem"}, "unknown optimizer 'adem'"),
        ({"augmentation": "turn"}, "unknown augmentation 'turn'"),
        ({"patch_dtype": "int8"}, "int8"),
        ({"task_name": "a/b"}, "task name 'a/b' cannot name a file"),
        ({"epochs": 0}, "epochs is 0"),
        ({"image_size": -3}, "-3"),
        ({"seeds": ()}, "seeds is empty"),
        ({"train": ()}, "train is empty"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"patience": -1}, "patience is -1"),
        ({"folds": 1}, "folds is 1: expected 2 to"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(config, tmp_path, fields, message):
    config.update(fields)
    with pytest.raises(ModelPatchError, match=message):
        transfer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_becomes_nan_ends_the_run_and_keeps_no_row(config, tmp_path):
    config.update(train=("last",), learning_rate=1e38, optimizer="sgd", epochs=9)
    with pytest.raises(ModelPatchError, match="use a lower --learning_rate"):
        transfer(config, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "patches").exists()


def test_folds_are_trained_and_tested_on_training_images_and_the_row_is_that_of_a_run_without(config, run, tmp_path):
    config.update(train=("last",), folds=2)
    (row,) = transfer(config, tmp_path / "run")["rows"]
    accuracies = row.pop("fold_accuracy")
    assert len(accuracies) == 2 and all(0 < each < 1 for each in accuracies)
    assert without_times(row) == without_times(run[1]["rows"][0])
    text = (tmp_path / "run" / "results.md").read_text()
    assert f"| {sum(accuracies) / 2:.4f} ({max(accuracies) - min(accuracies):.4f}) |" in text


@pytest.mark.slow
def test_two_runs_with_one_seed_give_one_report_but_for_times(config, tmp_path):
    found = []
    for name in ("one", "two"):
        results = transfer(config, tmp_path / name)
        del results["machine"]["load_per_core"]
        for row in results["rows"]:
            del row["train_seconds"], row["input_wait"]
        # The last column of the first table is that of seconds.
        pages = [(tmp_path / name / page).read_text() for page in ("report.html", "results.md")]
        pages = [re.sub(r"\d+\.\d+(</td>\s*</tr>| \|\n)", r"TIME\1", page) for page in pages]
        found.append((results, *pages, (tmp_path / name / "evaluation.json").read_text()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("data", "figure", "parts"),
    [
        ("tags&type=multi_label", "mAP", ("macro_F1", "average precision", "Calibration", "Largest errors")),
        pytest.param(
            *("width&type=regression", "R2", ("MAE", "root mean squared error", "values.png", "Largest errors")),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_types_of_task_have_their_figures_and_their_report(config, specs, tmp_path, data, figure, parts):
    table = specs["classification"].partition("?")[0]
    config.update(data=f"{table}?label={data}", task_name="other", train=("last",), report_images=2)
    results = transfer(config, tmp_path / "run")
    (row,) = results["rows"]
    assert row["figure"] == figure and {f"test_{figure}", f"validation_{figure}"} < row.keys()
    patch = Patch.load(tmp_path / "run" / "best.safetensors")
    assert patch.metrics[figure] == row[f"test_{figure}"]
    page, report = ((tmp_path / "run" / name).read_text() for name in ("results.md", "report.html"))
    assert all(part.replace("_", " ") in page for part in parts) and "data:image/jpeg" in report
    models, spec = [str(tmp_path / "run" / "best.safetensors")], f"{table}?label={data}"
    options = {"trunk": config.trunk, "thumbnails": 0}
    again = evaluate_models(models, spec, tmp_path / "again", **options)["best"]["test"]
    assert again[figure] == pytest.approx(row[f"test_{figure}"], abs=1e-4)
    bound = bind_patch(open_trunk(config.trunk), patch)
    export("saved_model", [bound], tmp_path / "exported")
    exported = evaluate_models([str(tmp_path / "exported")], spec, tmp_path / "third", **options)["exported"]["test"]
    assert exported[figure] == pytest.approx(again[figure], abs=1e-3)
    with pytest.raises(ModelPatchError, match="has labels for classification, and best is a"):
        evaluate_models(models, "digits", tmp_path / "fourth", **options)
