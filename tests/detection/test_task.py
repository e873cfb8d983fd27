import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError, Patch, Preprocessing, Task, Trunk, bind, bind_patch
from model_patch.detection.task import DetectionTask, feature_layers
from model_patch.export import check, export
from model_patch.training.statistics import estimate_statistics
from tests.conftest import same, small_net, snapshot
from tests.conftest import train_steps as train_classifier
from tests.detection.conftest import SIZE, train_steps


@pytest.mark.parametrize(("size", "grids", "boxes"), [(300, (19, 10), 1917), (320, (20, 10), 2034)])
def test_mobilenet_v2_is_tapped_where_ssdlite_taps_it(size, grids, boxes):
    """The numbers of boxes are those of the Object Detection API's ssdlite_mobilenet_v2 at 300 and at 320 px."""
    net = keras.applications.MobileNetV2(alpha=0.35, weights=None, include_top=False, input_shape=(size, size, 3))
    trunk = Trunk(net, "test", Preprocessing(size, "tf"))
    assert feature_layers(trunk) == ("block_13_expand_relu", "out_relu")
    assert feature_layers(trunk, 3)[0] == "block_6_expand_relu"
    task = DetectionTask.on(trunk, "coco", [str(i) for i in range(80)], width=0.35)
    assert task.default_boxes.grids == (*grids, 5, 3, 2, 1) and task.extra_channels == (179, 90, 90, 45)
    assert bind(trunk, task, "last").model.output.shape == (None, boxes, 4 + 81)


def test_maps_end_at_one_cell_and_layers_can_be_named(trunk, task):
    assert task.layers == ("add", "project") and task.default_boxes.grids == (31, 15, 8)
    named = DetectionTask.on(trunk, "one", ("thing",), layers=("project",))
    assert named.default_boxes.grids == (15, 8, 4, 2, 1), "behind one map of the trunk there are four others"


def test_it_is_written_to_json_and_back(task):
    again = Task.from_json(json.loads(json.dumps(task.to_json())))
    assert again == task and isinstance(again, DetectionTask)


def test_what_cannot_be_detected_on_is_refused(trunk, task):
    with pytest.raises(ModelPatchError, match="'small' has no layer 'ad': did you mean add?"):
        DetectionTask.on(trunk, "a", ("x",), layers=("ad",))
    with pytest.raises(ModelPatchError, match="the layer pool of test gives .None, 16.: expected a square feature map"):
        DetectionTask.on(trunk, "a", ("x",), layers=("pool",))
    with pytest.raises(ModelPatchError, match="name finer maps first"):
        DetectionTask.on(trunk, "a", ("x",), layers=("project", "add"))
    with pytest.raises(ModelPatchError, match="test has feature maps of 2 sizes: name the layers to detect on"):
        feature_layers(trunk, 5)
    with pytest.raises(ModelPatchError, match="unknown confidence 'own'"):
        DetectionTask.on(trunk, "a", ("x",), confidence="own")
    with pytest.raises(ModelPatchError, match="'a' has 0 class: expected at least 1"):
        DetectionTask.on(trunk, "a", ())


@pytest.mark.parametrize("train", ["last", "scale_bias+last", "depthwise+last"])
def test_a_patch_trains_in_its_slots_and_the_head_and_nowhere_else(trunk, task, images, boxes, train):
    bound = bind(trunk, task, train)
    before, owned = snapshot(trunk.variables()), snapshot(bound.patch_variables | bound.head_variables)
    losses = train_steps(bound, images, boxes)
    assert losses[-1] < losses[0]
    assert same(before, snapshot(trunk.variables())), "the trunk is frozen to the last bit"
    after = snapshot(bound.patch_variables | bound.head_variables)
    learnt = {key for key, v in (bound.patch_variables | bound.head_variables).items() if v.trainable}
    assert all(not np.array_equal(owned[key], after[key]) for key in learnt)


def test_the_heads_statistics_are_re_estimated_where_the_trunks_are_not(trunk, task, images, boxes):
    bound = bind(trunk, task, "scale_bias+last")
    before, owned = snapshot(trunk.variables()), snapshot(bound.head_variables)
    estimate_statistics(bound, [(images, boxes)])
    after = snapshot(bound.head_variables)
    moved = {key for key in owned if not np.array_equal(owned[key], after[key])}
    assert moved == {key for key in owned if key.endswith(("moving_mean", "moving_variance"))}
    assert same(before, snapshot(trunk.variables()))
    at_rest, in_training = (np.array(bound.model(images, training=mode)) for mode in (False, True))
    np.testing.assert_allclose(at_rest, in_training, atol=1e-3)


def test_under_the_focal_loss_every_class_begins_unlikely(trunk, images):
    task = DetectionTask.on(trunk, "shapes", ("a", "b"), num_maps=3, width=0.1, confidence="focal")
    outputs = bind(trunk, task, "last").model(images, training=False)
    assert outputs.shape[-1] == 4 + 2, "no background"
    np.testing.assert_allclose(keras.ops.sigmoid(outputs[..., 4:]), 0.01, rtol=0.5)


