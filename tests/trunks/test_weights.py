import keras
import numpy as np
import pytest
import safetensors.numpy

from model_patch import ModelPatchError, Preprocessing, Trunk
from model_patch.errors import mismatches
from model_patch.trunks.weights import load_weights, save_weights
from tests.conftest import SIZE, same, small_net, snapshot


def _trunk(seed: int) -> Trunk:
    return Trunk(small_net(seed), "small", Preprocessing(SIZE, "tf"))


def test_weights_come_back_to_the_last_bit(tmp_path, images):
    saved, other = _trunk(0), _trunk(1)
    assert not same(snapshot(saved.variables()), snapshot(other.variables()))
    save_weights(saved, tmp_path / "trunk.safetensors")
    load_weights(other, tmp_path / "trunk.safetensors")
    assert same(snapshot(saved.variables()), snapshot(other.variables()))
    assert np.array_equal(saved.model(images), other.model(images))
    assert [file.name for file in tmp_path.iterdir()] == ["trunk.safetensors"], "no temporary file stays"


def test_a_net_that_normalises_its_images_computes_with_what_was_loaded(tmp_path, images):
    def normalising():
        image = keras.Input((SIZE, SIZE, 3))
        net = keras.Model(image, keras.layers.Normalization(name="scale")(image))
        return Trunk(net, "normalising", Preprocessing(SIZE, "none"))

    saved, other = normalising(), normalising()
    saved.model.layers[1].load_own_variables({"0": np.ones(3), "1": np.full(3, 4.0), "2": 0})
    save_weights(saved, tmp_path / "trunk.safetensors")
    load_weights(other, tmp_path / "trunk.safetensors")
    assert np.array_equal(other.model(images), (images - 1) / 2)


def test_the_files_keys_are_those_of_the_trunk(tmp_path):
    trunk = _trunk(0)
    save_weights(trunk, tmp_path / "trunk.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "trunk.safetensors").keys() == trunk.variables().keys()


def test_weights_that_do_not_fit_are_all_named_and_nothing_is_changed(tmp_path):
    trunk = _trunk(0)
    values = {key: value + 1 for key, value in snapshot(trunk.variables()).items()}
    del values["stem/kernel"]
    values["stem/bias"] = np.zeros(8, "float32")
    values["stem_bn/gamma"] = np.zeros(9, "float32")
    safetensors.numpy.save_file(values, tmp_path / "other.safetensors")
    before = snapshot(trunk.variables())
    message = (
        r"other.safetensors do not fit small: missing: stem/kernel; unexpected: stem/bias; "
        r"of another shape: stem_bn/gamma \(9,\) instead of \(8,\)"
    )
    with pytest.raises(ModelPatchError, match=message):
        load_weights(trunk, tmp_path / "other.safetensors")
    assert same(before, snapshot(trunk.variables()))


def test_a_missing_file_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(ModelPatchError, match=r"nowhere.safetensors cannot be read: .*[Nn]o such file"):
        load_weights(_trunk(0), tmp_path / "nowhere.safetensors")
    save_weights(_trunk(0), tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:1500])
    with pytest.raises(ModelPatchError, match=r"half.safetensors is damaged, or is not a safetensors file"):
        load_weights(_trunk(0), tmp_path / "half.safetensors")


def test_long_lists_of_mismatches_are_cut():
    shapes = {f"layer_{i:02}/kernel": (i,) for i in range(12)}
    assert mismatches(shapes, shapes) == ""
    assert mismatches(shapes, {}, most=2) == "missing: layer_00/kernel, layer_01/kernel and 10 more"
