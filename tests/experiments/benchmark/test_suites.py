"""Suites run from one end to the other on a small net, and write what they say they do. Times are not looked at."""

import collections
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import keras
import numpy as np
import pytest

from configs import benchmark
from model_patch import ModelPatchError, Preprocessing, Task, Trunk
from model_patch.experiments.benchmark import SUITES, joint, lora, suite
from model_patch.experiments.benchmark.forms import FORMS
from model_patch.experiments.benchmark.scale import fit_cost, streamed, write_shard
from model_patch.experiments.benchmark.serving import MIXES, mixed
from model_patch.experiments.benchmark.timing import interleaved
from model_patch.graph.rewrite import walk
from tests.conftest import same, small_net, snapshot, train_steps
from tests.token_nets import small_vit


def pointwise_net():
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, name="stem")(images)
    x = keras.layers.Conv2D(16, 1, name="pointwise")(x)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D(name="mean")(x), name="net")


@pytest.fixture
def config(tmp_path):
    small_net().save(tmp_path / "small.keras")
    config = benchmark.get_config()
    config.trunk = f"file:{tmp_path / 'small.keras'}?preprocessing=tf"
    config.image_size = 32
    config.tasks, config.batch_sizes, config.max_separate, config.rounds = (1, 3), (1, 5), 1, 2
    config.joint_tasks, config.joint_images_per_task = 2, 2
    return config


@pytest.mark.slow
def test_serving(config, tmp_path):
    config.memory_of = ("bank",)  # One of five: each is a process of its own.
    suite("serving").run(config, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "serving.json").read_text())
    cells = collections.Counter((row["tasks"], row["form"]) for row in results["rows"])
    assert cells[1, "bank"] == 2  # One mix, as there is one task, and two batch sizes.
    assert cells[3, "bank"] == len(MIXES) * 2
    not_run = {each["form"] for each in results["not_run"]}
    assert {form for tasks, form in cells if tasks == 3} == set(FORMS) - not_run
    assert {"separate", "torch"} <= not_run <= {"separate", "torch", "onnx"}  # ONNX is optional.
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in results["rows"])
    assert len(results["switching_ms"]) == 5
    assert [(each["tasks"], each["form"]) for each in results["memory"]] == [(1, "bank"), (3, "bank")]
    assert all(each["bytes"] > 0 for each in results["memory"])
    assert "not run beyond 1 tasks" in (tmp_path / "out" / "serving.md").read_text()
    assert (tmp_path / "out" / "serving.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.soak
def test_serving_with_one_thread_for_each_operation(config, tmp_path):
    config.op_threads, config.tasks, config.mixes, config.batch_sizes = 1, (2,), ("distinct",), (64,)
    config.forms, config.memory_of = ("bank", "folded"), ()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(suite("serving").run, config, tmp_path / "out").result()
    results = json.loads((tmp_path / "out" / "serving.json").read_text())
    assert results["op_threads"] == 1
    assert [row["form"] for row in results["rows"]] == ["bank", "folded"]
    with pytest.raises(ModelPatchError, match="begin a new process"):
        suite("serving").run(config, tmp_path / "other")


def test_joint(config, tmp_path, monkeypatch):
    monkeypatch.setattr(joint, "SETTINGS", {"trained": ("batch", True)})  # One of three: compiling takes its time.
    joint.run(config, tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "joint.json").read_text())["rows"]
    assert row["ratio_p25"] <= row["ratio"] <= row["ratio_p75"]


@pytest.mark.slow
def test_training(config, tmp_path):
    config.training_trunks, config.training_sizes, config.training_batches = (config.trunk,), (32,), (3,)
    config.training_forms = ("last", "last, cached", "features", "scale_bias+last", "full", "keras full", "torch full")
    config.training_memory_of = ("scale_bias+last",)
    config.training_epoch_images, config.training_epochs = 40, 2
    config.training_epochs_of = ("last, on images", "last, features kept", "scale_bias+last, from files")
    suite("training").run(config, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "training.json").read_text())
    rows = {row["form"]: row for row in results["rows"]}
    assert list(rows) == list(config.training_forms[:-1])
    assert [each["form"] for each in results["not_run"]] == ["torch full"]  # torchvision does not have this net.
    assert rows["keras full"]["ratio"] == 1
    assert all(row["ms_p25"] <= row["ms"] <= row["ms_p75"] for row in rows.values())
    assert [form for form, row in rows.items() if row.get("peak_bytes", 0) > 0] == ["scale_bias+last"]
    epochs = {row["form"]: row for row in results["epochs"]}
    assert list(epochs) == list(config.training_epochs_of)
    assert all(row["first_s"] > 0 < row["epoch_s"] and 0 <= row["input_wait"] <= 1 for row in epochs.values())
    page = (tmp_path / "out" / "training.md").read_text()
    assert "`torch full`" in page and "| last, features kept |" in page
    assert (tmp_path / "out" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_data(config, tmp_path):
    config.data_sides, config.data_size, config.data_images, config.data_seconds = (120, 40), 32, 2, 0.0
    suite("data").run(config, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "data.json").read_text())
    stages = [row["stage"] for row in results["rows"] if row["side"] == 120]
    assert stages == [
        "read",
        "decode",
        "decode whole",
        "decode the central square",
        "decode at 1/2",
        "resize",
        "crop, flip and resize",
        "all, as in tests",
    ]
    assert all(row["cpu_ms"] > 0 < row["of_step"] for row in results["rows"])
    assert "| 40 | decode |" in (tmp_path / "out" / "data.md").read_text()


