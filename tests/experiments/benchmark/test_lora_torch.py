"""Low-rank adapters of PEFT, where it is installed."""

import importlib.util

import numpy as np
import pytest

from model_patch import Preprocessing, Recipe, Task, Trunk, bind, open_data
from model_patch.experiments.benchmark import lora_torch
from model_patch.experiments.benchmark.torch_nets import import_torch
from model_patch.experiments.converted_nets import dinov2_small
from tests.conftest import small_net
from tests.experiments.dinov2_file import write_dinov2

SIZE = 28


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    if not importlib.util.find_spec("peft"):  # To import it before `import_torch` ends the process.
        pytest.skip("PEFT is optional: pip install model_patch[torch]")
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    write_dinov2(path, blocks=2)
    return Trunk(dinov2_small(path, SIZE, blocks=2), "dinov2", Preprocessing(SIZE, "torch"))


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 3)).astype("float32")


def test_other_nets_are_not_run_and_the_reason_is_given():
    assert lora_torch.why_not(Trunk(small_net(), "small", Preprocessing(32, "tf")))


def test_the_net_and_its_adapters_begin_as_the_trunk(trunk, images):
    torch, _ = import_torch()
    assert lora_torch.why_not(trunk) is None
    expected = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "last").features(images)
    net = lora_torch.adapted(trunk, size=2 * 3 * (64 + 64) + 10)
    assert lora_torch.num_parameters(net) == 2 * 3 * (64 + 64)
    for each in (lora_torch.transformer(trunk.model), net):
        with torch.no_grad():
            np.testing.assert_allclose(each(torch.tensor(images)), expected, atol=1e-4)


def test_adapters_and_last_layer_are_trained(trunk, images):
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.01, max_train_images=64, max_test_images=64)
    data = open_data("digits")
    assert 0.2 < lora_torch.train(trunk, data, recipe, 256, seed=0) <= 1.0
    steps = lora_torch.step_forms(trunk, 256, images, np.array([0, 1, 0]), classes=2)
    assert all(step() > step() for step in steps.values())  # The loss.


def test_a_batch_of_as_many_tasks_as_images_runs(trunk, images):
    forms = lora_torch.batch_forms(trunk, 256, images, classes=2)
    assert all(tuple(predict().shape) == (3, 2) for predict in forms.values())
