"""Strategies: several replicas take the steps that one device takes with the same global batch."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind, join
from model_patch.detection.task import DetectionTask
from model_patch.kinds import TrainSpec
from model_patch.training import strategies
from tests.conftest import SIZE, small_net
from tests.scripts.run_script import ROOT


def start(strategy, file, trainings=(), **environment):
    command = [sys.executable, "-m", "tests.training.strategy_program", strategy, str(file), *trainings]
    # Nothing is expected on a GPU here: both runs must be on the same kind of device to be compared.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_NUM_INTRAOP_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


BOTH = ("a task, from fit to evaluate", "the last layer", "joined tasks, own patches", "detector")
ON_WORKERS = (*BOTH, "two unreadable images", "decoded in each epoch", "decoded once")
ON_DEVICES = (*BOTH, "frozen statistics", "batch statistics", "batch statistics, cut off")
ON_DEVICES += ("joined tasks, one patch, trunk learnt",)
"""Trainings of several processes, which differ from others in what each reads, and of devices, which run all of a step."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process, two logical devices and two worker processes found, by name."""
    folder = tmp_path_factory.mktemp("strategies")
    addresses = [f"127.0.0.1:{port}" for port in ports(2)]
    processes = {
        "one": start("default", folder / "one"),
        "devices": start("mirrored", folder / "devices", ON_DEVICES),
    }
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {"TF_CONFIG": json.dumps(config)}
        processes[f"worker{index}"] = start("multi_worker", folder / f"worker{index}", ON_WORKERS, **environment)
    found = {}
    for name, process in processes.items():
        try:
            _, stderr = process.communicate(timeout=1800)
        finally:
            process.kill()
        assert process.returncode == 0, f"{name}: {stderr[-3000:]}"
        found[name] = json.loads((folder / name).read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("several", ["devices", "worker0", "worker1"])
def test_several_replicas_end_as_one(runs, several):
    """One task, joined tasks and a detector; and in each epoch their logs say the same by the same names."""
    for training, found in runs[several].items():
        one = runs["one"][training.removesuffix(", cut off")]
        assert (found["replicas"], one["replicas"]) == (2, 1)
        losses = one["history"].get("loss", [0, 1])  # The last layer has no epochs.
        assert abs(losses[0] - losses[-1]) > 0.01, "nothing was learnt"
        assert found["tested"] == pytest.approx(one["tested"], abs=1e-3), training
        assert found["history"].keys() == one["history"].keys() - {"seconds", "input_wait"}
        for name, epochs in found["history"].items():
            assert epochs == pytest.approx(one["history"][name], abs=2e-3), f"{name} of {training}"
    assert {"shapes_loss", "colours_accuracy"} <= runs[several]["joined tasks, own patches"]["history"].keys()


@pytest.mark.slow
def test_each_worker_decodes_its_half_of_the_images(runs):
    """In training and in the passes without gradients, of every type of task."""
    shared = [name for name, run in runs["worker0"].items() if run["decoded"] and name != "decoded once"]
    assert len(shared) == 6
    for training in shared:
        one, *workers = (runs[name][training]["decoded"] for name in ("one", "worker0", "worker1"))
        if "joined" in training or "unreadable" in training:  # One reads ahead, of the other some are not decoded.
            assert all(abs(len(each) - len(one) / 2) <= 8 for each in workers), training
        else:
            assert sorted(one) == sorted(workers[0] + workers[1]) and len(one) == 2 * len(workers[0]), training
    assert len(runs["one"]["decoded in each epoch"]["decoded"]) == 60  # Three epochs of 20 images.
    one, *workers = (runs[name]["decoded once"]["decoded"] for name in ("one", "worker0", "worker1"))
    assert len(one) == 20 and all(10 <= len(each) == len(set(each)) for each in workers)


@pytest.mark.slow
def test_a_training_on_several_devices_goes_on_where_it_was_cut_off(runs):
    whole, cut = (runs["devices"][name] for name in ("batch statistics", "batch statistics, cut off"))
    assert cut["tested"] == pytest.approx(whole["tested"], abs=1e-6)
    assert cut["history"]["loss"] == pytest.approx(whole["history"]["loss"], abs=1e-6)


@pytest.mark.slow
def test_workers_agree_to_the_last_bit(runs):
    one, other = (
        {name: {key: values for key, values in run.items() if key != "decoded"} for name, run in runs[worker].items()}
        for worker in ("worker0", "worker1")
    )
    assert one == other


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32():
    with strategies.devices(mixed_precision=True):
        trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
        bound = bind(trunk, Task("shapes", ("circle", "square"), trunk.preprocessing), "scale_bias+last")
    assert keras.mixed_precision.dtype_policy().name == "float32"
    assert bound.features.output.dtype == "bfloat16" and bound.model.output.dtype == "float32"
    assert {v.dtype for v in bound.patch_variables.values()} == {"float32"}


@pytest.mark.parametrize("statistics", ["batch", "frozen"])
def test_joined_tasks_train_in_bfloat16(images, statistics):
    with strategies.devices(mixed_precision=True):
        trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
        tasks = [Task(name, ("circle", "square"), trunk.preprocessing) for name in ("one", "two")]
        joined = join(trunk, tasks, TrainSpec.parse("scale_bias+last", statistics))
    assert {output.dtype for output in joined.model.outputs} == {"float32"}
    assert {v.dtype for v in joined.model.weights} == {"float32"}
    joined.model.compile("sgd", loss=joined.losses(), metrics=joined.metrics(), run_eagerly=True)
    batch = {"one": images[:4], "two": images[4:]}
    logs = joined.model.train_on_batch(batch, {"one": np.arange(4) % 2, "two": np.arange(8) % 2}, return_dict=True)
    assert np.isfinite(logs["loss"])


def test_a_detector_trains_in_bfloat16(images):
    with strategies.devices(mixed_precision=True):
        trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
        task = DetectionTask.on(trunk, "objects", ("circle", "square"), layers=("project",), num_maps=2)
        bound = bind(trunk, task, "full")
    assert bound.features.outputs[0].dtype == "bfloat16" and bound.model.output.dtype == "float32"
    assert {v.dtype for v in bound.model.weights} == {"float32"}
    bound.model.compile("sgd", loss=task.loss(), run_eagerly=True)
    boxes = np.tile(np.array([[[0.1, 0.2, 0.7, 0.8, 1.0]]], "float32"), (len(images), 1, 1))
    assert np.isfinite(bound.model.train_on_batch(images, boxes))


def test_only_the_first_worker_writes_to_the_workdir(monkeypatch):
    assert strategies.own_workdir("runs/x", "multi_worker") == "runs/x"
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {}, "task": {"type": "worker", "index": 1}}))
    assert strategies.own_workdir("runs/x", "multi_worker") == "runs/x-worker1"
    assert strategies.own_workdir("runs/x", "default") == "runs/x"


@pytest.mark.parametrize(
    ("strategy", "message"),
    [("many", "unknown strategy 'many'"), ("multi_worker", "needs TF_CONFIG"), ("tpu", "finds no TPU")],
)
def test_strategies_that_cannot_be_had(monkeypatch, strategy, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(ModelPatchError, match=message), strategies.devices(strategy):
        pass
