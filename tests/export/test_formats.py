"""Every format: what is written predicts as the models in memory, in a process that has nothing of this package."""

import base64
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind, fold
from model_patch.detection.task import DetectionTask
from model_patch.export import FORMATS, check, export, next_version
from model_patch.export.litert_file import read_manifest
from model_patch.graph.settings import dtype_policy
from tests.conftest import SIZE, small_net
from tests.export.conftest import LABELS, in_memory, size

DOCS = Path(__file__).parents[2] / "docs" / "tf_serving"


def test_versions_are_numbered_and_whole(tasks, tmp_path):
    base = tmp_path / "tasks"
    for number in (1, 2):
        assert export("bank", tasks[:1], base, versioned=True).folder == base / str(number)
    (base / "7").mkdir()
    assert next_version(base) == base / "8"
    with pytest.raises(ModelPatchError):
        export("bank", [], base, versioned=True)
    with pytest.raises(ModelPatchError, match="--format=litert has no versions: .* take signatures, bank"):
        export("litert", tasks[:1], base, versioned=True)
    assert sorted(path.name for path in base.iterdir()) == ["1", "2", "7"]


def test_the_request_of_the_docs_is_one_that_an_exported_bank_takes(tmp_path):
    """As TensorFlow Serving reads it: the values of each input by name, base64 decoded, stacked to a tensor."""
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    bounds = [bind(trunk, Task(name, ("a", "b"), trunk.preprocessing)) for name in ("digits", "pets")]
    folder = export("bank", bounds, tmp_path / "tasks", versioned=True).folder
    request = json.loads((DOCS / "request.json").read_text())
    columns = {name: [instance[name] for instance in request["instances"]] for name in request["instances"][0]}
    columns["contents"] = [base64.b64decode(each["b64"]) for each in columns["contents"]]
    signature = tf.saved_model.load(folder).signatures[request["signature_name"]]
    predictions = signature(**{name: tf.constant(values) for name, values in columns.items()})
    assert predictions["probabilities"].shape == (2, 2) and set(predictions) == {"logits", "probabilities", "label"}


def test_the_files_for_tensorflow_serving_agree():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    (service,) = yaml.safe_load((DOCS / "compose.yaml").read_text())["services"].values()
    flags = dict(each.removeprefix("--").split("=") for each in service["command"])
    mounted = [volume.split(":") for volume in service["volumes"]]
    for flag in ("model_base_path", "batching_parameters_file"):
        assert flags[flag] in [inner for _, inner, _ in mounted]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    lines = (DOCS / "batching.txt").read_text().splitlines()
    sizes = [int(line.partition(": ")[2]) for line in lines if line.startswith("allowed_batch_sizes: ")]
    assert f"max_batch_size {{ value: {sizes[-1]} }}" in lines  # The largest allowed size has to be the limit.


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_predicts_as_the_models_in_memory(tasks, written, format, one_clean_process):
    differences = check(format, tasks, written(format))
    assert differences.keys() == {bound.task.name for bound in tasks} and max(differences.values()) <= 1e-5


def test_a_prediction_that_differs_is_an_error(trunk, task, tmp_path):
    bound = bind(trunk, task)
    export("litert", [bound], tmp_path / "out")
    bound.head_variables["head.bias"].assign([1.0, 2.0, 3.0])
    with pytest.raises(RuntimeError, match="the exported task 'shapes' differs from the model in memory by 3"):
        check("litert", [bound], tmp_path / "out")


def test_tasks_that_scale_images_differently_keep_their_own_scaling_or_are_refused(trunk, tmp_path, one_clean_process):
    tasks = [bind(trunk, Task(mode, ("a", "b"), Preprocessing(SIZE, mode))) for mode in ("tf", "caffe")]
    exported = export("signatures", tasks, tmp_path / "signatures", verify=True)
    assert max(exported.differences.values()) < 1e-3  # Logits of pixels in 0..255.
    with pytest.raises(
        ModelPatchError, match=r"'tf' and 'caffe' scale images differently .tf and caffe.*export them as"
    ):
        export("litert_set", tasks, tmp_path / "set")


def test_an_operation_that_litert_lacks_is_named(tmp_path):
    image = keras.Input((SIZE, SIZE, 3))
    trunk = Trunk(
        keras.Model(image, keras.layers.BatchNormalization()(keras.ops.erf(image))), "test", Preprocessing(SIZE, "tf")
    )
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing))
    with pytest.raises(
        ModelPatchError, match=r"LiteRT cannot hold this net \(it has no Erf\): export it as saved_model"
    ):
        export("litert", [bound], tmp_path / "out")


