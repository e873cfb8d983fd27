import importlib
import json

import numpy as np
import pytest

from model_patch import ModelPatchError, Patch, Recipe, bind_patch, evaluate
from model_patch.data import open_data
from model_patch.data.pipeline import batches
from model_patch.experiments.multitask import multitask, patch_path
from model_patch.predict import pick
from model_patch.trunks import open_trunk
from tests.conftest import smaller_net


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("trunk") / "trunk.keras"
    smaller_net().save(path)
    return path


def make_config(name, trunk_file, **fields):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update(
        trunk=f"file:{trunk_file}", epochs=1, batch_size=16, max_train_images=48, max_test_images=50, **fields
    )
    return config


@pytest.fixture
def config(trunk_file):
    return make_config("multitask", trunk_file, data=("digits", "textures"))


def accuracy_again(row, workdir, data):
    """The test accuracy of a row, from its files alone."""
    bound = bind_patch(
        open_trunk(row["trunk"], row["image_size"]),
        Patch.load(patch_path(workdir, row["share"], row["task"], row["seed"])),
    )
    images = batches(open_data(data).test, bound.task.preprocessing, 50, max_images=50)
    bound.model.compile(metrics=bound.task.metrics(), loss=bound.task.loss())
    return bound.model.evaluate(images, verbose=0, return_dict=True)["accuracy"]


