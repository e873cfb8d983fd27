"""Trainings that are cut off go on and end with the same values, to the last bit."""

import contextlib
import dataclasses
import json

import keras
import numpy as np
import pytest
import safetensors

from model_patch import ModelPatchError, Task, Trunk, bind
from model_patch.data import open_data
from model_patch.experiments.workdir import Workdir
from model_patch.join import join
from model_patch.training.callbacks import Logs
from model_patch.training.fit import fit
from model_patch.training.joint import fit_joined
from tests.conftest import full_disk, same, snapshot


class Cut(Exception):
    """What ends a training in the middle."""


@pytest.fixture
def cut(monkeypatch):
    """Ends a training in the middle of the given epoch: everything in memory is lost, the files stay."""

    def cut(epoch):
        from model_patch.training import callbacks

        def on_train_batch_end(self, batch, logs=None):
            if epoch is not None and self.epoch == epoch and batch >= 1:  # All steps may be one call.
                raise Cut

        monkeypatch.setattr(callbacks.StopAtNaN, "on_train_batch_end", on_train_batch_end)

    return cut


@pytest.mark.parametrize(
    ("train", "optimizer", "augmentation", "validation_fraction"),
    [
        ("last", "adam", "none", 0.25),
        ("scale_bias+last", "rmsprop", "shift", 0.25),
        pytest.param("full", "sgd", "none", 0, marks=pytest.mark.slow),
    ],
)
def test_one_task_goes_on_from_its_last_whole_epoch(
    trunk, digits, data, recipe, tmp_path, cut, train, optimizer, augmentation, validation_fraction
):
    data = data.with_validation(validation_fraction, 80)
    recipe = dataclasses.replace(
        recipe, epochs=4, optimizer=optimizer, augmentation=augmentation, learning_rate=0.01, max_train_images=80
    )

    def run(checkpoint=None):
        keras.utils.set_random_seed(5)
        bound = bind(trunk, digits, train, seed=5)
        fit(bound, data, recipe, seed=5, checkpoint=checkpoint)
        return snapshot(bound.patch_variables | bound.head_variables)

    whole, checkpoint = run(), tmp_path / "row.safetensors"
    for epoch in (1, 3) if train == "last" else (2,):
        cut(epoch)
        with pytest.raises(Cut):
            run(checkpoint)
    cut(None)
    assert same(run(checkpoint), whole)
    assert same(run(checkpoint), whole), "a training that had ended is not trained again"


def test_dropout_draws_the_numbers_that_would_have_come(trunk, digits, data, recipe, tmp_path, cut):
    net = trunk.model
    trunk = Trunk(keras.Model(net.input, keras.layers.Dropout(0.5)(net.output)), "test", trunk.preprocessing)

    def run(checkpoint=None):
        keras.utils.set_random_seed(1)
        bound = bind(trunk, digits, "scale_bias+last")
        fit(bound, data, recipe, checkpoint=checkpoint)
        return snapshot(bound.head_variables)

    # The generator's state is the trunk's layer's own: each run begins with what the first began with.
    (state,) = [v for v in trunk.model.variables if "seed" in v.path]
    start = np.array(state)
    whole = run()
    assert not np.array_equal(start, np.array(state))
    cut(1)
    state.assign(start)
    with pytest.raises(Cut):
        run(tmp_path / "row.safetensors")
    cut(None)
    state.assign(start)
    assert same(run(tmp_path / "row.safetensors"), whole)


def test_joined_tasks_go_on_and_know_their_best_epoch(trunk, recipe, tmp_path, cut):
    sources = {name: open_data(name).with_validation(0.1, 80) for name in ("digits", "textures")}
    tasks = [Task(name, each.labels, trunk.preprocessing) for name, each in sources.items()]
    # A rate at which the best epoch is not the last one.
    recipe = dataclasses.replace(recipe, epochs=4, learning_rate=0.3, schedule="constant")
    sizes = np.tile([[9, 5], [4, 10], [7, 7]], (4, 1))

    def run(checkpoint=None):
        keras.utils.set_random_seed(2)
        joined = join(trunk, tasks, "scale_bias+last")
        augmentation = {"digits": "shift", "textures": "flip"}
        fit_joined(joined, sources, recipe, sizes, augmentation=augmentation, seed=2, checkpoint=checkpoint)
        return snapshot({str(i): v for i, v in enumerate(joined.model.variables)})

    whole = run()
    cut(2)
    with pytest.raises(Cut):
        run(tmp_path / "row.safetensors")
    cut(None)
    assert same(run(tmp_path / "row.safetensors"), whole)
    assert same(run(tmp_path / "row.safetensors"), whole), "a training that had ended is not trained again"


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(trunk, digits, data, recipe, tmp_path, monkeypatch):
    from model_patch.training import resume

    checkpoint, write_bytes = tmp_path / "row.safetensors", resume.write_bytes

    def run():
        keras.utils.set_random_seed(5)
        bound = bind(trunk, digits, "scale_bias+last", seed=5)
        fit(bound, data, dataclasses.replace(recipe, epochs=3), seed=5, checkpoint=checkpoint)
        return snapshot(bound.patch_variables | bound.head_variables)

    def no_room_for_the_second(path, contents):
        with full_disk(1000) if path.exists() else contextlib.nullcontext():
            write_bytes(path, contents)

    whole = run()
    checkpoint.unlink()
    monkeypatch.setattr(resume, "write_bytes", no_room_for_the_second)
    with pytest.raises(
        ModelPatchError, match=r"row.safetensors cannot be written \(.*\): choose another place or free"
    ):
        run()
    monkeypatch.undo()
    with safetensors.safe_open(checkpoint, framework="numpy") as file:
        assert json.loads(file.metadata()["training"])["epochs"] == 1
    assert same(run(), whole) and [each.name for each in tmp_path.iterdir()] == [checkpoint.name]


def test_logs_that_find_no_room_are_one_sentence(trunk, tmp_path):
    logs = Logs(tmp_path / "logs")
    logs.set_model(trunk.model)
    with (
        full_disk(),
        pytest.raises(ModelPatchError, match=r"logs cannot be written \(File too large\): choose another place"),
    ):
        logs.on_train_begin()


def test_a_checkpoint_that_cannot_be_used_is_named(trunk, digits, data, recipe, tmp_path):
    checkpoint = tmp_path / "row.safetensors"
    fit(bind(trunk, digits, "bias+last"), data, recipe, checkpoint=checkpoint)
    message = r"the checkpoint .*row.safetensors cannot be used \(.*\): delete it, and its row restarts"
    with pytest.raises(ModelPatchError, match=message):
        fit(bind(trunk, digits, "full"), data, recipe, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(ModelPatchError, match=message):
        fit(bind(trunk, digits, "bias+last"), data, recipe, checkpoint=checkpoint)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    folder = Workdir(tmp_path / "run", {})
    (folder.path / "patches").mkdir()
    (folder.path / "patches" / ".abc.tmp").write_text("half")
    Workdir(tmp_path / "run", {})
    assert list((folder.path / "patches").iterdir()) == []


def test_checkpoints_go_when_results_are_written(tmp_path):
    folder = Workdir(tmp_path / "run", {})
    checkpoint = folder.checkpoint("last-seed0")
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"x")
    folder.write_results({"rows": []})
    assert not checkpoint.exists()
