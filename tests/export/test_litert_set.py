"""A net for LiteRT that all tasks share, and a vector of values for each task."""

import hashlib
import json

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from safetensors import safe_open
from safetensors.numpy import load_file

from model_patch import Task
from model_patch.export import check, export
from model_patch.export.litert_file import read_manifest
from tests.conftest import SIZE
from tests.export.conftest import in_memory, size


def test_one_litert_file_predicts_for_every_task_in_turn(tasks, pixels, written):
    runner = Interpreter(str(written("litert_set") / "net.tflite")).get_signature_runner("serving_default")
    for bound in [*tasks, *tasks[::-1]]:
        predictions = runner(images=pixels, **load_file(written("litert_set") / f"{bound.task.name}.safetensors"))
        expected, classes = in_memory(bound, pixels), len(bound.task.labels)
        np.testing.assert_allclose(predictions["logits"][:, :classes], expected, atol=1e-5)
        np.testing.assert_allclose(predictions["probabilities"][:, :classes], tf.nn.softmax(expected), atol=1e-5)
        assert (predictions["probabilities"][:, classes:] == 0).all()
    with pytest.raises(ValueError, match="expected 2 vs provided 1"):  # Without a task's vector there is no prediction.
        runner(images=pixels)


def test_a_litert_set_says_what_stands_where_and_which_net_a_vector_belongs_to(tasks, written):
    net = written("litert_set") / "net.tflite"
    manifest = read_manifest(net)
    slots = {slot["key"]: slot for slot in manifest["slots"]}
    assert manifest["num_classes"] == 10 and manifest["input"]["shape"] == ["batch", SIZE, SIZE, 3]
    assert {"stem_bn/scale", "stem_bn/bias", "depthwise/depthwise_kernel", "head/kernel"} <= slots.keys()
    with safe_open(net.with_name(f"{tasks[1].task.name}.safetensors"), "numpy") as file:
        metadata, vector = json.loads(file.metadata()["model_patch"]), file.get_tensor("vector")
    assert vector.shape == (manifest["num_values"],)
    assert metadata["net"] == hashlib.sha256(net.read_bytes()).hexdigest()
    assert Task.from_json(metadata["task"]) == tasks[1].task
    slot = slots["depthwise/depthwise_kernel"]
    kernel = vector[slot["offset"] :][: np.prod(slot["shape"])].reshape(slot["shape"])
    np.testing.assert_array_equal(kernel, tasks[1].patch_variables["depthwise/depthwise_kernel"])


def test_a_task_that_fits_the_slots_of_a_litert_set_is_added_without_a_new_net(tasks, written, tmp_path):
    export("litert_set", tasks[:2], tmp_path / "first")
    for file in ("net.tflite", *(f"{bound.task.name}.safetensors" for bound in tasks[:2])):
        assert (tmp_path / "first" / file).read_bytes() == (written("litert_set") / file).read_bytes()
    export("litert_set", tasks[1:], tmp_path / "narrower")  # Without the task whose head was the widest.
    assert (tmp_path / "narrower" / "net.tflite").read_bytes() != (tmp_path / "first" / "net.tflite").read_bytes()


@pytest.mark.slow
def test_a_litert_set_of_three_mobilenets_is_hardly_larger_than_one_of_them(mobilenets, tmp_path):
    for quantize, most, difference in (("none", 1.1, 1e-4), ("dynamic", 1.25, 0.1)):
        one, all_three = (tmp_path / f"{format}_{quantize}" for format in ("litert", "litert_set"))
        export("litert", mobilenets[:1], one, quantize)
        export("litert_set", mobilenets, all_three, quantize)
        # Not only the net: the vectors of all three tasks, too, which stay float32.
        assert size(all_three) <= most * size(one)
        assert max(check("litert_set", mobilenets, all_three, quantize).values()) <= difference
        assert check("litert", mobilenets[:1], one, quantize)["encoded"] <= difference
    nets = [(tmp_path / f"litert_set_{quantize}" / "net.tflite").stat().st_size for quantize in ("none", "dynamic")]
    assert nets[1] < 0.35 * nets[0]
    vectors = [load_file(path)["vector"] for path in sorted(tmp_path.glob("litert_set_*/encoded.safetensors"))]
    assert np.array_equal(*vectors)
