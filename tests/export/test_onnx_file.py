import json
import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from model_patch import Preprocessing, Task, Trunk, bind
from model_patch.export.onnx_file import export
from model_patch.export.saved_model import export_saved_model
from tests.conftest import SIZE, small_net


@pytest.fixture
def bound():
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "caffe"))
    return bind(trunk, Task("two words", ("a", "b", "c"), trunk.preprocessing), "scale_bias+last", seed=1)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).uniform(0, 255, (3, SIZE, SIZE, 3)).astype("float32")


def test_a_file_predicts_as_the_task_and_describes_itself(bound, pixels, tmp_path):
    export([bound], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "two words.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["logits", "probabilities"]
    assert session.get_inputs()[0].shape == ["batch", SIZE, SIZE, 3]
    expected = np.asarray(bound.model(bound.task.preprocessing.scale(pixels)))
    for number in (1, 3):
        logits, probabilities = session.run(None, {"images": pixels[:number]})
        np.testing.assert_allclose(logits, expected[:number], atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (metadata["labels"], metadata["image_size"]) == (["a", "b", "c"], SIZE)
    assert Task.from_json(metadata["model_patch"]["task"]) == bound.task
    onnx.checker.check_model(onnx.load(tmp_path / "two words.onnx"))


def test_tensors_that_layers_hold_are_constants_in_the_file(pixels, tmp_path):
    layers = keras.layers
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Normalization(mean=[10.0, 20.0, 30.0], variance=[4.0, 9.0, 16.0])(image)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    net = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    bound = bind(
        Trunk(net, "test", Preprocessing(SIZE, "none")), Task("words", ("a", "b"), Preprocessing(SIZE, "none"))
    )
    export([bound], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "words.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["images"]
    logits, _ = session.run(None, {"images": pixels})
    np.testing.assert_allclose(logits, np.asarray(bound.model(pixels)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_tf2onnx_converts_the_resized_signature_of_a_saved_model(bound, pixels, tmp_path):
    export_saved_model(bound, tmp_path / "saved_model")
    assert set(tf.saved_model.load(tmp_path / "saved_model").signatures) == {"serving_default", "encoded", "resized"}
    command = [
        sys.executable,
        "-m",
        "tf2onnx.convert",
        "--signature_def",
        "resized",
        "--output",
        tmp_path / "task.onnx",
    ]
    subprocess.run([*command, "--saved-model", tmp_path / "saved_model"], check=True, capture_output=True)
    session = onnxruntime.InferenceSession(tmp_path / "task.onnx", providers=["CPUExecutionProvider"])
    outputs = dict(
        zip([each.name for each in session.get_outputs()], session.run(None, {"images": pixels}), strict=True)
    )
    expected = np.asarray(bound.model(bound.task.preprocessing.scale(pixels)))
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)


@pytest.mark.slow
def test_openvino_reads_onnx_files_and_the_resized_signature_of_a_saved_model(bound, pixels, tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO")
    export([bound], tmp_path)
    export_saved_model(bound, tmp_path / "saved_model")
    expected = np.asarray(bound.model(bound.task.preprocessing.scale(pixels)))
    saved = tf.saved_model.load(tmp_path / "saved_model")
    models = [
        openvino.Core().read_model(tmp_path / "two words.onnx"),
        openvino.convert_model(saved.signatures["resized"]),
    ]
    for model in models:
        # On some CPUs it computes in bfloat16 by default.
        outputs = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"images": pixels})
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
        np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(expected), atol=1e-5)
