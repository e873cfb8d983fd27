import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.detection.task import DetectionTask
from model_patch.export.vector_net import vector_net
from tests.conftest import SIZE, small_net

KINDS = ("scale_bias+last", "depthwise+last", "bias+last", "last", "scale_bias+depthwise")


def tasks(trunk, kinds=KINDS):
    """Tasks of different kinds, with 2 and more classes and values of their own."""
    bounds = []
    for i, kind in enumerate(kinds):
        bounds.append(bind(trunk, Task(f"task{i}", tuple("abcdefg"[: i + 2]), trunk.preprocessing), kind, seed=i))
        random = np.random.default_rng(i)
        for variable in bounds[-1].patch_variables.values():
            variable.assign(
                variable * random.uniform(0.7, 1.3, variable.shape) + random.uniform(0, 0.1, variable.shape)
            )
    return bounds


def check(bounds, images):
    net = vector_net(bounds)
    for bound in bounds:
        expected = np.array(bound.model(images, training=False))
        logits = np.array(net.model([images, net.vectors[bound.task.name]], training=False))
        np.testing.assert_allclose(logits[:, : expected.shape[1]], expected, atol=2e-5)
        assert (logits[:, expected.shape[1] :] == -np.inf).all()
    return net


@pytest.mark.parametrize("kinds", [KINDS, *((kind,) for kind in KINDS)], ids="+".join)
def test_a_vector_net_predicts_as_each_task_with_that_tasks_vector(trunk, images, kinds):
    bounds = tasks(trunk, kinds)
    net = check(bounds, images)
    assert {len(vector) for vector in net.vectors.values()} == {net.num_values}
    assert net.num_classes == len(kinds) + 1


def test_a_vector_holds_scale_and_bias_of_each_norm_and_the_head(trunk):
    net = vector_net(tasks(trunk, ("scale_bias+last",) * 2))
    norms = {"stem_bn": 8, "depthwise_bn": 8, "separable_bn": 12}
    expected = [(f"{name}/{v}", (channels,)) for name, channels in norms.items() for v in ("scale", "bias")]
    assert [(slot.key, slot.shape) for slot in net.slots] == [*expected, ("head/kernel", (16, 3)), ("head/bias", (3,))]
    assert [slot.offset for slot in net.slots] == [0, 8, 16, 24, 32, 44, 56, 104]
    # The trunk's kernels are its own objects, not copies.
    ids = {id(v) for v in trunk.variables().values()}
    assert all(id(v) in ids for v in net.constants)


def test_scales_of_convolutions_and_layer_norms_are_slots(images):
    image = keras.Input((SIZE, SIZE, 3))
    plain = keras.layers.Conv2D(5, 3, name="second")(keras.layers.Conv2D(8, 3, activation="relu", name="first")(image))
    check(tasks(Trunk(keras.Model(image, plain), "test", Preprocessing(SIZE, "tf")), KINDS[::3]), images)
    normed = keras.layers.LayerNormalization(name="norm")(keras.layers.Conv2D(4, 3, name="first")(image))
    check(tasks(Trunk(keras.Model(image, normed), "test", Preprocessing(SIZE, "tf")), KINDS[::3]), images)


def test_slots_of_nested_models(images):
    image = keras.Input((SIZE, SIZE, 3))
    trunk = Trunk(keras.Model(image, small_net()(image)), "test", Preprocessing(SIZE, "tf"))
    check(tasks(trunk, KINDS[:2]), images)


def test_what_cannot_share_a_net_is_refused(trunk, task):
    other = Trunk(small_net(size=64), "test", Preprocessing(64, "tf"))
    bound = bind(trunk, task)
    refused = {
        "two tasks are named 'shapes'": [bound, bound],
        r"'shapes' \(32 px\) and 'large' \(64 px\) are not on one trunk": [
            bound,
            bind(other, Task("large", ("a", "b"), other.preprocessing)),
        ],
        "'shapes' is trained full.*shares nothing": [bind(trunk, task, "full")],
        "'boxes' is a detection task": [bind(trunk, DetectionTask.on(trunk, "boxes", ("dot",), layers=("stem_relu",)))],
    }
    for message, bounds in refused.items():
        with pytest.raises(ModelPatchError, match=message):
            vector_net(bounds)
