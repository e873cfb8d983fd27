import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy

from model_patch import ModelPatchError, Patch, PatchError, Preprocessing, Task, Trunk, bind, bind_patch
from model_patch.patch import METADATA_KEY
from tests.conftest import SIZE, same, small_net, snapshot
from tests.test_patch_fuzz import parts, signed


@pytest.fixture
def bound(trunk, trained):
    """Another task with its values, on a trunk of its own."""
    return bind_patch(trunk, trained.patch())


@pytest.fixture
def file(trained, tmp_path):
    path = tmp_path / "shapes.safetensors"
    trained.patch({"accuracy": 0.5}).save(path)
    return path


@pytest.mark.slow
def test_a_saved_patch_makes_another_process_predict_the_same(trained, file, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    code = """
import sys, numpy as np
from model_patch import Patch, Preprocessing, Trunk, bind_patch
from tests.conftest import small_net
trunk = Trunk(small_net(), "again", Preprocessing(32, "tf"))
x = np.load(sys.argv[1] + "/images.npy")
predictions = np.array(bind_patch(trunk, Patch.load(sys.argv[1] + "/shapes.safetensors")).model(x, training=False))
np.savez(sys.argv[1] + "/predictions.npz", predictions=predictions, trunk=np.array(trunk.model(x, training=False)))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    predictions = np.load(tmp_path / "predictions.npz")
    assert np.array_equal(predictions["predictions"], trained.model(images, training=False))
    assert not np.allclose(predictions["trunk"], trained.features(images, training=False)), "the patch has an effect"


def test_a_saved_patch_makes_the_same_net_opened_again_predict_the_same(trained, file, images):
    again = bind_patch(Trunk(small_net(), "again", trained.trunk.preprocessing), Patch.load(file))
    assert np.array_equal(again.model(images, training=False), trained.model(images, training=False))
    assert not np.allclose(again.trunk.model(images), trained.features(images)), "the patch has an effect"


def test_everything_in_the_file_comes_back(trained, file):
    patch, loaded = trained.patch({"accuracy": 0.5}), Patch.load(file)
    assert same(patch.values, loaded.values)
    assert dataclasses.replace(patch, values={}) == dataclasses.replace(loaded, values={})
    assert loaded.to_bytes() == file.read_bytes(), "save, load, save gives the same file"


def test_keys_are_layer_path_and_variable_name_and_the_heads_have_no_slash(file):
    values = Patch.load(file).values
    assert values["separable_bn/moving_variance"].shape == (12,)
    assert {key for key in values if "/" not in key} == {"head.kernel", "head.bias"}


def test_a_patch_can_be_taken_up_under_another_task_name(trunk, file, images, trained):
    patch = Patch.load(file)
    renamed = dataclasses.replace(patch, task=dataclasses.replace(patch.task, name="sh"))
    assert np.array_equal(bind_patch(trunk, renamed).model(images), trained.model(images, training=False))


def test_float16_halves_the_file_and_stays_close(trained, file, trunk, images, tmp_path):
    half = tmp_path / "half.safetensors"
    trained.patch().save(half, "float16")
    num_values = sum(value.size for value in trained.patch().values.values())
    assert file.stat().st_size - half.stat().st_size >= 2 * num_values
    loaded = bind_patch(trunk, Patch.load(half))
    np.testing.assert_allclose(loaded.model(images), trained.model(images, training=False), rtol=0.05, atol=0.05)


def test_values_that_float16_cannot_hold_stay_float32(bound, tmp_path):
    patch = bound.patch()
    patch.values["stem_bn/moving_variance"][:] = [1e-9, *np.linspace(1e5, 1e6, 7)]
    patch.save(tmp_path / "wide.safetensors", "float16")
    assert np.array_equal(
        Patch.load(tmp_path / "wide.safetensors").values["stem_bn/moving_variance"],
        patch.values["stem_bn/moving_variance"],
    )


def test_a_float16_scale_bias_patch_of_mobilenet_v2_is_under_150_kb():
    model = keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(96, 96, 3))
    trunk = Trunk(model, "keras:MobileNetV2", Preprocessing(96, "tf"))
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last")
    head_bytes = 2 * bound.counts().head
    assert sum(v.size for key, v in bound.patch().values.items() if "/" in key) == 2 * 34_112
    assert len(bound.patch().to_bytes("float16")) - head_bytes < 150_000


def test_switching_to_a_patch_and_back_restores_the_predictions_to_the_last_bit(trunk, task, bound, images):
    one, two = bound.patch(), bind(trunk, task, "scale_bias+last", seed=9).patch()
    predictions = np.array(bound.model(images, training=False))
    bound.load(two)
    assert not np.allclose(predictions, bound.model(images, training=False))
    bound.load(one)
    assert np.array_equal(predictions, bound.model(images, training=False))


def _unchanged(bound, patch, message):
    before = snapshot(bound.patch_variables | bound.head_variables)
    with pytest.raises(PatchError, match=message):
        bound.load(patch)
    assert same(before, snapshot(bound.patch_variables | bound.head_variables)), "nothing is changed on failure"


def _with(patch, **values):
    merged = {k: v for k, v in {**patch.values, **values}.items() if v is not None}
    return dataclasses.replace(patch, values=merged)


def test_a_patch_for_another_trunk_is_refused(bound, task):
    other = bind(Trunk(small_net(seed=5), "other", Preprocessing(SIZE, "tf")), task, "scale_bias+last")
    _unchanged(bound, other.patch(), "'shapes' belongs to another trunk: it was made on other with the fingerprint")


def test_one_changed_weight_of_the_trunk_is_enough(bound, trunk):
    patch = bound.patch()
    kernel = trunk.variables()["project/kernel"]
    kernel.assign(np.array(kernel) * (1 + 1e-6))
    with pytest.raises(PatchError, match="belongs to another trunk"):
        bound.load(patch)


def test_what_the_patch_replaces_does_not_enter_the_fingerprint(bound, trunk, file):
    trunk.variables()["depthwise_bn/beta"].assign(np.full(8, 7.0))
    bound.load(Patch.load(file))


def test_missing_unexpected_and_mismatched_keys_are_all_named_in_one_error(bound):
    changed = {"stem_bn/gamma": None, "nowhere/gamma": np.ones(3), "stem_bn/beta": np.ones(7)}
    patch = _with(bound.patch(), **changed)
    message = (
        r"missing: stem_bn/gamma; unexpected: nowhere/gamma; of another shape: stem_bn/beta \(7,\) instead of \(8,\)"
    )
    _unchanged(bound, patch, message)


def test_a_head_for_other_classes_is_refused(bound):
    _unchanged(bound, _with(bound.patch(), **{"head.bias": np.zeros(4)}), r"head.bias \(4,\) instead of \(3,\)")


def test_a_patch_of_another_kind_is_refused(bound, trunk, task):
    _unchanged(
        bound,
        bind(trunk, task, "depthwise+last").patch(),
        r"depthwise.last, made on test. does not fit scale_bias.last",
    )


def test_a_file_cut_short_anywhere_is_refused(file, tmp_path):
    contents, cut = file.read_bytes(), tmp_path / "cut.safetensors"
    for length in (0, 4, 100, len(contents) // 2, len(contents) - 1):
        cut.write_bytes(contents[:length])
        with pytest.raises(PatchError, match=str(cut)):
            Patch.load(cut)


def test_a_flipped_bit_in_the_values_is_noticed(file):
    contents = bytearray(file.read_bytes())
    contents[-5] ^= 1
    file.write_bytes(contents)
    with pytest.raises(PatchError, match="its contents do not match its checksum"):
        Patch.load(file)


def test_files_that_are_no_patches_are_refused(tmp_path):
    with pytest.raises(PatchError, match="nowhere.safetensors cannot be read"):
        Patch.load(tmp_path / "nowhere.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.ones(3)}, foreign)
    with pytest.raises(PatchError, match="is a safetensors file but not a patch"):
        Patch.load(foreign)
    foreign.write_text("hello")
    with pytest.raises(PatchError, match="is damaged, or is not a patch file"):
        Patch.load(foreign)
    with pytest.raises(PatchError, match=f"{tmp_path} cannot be read"):
        Patch.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"task": None}, {"train": "magic"}, {"metrics": 3}, {"fingerprint": None, "task": {}}]
)
def test_a_manifest_that_was_not_written_by_us_is_refused(file, change):
    manifest, tensors = parts(file.read_bytes())
    file.write_bytes(signed(manifest | change, tensors))
    with pytest.raises(PatchError, match="the manifest of .* is not one that model_patch wrote"):
        Patch.load(file)


def test_a_newer_format_is_refused_with_both_versions(file):
    with safetensors.safe_open(file, "numpy") as opened:
        manifest = json.loads(opened.metadata()[METADATA_KEY]) | {"format_version": 99}
    safetensors.numpy.save_file({"x": np.ones(1)}, file, {METADATA_KEY: json.dumps(manifest)})
    with pytest.raises(PatchError, match="has format version 99: this version of model_patch reads 1 and 2"):
        Patch.load(file)


def test_nan_is_neither_saved_nor_left_behind(bound, tmp_path):
    patch = _with(bound.patch(), **{"stem_bn/beta": np.full(8, np.nan)})
    with pytest.raises(ModelPatchError, match="stem_bn/beta holds NaN or infinity"):
        patch.save(tmp_path / "nan.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_unknown_dtypes_are_refused(bound, tmp_path):
    with pytest.raises(ModelPatchError, match="cannot hold int8: expected float32 or float16"):
        bound.patch().save(tmp_path / "p", "int8")


def test_a_folder_that_cannot_be_written_is_named(bound, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelPatchError, match="file/p.safetensors cannot be written"):
        bound.patch().save(tmp_path / "file" / "p.safetensors")