@pytest.mark.slow
def test_scale(config, tmp_path):
    config.scale_joint_trunk = config.scale_bank_trunk = config.trunk
    config.scale_tasks, config.scale_patches, config.scale_images = (1, 3), (1, 5, 9), (1000, 3000)
    config.scale_images_per_task, config.scale_bank_size = 2, 32
    suite("scale").run(config, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "scale.json").read_text())
    work = [(row["part"], row["work"]) for row in results["rows"]]
    assert work == [("joint", 1), ("joint", 3), ("bank", 1), ("bank", 5), ("bank", 9), ("data", 1000), ("data", 3000)]
    assert all(value > 0 for row in results["rows"] for value in row.values() if not isinstance(value, str))
    assert [(law["part"], law["cost"]) for law in results["laws"]][:2] == [
        ("joint", "step_ms"),
        ("joint", "first_step_after_s"),
    ]
    assert "as a power law, exponent" in (tmp_path / "out" / "scale.md").read_text()
    assert (tmp_path / "out" / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_a_law_is_found_in_what_follows_it():
    law = fit_cost([1, 10, 100, 1000], [5 + 0.2 * n for n in (1, 10, 100, 1000)])
    assert (law["base"], law["each"], law["largest_error"]) == pytest.approx((5, 0.2, 0), abs=1e-9)
    assert fit_cost([1, 4, 16], [3, 6, 12])["exponent"] == pytest.approx(0.5)
    assert fit_cost([1, 64], [7, 7])["exponent"] == pytest.approx(0, abs=1e-9)
    assert fit_cost([1, 2, 4], [1, 1.5, 4])["largest_error"] > 0.1


def test_an_image_of_a_streamed_data_set_is_read_whenever_it_comes(tmp_path):
    shard = write_shard(tmp_path / "shard")
    split = streamed(shard, 3000)
    assert split.num_images == 3000 == sum(1 for _ in split.stored(3000))
    images = list(split.dataset(2001).as_numpy_iterator())
    assert np.array_equal(images[0][0], images[1000][0]) and not np.array_equal(images[0][0], images[1][0])
    assert len(images) == 2001 and images[0][0].shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("forms", ("pank",), "unknown form 'pank'"),
        ("mixes", ("x",), "unknown mix 'x'"),
        ("tasks", (0,), "tasks is 0"),
        ("op_threads", -1, "op_threads is -1: expected at least 1"),
    ],
)
def test_what_cannot_be_timed_is_refused(config, tmp_path, name, value, message):
    config[name] = value
    with pytest.raises(ModelPatchError, match=message):
        suite("serving").run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mixes_have_the_tasks_that_they_say():
    random = np.random.default_rng(0)
    assert len(set(mixed("identical", 17, 5, random))) == 1
    assert len(set(mixed("distinct", 17, 23, random))) == 17
    assert sorted(collections.Counter(mixed("distinct", 17, 5, random)).values()) == [3, 3, 3, 4, 4]
    skewed = collections.Counter(mixed("skewed", 5000, 5, random))
    even = collections.Counter(mixed("uniform", 5000, 5, random))
    assert skewed[0] / skewed[1] == pytest.approx(2, rel=0.15)
    assert even[0] / even[1] == pytest.approx(1, rel=0.15)


def test_turns_are_taken_by_all():
    order = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=50, warmup=2)
    assert {name: len(each) for name, each in times.items()} == {"a": 50, "b": 50}
    assert all(set(order[i : i + 2]) == {"a", "b"} for i in range(0, len(order), 2))
    short = interleaved({"a": lambda: None}, rounds=10**6, seconds=0.01)
    assert 3 <= len(short["a"]) < 10**6


