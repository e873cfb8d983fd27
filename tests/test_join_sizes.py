"""Joined tasks of several image sizes: one trunk, built at each of them."""

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.join import join, share_variables
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, same, small_net, snapshot
from tests.test_join import batch, step, tasks


def other_size(trunk, size, seed=3) -> Trunk:
    return Trunk(small_net(seed, size), trunk.name, Preprocessing(size, "tf"))


@pytest.mark.parametrize("share", ["nothing", "trunk", "trunk+patch"])
@pytest.mark.parametrize("train_trunk", [False, True])
def test_tasks_of_other_image_sizes_run_through_the_same_layers(trunk, share, train_trunk):
    sizes = (SIZE, 23, SIZE)
    joined = join([trunk, other_size(trunk, 23)], tasks(sizes), share=share, train_trunk=train_trunk)
    images, labels = batch(sizes)
    assert len(joined.groups) == 2 and list(joined.groups[0].output) == ["two", "five"]
    for name, bound in joined.tasks.items():
        logits = joined.model(images, training=False)[name]
        np.testing.assert_allclose(logits, bound.model(images[name], training=False), rtol=1e-5, atol=1e-6)
    before = snapshot(trunk.variables())
    step(joined, images, labels)
    assert same(before, snapshot(trunk.variables())) == (share == "nothing" or not train_trunk)
    assert same(snapshot(trunk.variables()), snapshot(joined.trunks[23].variables()))
    kernels = [bound.model.get_layer("stem").kernel for bound in joined.tasks.values()]
    assert (kernels[0] is kernels[1]) == (share != "nothing")


def test_one_head_for_all_resolutions_and_one_added_later(trunk):
    labels = ("circle", "square")
    at = [Task(f"{size}px", labels, Preprocessing(size, "tf")) for size in (SIZE, 23)]
    joined = join([trunk, other_size(trunk, 23)], at, share_head=True, train_trunk=True)
    assert joined.tasks[f"{SIZE}px"].head is joined.tasks["23px"].head
    rng = np.random.default_rng(0)
    images = {task.name: rng.normal(size=(4, *[task.preprocessing.image_size] * 2, 3)) for task in at}
    step(joined, images, {task.name: np.arange(4) % 2 for task in at})
    joined.freeze()
    before = snapshot(trunk.variables() | joined.tasks["23px"].head_variables | joined.tasks["23px"].patch_variables)
    added = join(
        [share_variables(trunk, other_size(trunk, 41))],
        [Task("41px", labels, Preprocessing(41, "tf"))],
        "scale_bias",
        head_of=joined.tasks["23px"],
    )
    new = snapshot(added.tasks["41px"].patch_variables)
    step(added, {"41px": rng.normal(size=(4, 41, 41, 3))}, {"41px": np.arange(4) % 2})
    assert not same(new, snapshot(added.tasks["41px"].patch_variables))
    kept = trunk.variables() | joined.tasks["23px"].head_variables | joined.tasks["23px"].patch_variables
    assert same(before, snapshot(kept))


def test_another_net_is_not_the_same_at_another_size(trunk, task):
    other = Trunk(
        keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(4, 3, name="stem")]),
        "o",
        task.preprocessing,
    )
    with pytest.raises(
        ModelPatchError, match="o is another net than test, not one at another size: missing: add|missing"
    ):
        share_variables(trunk, other)


def test_a_net_that_pads_otherwise_at_another_size_predicts_as_when_it_is_opened_at_that_size(tmp_path):
    """MobileNetV2 comes to maps of odd size at 40 px, and not at 48: patches trained at 40 belong to the net as built there."""
    trunks = [open_trunk("bundled", size) for size in (48, 40)]
    both = [Task(f"{size}px", ("a", "b"), Preprocessing(size, "tf")) for size in (48, 40)]
    joined = join(trunks, both, "bias+last")
    images = {
        task.name: np.random.default_rng(0).normal(size=(2, *[n] * 2, 3))
        for task, n in zip(both, (48, 40), strict=True)
    }
    outputs = joined.model(images)
    bound = bind(open_trunk("bundled", 40), both[1], "bias+last")
    bound.load(joined.tasks["40px"].patch())
    np.testing.assert_allclose(outputs["40px"], bound.model(images["40px"]), rtol=1e-4, atol=1e-5)