@contextlib.contextmanager
def interrupted_by_a_child():
    """Presses Ctrl-C, once, as soon as this process has a child: an export has one when it is being verified."""
    children = Path(f"/proc/{os.getpid()}/task")
    over = threading.Event()

    def watch():
        while not over.wait(0.005):
            # A thread of this process starts it, not necessarily the one that stands in the folder first.
            if any((each / "children").read_text() for each in children.iterdir()):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                return

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job ignores it.
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "format", ["litert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("signatures", "bank"))]
)
def test_an_export_that_is_interrupted_while_it_is_verified_leaves_nothing(trunk, task, format, tmp_path):
    bound = bind(trunk, task)
    with interrupted_by_a_child(), pytest.raises(KeyboardInterrupt):
        export(format, [bound], tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == [], "the same command would be refused"


def test_an_export_that_does_not_run_leaves_nothing(trunk, task, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="does not run on its own"):
        export("litert", [bind(trunk, task)], tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_of_several_files_the_one_that_does_not_run_is_named(tasks, tmp_path):
    export("litert", tasks, tmp_path / "out")
    damaged = tmp_path / "out" / f"{tasks[1].task.name}.tflite"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="the export serving_default.tflite does not run on its own"):
        check("litert", tasks, tmp_path / "out")


@pytest.mark.parametrize("format", ["litert", "litert_set"])
def test_litert_computes_what_tensorflow_does_where_its_own_operations_do_not(format, tmp_path):
    image = keras.Input((SIZE, SIZE, 3))
    zeros = keras.layers.ReLU()(keras.layers.Conv2D(3, 1, use_bias=False)(image) - 1e4)
    maps = [
        keras.layers.UnitNormalization(axis=1)(zeros),
        keras.ops.minimum(keras.ops.rsqrt(zeros), 1.0),
        keras.ops.softplus(image),
        keras.ops.softplus(-image),
        keras.layers.Activation("mish")(image),
    ]
    net = keras.Model(image, keras.layers.BatchNormalization()(keras.layers.Concatenate()(maps)))
    trunk = Trunk(net, "test", Preprocessing(SIZE, "none"))
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing))
    assert export(format, [bound], tmp_path / "out", verify=True).differences["two"] < 1e-2  # Logits are near 100.


def test_the_saved_model_of_one_task_is_the_folder_itself_which_is_not_overwritten(trunk, task, tmp_path):
    bound = bind(trunk, task)
    export("saved_model", [bound], tmp_path / "out")
    assert (tmp_path / "out" / "saved_model.pb").exists()
    for format in FORMATS:
        with pytest.raises(ModelPatchError, match="out exists: choose another --output"):
            export(format, [bound], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "saved_model"])