@pytest.mark.slow
def test_a_saved_detector_predicts_the_same_in_another_process(trunk, task, images, boxes, tmp_path):
    bound = bind(trunk, task, "scale_bias+last")
    train_steps(bound, images, boxes)
    bound.patch({"mAP": 0.5}).save(tmp_path / "detector.safetensors")
    np.save(tmp_path / "images.npy", images)
    code = """
import sys, numpy as np
from model_patch import Patch, Preprocessing, Trunk, bind_patch
from tests.conftest import small_net
trunk = Trunk(small_net(size=64), "again", Preprocessing(64, "tf"))
bound = bind_patch(trunk, Patch.load(sys.argv[1] + "/detector.safetensors"))
np.save(sys.argv[1] + "/predictions.npy", bound.model(np.load(sys.argv[1] + "/images.npy"), training=False))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert np.array_equal(np.load(tmp_path / "predictions.npy"), bound.model(images, training=False))
    keys = Patch.load(tmp_path / "detector.safetensors").values
    assert "head.extra_0.squeeze.kernel" in keys and not [key for key in keys if "head" in key and "/" in key]


@pytest.mark.slow
def test_a_detector_and_a_classifier_are_two_patches_on_one_frozen_trunk_and_both_are_exported(
    trunk, task, images, boxes, tmp_path
):
    before = snapshot(trunk.variables())
    detector = bind(trunk, task, "scale_bias+last")
    train_steps(detector, images, boxes)
    classifier = bind(trunk, Task("kinds", ("a", "b"), trunk.preprocessing), "scale_bias+last")
    train_classifier(classifier, images, np.arange(6) % 2)
    assert same(before, snapshot(trunk.variables()))
    for bound in (detector, classifier):
        # Out of its file, on the trunk opened again.
        bound.patch().save(tmp_path / "patch.safetensors")
        again = Trunk(small_net(size=SIZE), "again", Preprocessing(SIZE, "tf"))
        loaded = bind_patch(again, Patch.load(tmp_path / "patch.safetensors"))
        folder = tmp_path / bound.task.name
        export("saved_model", [loaded], folder)
        # In a process without this package, against the task that was trained.
        assert check("saved_model", [bound], folder)[bound.task.name] <= 1e-4
    predictions = detector.task.predictions(detector.model(images, training=False))
    assert predictions["boxes"].shape == (6, 100, 4) and predictions["labels"].dtype == tf.string


def test_a_bound_detector_is_a_plain_keras_model(trunk, task, images, boxes, tmp_path):
    bound = bind(trunk, task, "scale_bias+last")
    train_steps(bound, images, boxes, steps=1)
    expected = bound.model(images, training=False)
    for file in ("detector.keras", "detector.h5"):
        bound.model.save(tmp_path / file)
        np.testing.assert_allclose(keras.models.load_model(tmp_path / file)(images), expected, atol=1e-5)


def nested_net(number: int) -> keras.Model:
    """A scaled image, then a backbone nested so deep, with a shared ReLU."""
    image = x = keras.Input((SIZE, SIZE, 3))
    relu = keras.layers.ReLU(name="relu")
    for filters in (8, 12, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", name=f"conv{filters}")(x)
        x = relu(keras.layers.BatchNormalization(name=f"bn{filters}")(x))
    net = keras.Model(image, x, name="inner")
    for depth in range(number):
        image = keras.Input((SIZE, SIZE, 3))
        net = keras.Model(image, net(keras.layers.Rescaling(1 / 255, name="scale")(image)), name=f"outer{depth}")
    return net


@pytest.mark.parametrize("number", [0, 2])
def test_maps_are_found_inside_nested_graphs_and_shared_layers_passed_over(number, images, boxes, tmp_path):
    trunk = Trunk(nested_net(number), "nested", Preprocessing(SIZE, "none"))
    prefix = ["", "inner/", "outer0/inner/"][number]
    task = DetectionTask.on(trunk, "d", ("x", "y", "z"), num_maps=3, width=0.1)
    assert task.layers == (f"{prefix}bn12", f"{prefix}bn16") and task.default_boxes.grids[:2] == (16, 8)
    bound = bind(trunk, task)
    plain = nested_net(0)
    plain.set_weights(trunk.model.get_weights())
    expected = keras.Model(plain.input, [plain.get_layer(name).output for name in ("bn12", "bn16")])
    for given, one in zip(bound.features(images), expected(images / 255**number), strict=True):
        np.testing.assert_allclose(given, one, atol=1e-5)
    losses = train_steps(bound, images, boxes)
    assert losses[-1] < losses[0] and {key.rpartition("/")[0] for key in bound.patch_variables} == {
        f"{prefix}bn{filters}" for filters in (8, 12, 16)
    }
    bound.patch().save(tmp_path / "d.safetensors")
    again = bind_patch(trunk, Patch.load(tmp_path / "d.safetensors"))
    np.testing.assert_allclose(again.model(images), bound.model(images), atol=1e-6)


def test_an_image_that_was_only_scaled_is_no_map_and_a_graph_used_twice_has_none(images):
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(keras.layers.AveragePooling2D(2)(image))
    one = keras.Model(image, keras.layers.Conv2D(8, 16, strides=16)(x))
    with pytest.raises(ModelPatchError, match="trunk one has feature maps of 1 sizes"):
        feature_layers(Trunk(one, "one", Preprocessing(SIZE, "none")))
    inner = nested_net(0)
    twice = keras.Model(image, keras.layers.Conv2D(4, 1)(keras.layers.Add()([inner(image), inner(-image)])))
    trunk = Trunk(twice, "twice", Preprocessing(SIZE, "none"))
    with pytest.raises(ModelPatchError, match="trunk twice has feature maps of 1 sizes"):
        feature_layers(trunk)
    with pytest.raises(ModelPatchError, match="the layer 'inner' of .* has 2 outputs: take one that is used once"):
        bind(trunk, DetectionTask.on(trunk, "d", ("x",), layers=("inner/bn12",)))