def test_every_suite_is_there():
    assert all(callable(suite(name).run) for name in SUITES)


@pytest.mark.slow
def test_lora_resumes_and_compares_the_forms(config, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "convnext", pointwise_net)  # In place of ten blocks, which take a minute to trace.
    monkeypatch.setattr(lora, "CONVNEXT_SIZE", 8)
    pointwise_net().save(tmp_path / "pointwise.keras")
    spec = f"file:{tmp_path / 'pointwise.keras'}?preprocessing=tf"
    config.lora_trunks, config.lora_size, config.lora_data = (spec, "convnext"), 8, "digits"
    config.lora_train_images, config.lora_epochs, config.lora_seeds, config.lora_rates = 32, 1, (0, 1), (0.01, 0.1)
    config.lora_pretrain_data, config.lora_pretrain_images, config.lora_pretrain_epochs = "digits", 32, 1
    suite("lora").run(config, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "lora.json").read_text())
    assert [(row["trunk"], row["form"]) for row in results["rows"]] == list(
        itertools.product(("net", "net"), ("last", "scale_bias+last", "lora"))
    )
    assert [each["form"] for each in results["not_run"]] == ["peft", "peft"]  # For want of PEFT, or of such a net.
    assert [len(row["accuracies"]) for row in results["rows"]] == [1, 2, 2] * 2
    assert all(row["step_ratio"] > 0 and row["serving_ratio"] > 0 for row in results["rows"])
    trained = json.loads((tmp_path / "out" / "trunk_0" / "results.json").read_text())["rows"]
    # Two seeds of the patch and of the better rate, one of the other.
    times = "times of last, scale_bias+last, lora"
    assert sorted(row["form"] for row in trained) == ["last", *["lora"] * 3, *["scale_bias+last"] * 2, times]
    suite("lora").run(config, tmp_path / "out")
    again = json.loads((tmp_path / "out" / "lora.json").read_text())["rows"]
    assert [row["accuracies"] for row in again] == [row["accuracies"] for row in results["rows"]]


@pytest.mark.parametrize("net", [small_vit, pointwise_net])
def test_images_of_a_batch_go_through_the_adapters_of_their_own_task(net):
    model = net()
    trunk = Trunk(model, "net", Preprocessing(model.input_shape[1], "tf"))
    bound = lora.lora(trunk, Task("two", ("a", "b"), trunk.preprocessing), 150)
    mixed, random = lora.mixed(bound.features, 2), np.random.default_rng(0)
    images = random.normal(size=(2, *model.input_shape[1:])).astype("float32")
    expected, kernels = [np.asarray(bound.features(images))[0]], []
    for _, layer in walk(mixed):
        if isinstance(layer, lora.Adapted):
            inner = layer.layer
            down, up = (random.normal(size=v.shape) for v in (inner.lora_kernel_a, inner.lora_kernel_b))
            kernels += [(inner.lora_kernel_a, down), (inner.lora_kernel_b, up)]
            down = down.reshape(layer.down.shape[1:])  # Kernels of convolutions have two axes of one pixel.
            layer.down.assign([0 * down, down])
            layer.up.assign([up, up])
    given = np.asarray(mixed([images, np.array([0, 1], "int32")]))
    for kernel, value in kernels:
        kernel.assign(value)
    expected.append(np.asarray(bound.features(images))[1])
    assert kernels and not np.allclose(*expected)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "size", "adapters"), [(small_vit, 150, 2 * 2 * (24 + 6)), (pointwise_net, 50, 2 * (8 + 16))]
)
def test_adapters_have_about_as_many_parameters_as_they_should_and_begin_as_the_trunk(net, size, adapters):
    model = net()
    trunk = Trunk(model, "net", Preprocessing(model.input_shape[1], "tf"))
    before = snapshot(trunk.variables())
    bound = lora.lora(trunk, Task("two", ("a", "b"), trunk.preprocessing), size)
    learnt = bound.features.trainable_variables
    assert sum(int(np.prod(v.shape)) for v in learnt) == adapters
    images = np.random.default_rng(0).uniform(-1, 1, (4, *model.input_shape[1:])).astype("float32")
    features = np.asarray(trunk.model(images))
    np.testing.assert_allclose(bound.features(images), features[:, 0] if features.ndim == 3 else features, atol=1e-5)
    train_steps(bound, images, np.array([0, 1, 0, 1]), steps=1)
    assert same(before, snapshot(trunk.variables()))