def test_a_detector_is_refused_by_name_and_nothing_is_left(trunk, format, tmp_path):
    detector = bind(trunk, DetectionTask.on(trunk, "boxes", ("dot",), layers=("stem_relu",)))
    with pytest.raises(ModelPatchError, match="'boxes' is a detection task.*saved_model"):
        export(format, [detector], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_asked_for_is_refused(trunk, task, tmp_path):
    bound = bind(trunk, task)
    refused = {
        "unknown format 'onxx': expected one of bank, litert, litert_set, onnx": ("onxx", [bound], "none"),
        "unknown quantize 'int4': expected one of dynamic, none": ("litert", [bound], "int4"),
        "--format=signatures is not quantized.*take litert, litert_set": ("signatures", [bound], "dynamic"),
        "there is no task to export": ("litert", [], "none"),
        "'a.encoded' ends in .encoded": (
            "signatures",
            [bind(trunk, Task("a.encoded", ("a", "b"), task.preprocessing))],
            "none",
        ),
        "'__saved_model_init_op' begins with __saved_model_": (
            "signatures",
            [bind(trunk, Task("__saved_model_init_op", ("a", "b"), task.preprocessing))],
            "none",
        ),
    }
    for message, (format, bounds, quantize) in refused.items():
        with pytest.raises(ModelPatchError, match=message):
            export(format, bounds, tmp_path / "out", quantize)
    assert list(tmp_path.iterdir()) == []


def test_signatures_take_images_and_files_and_give_labels(tasks, pixels, written):
    signatures = tf.saved_model.load(written("signatures")).signatures
    assert set(signatures) == {*LABELS, *(f"{name}.{part}" for name in LABELS for part in ("encoded", "resized"))}
    files = [tf.io.encode_png(image.astype("uint8")).numpy() for image in pixels]
    for bound in tasks:
        predictions = signatures[bound.task.name](images=pixels.astype("uint8").astype("float32"))
        expected = in_memory(bound, pixels.astype("uint8").astype("float32"))
        np.testing.assert_allclose(predictions["logits"], expected, atol=1e-5)
        assert [x.decode() for x in predictions["label"].numpy()] == [bound.task.labels[i] for i in expected.argmax(-1)]
        encoded = signatures[f"{bound.task.name}.encoded"](contents=tf.constant(files))
        np.testing.assert_allclose(encoded["logits"], expected, atol=1e-5)
        resized = signatures[f"{bound.task.name}.resized"](images=pixels.astype("uint8").astype("float32"))
        np.testing.assert_allclose(resized["logits"], expected, atol=1e-5)
        assert set(resized) == {"logits", "probabilities"}
        labels = (written("signatures") / "assets" / f"{bound.task.name}.labels.txt").read_text()
        assert tuple(labels.split()) == bound.task.labels


def test_an_exported_bank_takes_mixed_batches_and_refuses_names_it_does_not_know(tasks, pixels, written):
    signatures = tf.saved_model.load(written("bank")).signatures
    whole = pixels.astype("uint8").astype("float32")
    names = [bound.task.name for bound in tasks]
    by_images = signatures["serving_default"](images=whole, tasks=tf.constant(names))
    files = tf.constant([tf.io.encode_png(image.astype("uint8")).numpy() for image in pixels])
    by_files = signatures["encoded"](contents=files, tasks=tf.constant(names))
    for predictions in (by_images, by_files):
        for k, bound in enumerate(tasks):
            own = len(bound.task.labels)
            expected = in_memory(bound, whole)[k]
            np.testing.assert_allclose(predictions["logits"][k, :own], expected, atol=1e-5)
            assert (
                np.isneginf(predictions["logits"][k, own:]).all()
                and not predictions["probabilities"][k, own:].numpy().any()
            )
            assert predictions["label"][k].numpy().decode() == bound.task.labels[expected.argmax()]
    with pytest.raises(tf.errors.InvalidArgumentError, match="the bank has no task of the name.*digitz"):
        signatures["serving_default"](images=whole, tasks=tf.constant([*names[:2], "digitz"]))


@pytest.mark.parametrize("mode", ["caffe", "torch"])  # The other modes do less.
def test_scaling_and_labels_are_in_a_litert_file(images, mode, tmp_path, pixels):
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, mode))
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "last")
    export("litert", [bound], tmp_path / "out")
    manifest = read_manifest(tmp_path / "out" / "two.tflite")
    assert Task.from_json(manifest["task"]) == bound.task and manifest["quantize"] == "none"
    runner = Interpreter(str(tmp_path / "out" / "two.tflite")).get_signature_runner("serving_default")
    for batch in (pixels, pixels[:1]):
        np.testing.assert_allclose(runner(images=batch)["logits"], in_memory(bound, batch), atol=1e-4)


@pytest.mark.slow
def test_a_saved_model_of_three_mobilenets_has_at_most_10_megabytes(mobilenets, tmp_path):
    export("signatures", mobilenets, tmp_path / "out")
    assert size(tmp_path / "out") <= 10e6
    assert max(check("signatures", mobilenets, tmp_path / "out").values()) <= 1e-4


@pytest.mark.parametrize(
    ("policy", "forms"),
    [
        ("mixed_float16", ("litert",)),
        ("mixed_bfloat16", ()),
        ("float16", ("litert",)),
        pytest.param("bfloat16", ("signatures", "litert_set", "bank"), marks=pytest.mark.slow),
    ],
)
def test_tasks_of_half_precision_are_exported_and_folded_in_float32(policy, forms, tmp_path):
    with dtype_policy(policy):
        trunk = Trunk(small_net(), "half", Preprocessing(SIZE, "tf"))
        tasks = [bind(trunk, Task(name, ("x", "y"), trunk.preprocessing)) for name in "ab"]
    assert {layer.compute_dtype for layer in trunk.layers().values()} == {policy.removeprefix("mixed_")}
    assert (
        tasks[0].in_float32().trunk is tasks[1].in_float32().trunk and tasks[0].in_float32().model is not tasks[0].model
    )
    assert fold(tasks[0]).difference < 1e-4
    for form in forms:
        export(form, tasks, tmp_path / form)
        assert max(check(form, tasks, tmp_path / form).values()) < 1e-4
