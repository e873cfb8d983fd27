import re

import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.spec import parse
from model_patch.trunks import bundled, open_trunk
from model_patch.trunks.weights import save_weights
from tests.conftest import same, snapshot


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with weights of the bundled trunk's shape, and a name that would mean something in a spec."""
    folder = tmp_path_factory.mktemp("a+b & 100%41#c")
    save_weights(open_trunk(f"{bundled.NET}&weights=none&seed=3", 32), folder / bundled.WEIGHTS)
    return folder


def test_the_bundled_trunk_has_the_weights_of_its_file(folder):
    trunk = bundled.open_bundled(parse("bundled"), folder=folder)
    assert (trunk.name, trunk.preprocessing.image_size, trunk.preprocessing.mode) == ("bundled", 48, "tf")
    assert trunk.num_parameters() == 410_208
    saved = open_trunk(f"{bundled.NET}&weights=none&seed=3", 32)
    assert same(snapshot(trunk.variables()), snapshot(saved.variables()))


def test_it_takes_another_image_size_with_the_same_weights(folder):
    small, large = (bundled.open_bundled(parse("bundled"), size, folder) for size in (None, 64))
    assert large.preprocessing.image_size == 64 and large.model(np.zeros((1, 64, 64, 3))).shape == (1, 1280)
    assert same(snapshot(small.variables()), snapshot(large.variables()))


@pytest.mark.parametrize("text", ["bundled:small", "bundled?image_size=64", "bundled#Conv1"])
def test_it_takes_nothing_behind_its_name(text):
    with pytest.raises(ModelPatchError, match=re.escape(f"{text!r} has more than a name: write bundled")):
        open_trunk(text)


def test_a_package_without_the_weights_says_where_they_should_be(tmp_path):
    with pytest.raises(
        ModelPatchError, match=f"weights are not at {tmp_path / 'trunk.safetensors'}: install model_patch"
    ):
        bundled.open_bundled(parse("bundled"), folder=tmp_path)