def test_every_row_is_trained_saved_and_reported_and_its_files_are_enough(config, tmp_path):
    results = multitask(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    rows = {(row["share"], row["task"]): row for row in results["rows"]}
    assert list(rows) == [(share, task) for share in config.share for task in ("digits", "textures")]
    totals = {share: rows[share, "digits"]["total_parameters"] for share in config.share}
    assert totals["nothing"] > totals["trunk"] > totals["trunk+patch"]
    for (share, task), row in rows.items():
        path = patch_path(tmp_path / "run", share, task, 0)
        patch = Patch.load(path)
        assert path.stat().st_size == row["patch_bytes"] and patch.trunk == row["trunk"]
        assert patch.metrics["accuracy"] == row["test_accuracy"]
        if task == "digits":
            assert accuracy_again(row, tmp_path / "run", task) == pytest.approx(row["test_accuracy"], abs=1e-6)
        assert (row["trunk"] == config.trunk) == (share == "nothing")
    assert rows["trunk", "digits"]["trunk"] == f"file:{tmp_path}/run/trunks/trunk-seed0.keras?preprocessing=tf"
    table = (tmp_path / "run" / "results.md").read_text()
    assert "| share | digits | textures | mean |" in table and "| trunk+patch |" in table
    for name in ("accuracy_by_task.png", "tensorboard/trunk-seed0", "tensorboard/nothing-seed0-digits"):
        assert (tmp_path / "run" / name).exists()


def test_tasks_of_three_types_are_trained_together_and_reported(specs, trunk_file, tmp_path):
    names = tuple(specs)
    config = make_config("multitask", trunk_file, data=tuple(specs.values()), task_names=names, share=("trunk",))
    config.update(train="last", train_trunk=False, validation_fraction=0.25)
    rows = multitask(config, tmp_path / "run")["rows"]
    figures = {row["task"]: row["figure"] for row in rows}
    assert figures == {"classification": "accuracy", "multi_label": "mAP", "regression": "R2"}
    trunk = open_trunk(rows[0]["trunk"])
    for row in rows:
        patch = Patch.load(patch_path(tmp_path / "run", row["share"], row["task"], 0))
        assert patch.metrics[row["figure"]] == row[f"test_{row['figure']}"]
        if patch.task.type == "multi_label":
            assert len(patch.task.thresholds) == 3
            data = open_data(specs["multi_label"]).with_validation(0.25, 48)
            again = evaluate(bind_patch(trunk, patch), data, Recipe(max_test_images=50))
            assert again["mAP"] == pytest.approx(row["test_mAP"], abs=1e-5)
    written = (tmp_path / "run" / "results.md").read_text()
    assert "| share | classification | multi_label (mAP) | regression (R2) | mean |" in written
    assert "over figures of several types, R2, accuracy, mAP" in written


def test_the_same_run_goes_on_with_the_rows_that_are_missing(config, tmp_path):
    config.update(share=("trunk", "trunk+patch"), train="last", train_trunk=False, task_weights=(1.0, 0.5))
    whole = multitask(config, tmp_path / "run")
    assert {row["trunk"] for row in whole["rows"]} == {config.trunk}
    path = tmp_path / "run" / "results.json"
    path.write_text(json.dumps(whole | {"rows": whole["rows"][:2]}))
    first = patch_path(tmp_path / "run", "trunk", "digits", 0)
    written = first.stat().st_mtime_ns
    again = multitask(config, tmp_path / "run")
    assert first.stat().st_mtime_ns == written
    for row in (*whole["rows"], *again["rows"]):
        del row["train_seconds"]
    assert again["rows"] == whole["rows"]


def test_resolutions_share_a_head_and_another_is_added_to_the_frozen_trunk(trunk_file, tmp_path):
    config = make_config("resolutions", trunk_file, share=("trunk",), data=("digits",), resolutions=(32, 23))
    results = multitask(config, tmp_path / "run")
    assert [(row["task"], row["image_size"]) for row in results["rows"]] == [("digits-32px", 32), ("digits-23px", 23)]
    spec = results["rows"][0]["trunk"]
    patches = {size: Patch.load(patch_path(tmp_path / "run", "trunk", f"digits-{size}px", 0)) for size in (32, 23)}
    heads = [patch.values["head.kernel"] for patch in patches.values()]
    assert np.array_equal(*heads)
    assert not np.array_equal(*(patch.values["stem_bn/gamma"] for patch in patches.values()))

    later = make_config("resolutions", trunk_file, share=("trunk",), data=("digits",), resolutions=(41,))
    head_from = str(patch_path(tmp_path / "run", "trunk", "digits-32px", 0))
    later.update(trunk=spec, train="scale_bias", train_trunk=False, head_from=head_from)
    (row,) = multitask(later, tmp_path / "added")["rows"]
    assert row["trained_parameters"] == 64 and row["trunk"] == spec
    patches[41] = Patch.load(patch_path(tmp_path / "added", "trunk", "digits-41px", 0))
    assert np.array_equal(patches[41].values["head.kernel"], heads[0])
    tasks = [bind_patch(open_trunk(spec, size), patch) for size, patch in patches.items()]
    assert [pick(tasks, side, side).task.name for side in (20, 32, 500)] == [
        "digits-23px",
        "digits-32px",
        "digits-41px",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trunk": "keras:MobilNetV2"}, "unknown net 'MobilNetV2'"),
        ({"data": ("digits", "texture")}, "unknown data 'texture'"),
        ({"data": ()}, "data is empty"),
        ({"data": ("digits", "digits")}, "two tasks are named 'digits': give them other names with --task_names"),
        ({"task_names": ("a",)}, "task_names has 1 values for 2 data sets"),
        ({"task_names": ("a/b", "c")}, "task name 'a/b' cannot name a file"),
        ({"task_names": ("a b", "c")}, "task name 'a b' cannot name an output"),
        ({"image_sizes": (32, 32, 32)}, "image_sizes has 3 values for 2 data sets"),
        ({"resolutions": (32, 23)}, "resolutions with 2 data sets: give one"),
        ({"share": ("trunk", "head")}, "unknown share 'head'"),
        ({"share": ()}, "share is empty"),
        ({"train": "scale_bais"}, "unknown patch kind 'scale_bais'"),
        ({"head": "one"}, "unknown head 'one'"),
        ({"head": "shared"}, "'digits' and 'textures' have other labels: give each its head"),
        ({"head_from": "nowhere"}, "head_from needs a frozen trunk and head"),
        ({"norm_statistics": "frosen"}, "unknown norm_statistics 'frosen'"),
        ({"sampler": "random"}, "unknown sampler 'random'"),
        ({"sampler_power": -1.0}, "sampler_power is -1.0"),
        ({"task_weights": (1.0,)}, "task_weights 1.0 do not match 2 tasks"),
        ({"task_weights": (1.0, 0.0)}, "give a positive number for each"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"augmentation": "turn"}, "unknown augmentation 'turn'"),
        ({"optimizer": "adem"}, "unknown optimizer 'adem'"),
        ({"patch_dtype": "int8"}, "int8"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seeds": ()}, "seeds is empty"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(config, tmp_path, fields, message):
    config.update(fields)
    with pytest.raises(ModelPatchError, match=message):
        multitask(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_are_too_few_to_hold_some_out_are_refused_before_anything_is_written(config, tmp_path):
    config.update(max_train_images=1)
    with pytest.raises(ModelPatchError, match="of 1 training images of 'digits', 1 cannot be split off"):
        multitask(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
