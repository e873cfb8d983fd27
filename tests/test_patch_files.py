import dataclasses

import numpy as np
import pytest

from model_patch import ModelPatchError, Patch, PatchError, Preprocessing, Task, Trunk, bind, bind_patch, patch_files
from model_patch.detection.task import DetectionTask
from model_patch.trunks.weights import save_weights
from tests.conftest import SIZE, same, small_net, train_steps


@pytest.fixture(scope="module")
def patches():
    """Two patches of one task on the trunk of `conftest`, learnt on different images with their own statistics."""
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    task = Task("shapes", ("circle", "square", "star"), trunk.preprocessing)
    images = np.random.default_rng(1).uniform(-1, 1, (12, SIZE, SIZE, 3)).astype("float32")
    made = []
    for part in (slice(0, 5), slice(5, 12)):
        bound = bind(trunk, task, "statistics+scale_bias+last", seed=3)
        train_steps(bound, images[part], np.arange(12)[part] % 3)
        made.append(bound.patch({"accuracy": 0.5}))
    return made


def test_read_says_what_the_file_holds(patches, tmp_path):
    patches[0].save(tmp_path / "p.safetensors", "float16")
    file = patch_files.read(tmp_path / "p.safetensors")
    assert file.num_bytes == (tmp_path / "p.safetensors").stat().st_size and len(file.sha256) == 64
    num_values = sum(value.size for value in patches[0].values.values())
    assert sum(file.dtypes.values()) == num_values and file.dtypes["float16"] > num_values / 2


def test_a_folder_is_searched_and_only_damaged_patches_are_named(patches, trunk, tmp_path):
    (tmp_path / "below").mkdir()
    patches[0].save(tmp_path / "below" / "b.safetensors")
    patches[1].save(tmp_path / "a.safetensors")
    save_weights(trunk, tmp_path / "trunk.safetensors")
    (tmp_path / "notes.txt").write_text("")
    found, damaged = patch_files.find(tmp_path)
    assert [file.path.name for file in found] == ["a.safetensors", "b.safetensors"] and not damaged
    cut = tmp_path / "a.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])
    found, (sentence,) = patch_files.find(tmp_path)
    assert [file.path.name for file in found] == ["b.safetensors"] and "a.safetensors is damaged" in sentence
    with pytest.raises(PatchError, match="trunk.safetensors is a safetensors file but not a patch"):
        patch_files.find(tmp_path / "trunk.safetensors")


def test_variables_are_summarised_by_name(patches):
    lines = {line.name: line for line in patch_files.summarise(patches[0])}
    gammas = [value for key, value in patches[0].values.items() if key.endswith("/gamma")]
    assert (lines["gamma"].num_slots, lines["gamma"].num_values) == (3, 8 + 8 + 12)
    assert lines["gamma"].high == max(gamma.max() for gamma in gammas)
    assert sum(line.num_values for line in lines.values()) == sum(v.size for v in patches[0].values.values())


def test_verify_opens_the_trunk_and_compares_every_frozen_weight(tmp_path):
    small_net().save(tmp_path / "trunk.keras")
    small_net(seed=1).save(tmp_path / "other.keras")
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    patch = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last").patch()
    patch.save(tmp_path / "p.safetensors")
    file, of_trunk = patch_files.verify(f"file:{tmp_path}/trunk.keras", tmp_path / "p.safetensors")
    assert of_trunk not in (file.patch.fingerprint, file.sha256)
    assert file.patch.fingerprint == patch.fingerprint
    with pytest.raises(PatchError, match="'two' belongs to another trunk"):
        patch_files.verify(f"file:{tmp_path}/other.keras", tmp_path / "p.safetensors")


def test_a_patch_does_not_differ_from_itself(patches):
    notes, differences = patch_files.diff(patches[0], patches[0])
    assert not notes and all(d.num_different == d.largest == d.rms == d.relative == 0 for d in differences)


def test_differences_are_counted_measured_and_located(patches):
    values = {key: value.copy() for key, value in patches[0].values.items()}
    values["depthwise_bn/gamma"][2] += 3.0
    values["stem_bn/gamma"][1] -= 1.0
    del values["head.bias"]
    other = dataclasses.replace(patches[0], values=values, task=dataclasses.replace(patches[0].task, name="other"))
    notes, differences = patch_files.diff(patches[0], other)
    assert notes == ["task: shapes | other", "variables of the second against the first: missing: head.bias"]
    gamma = next(d for d in differences if d.name == "gamma")
    assert (gamma.num_values, gamma.num_different, gamma.key) == (28, 2, "depthwise_bn/gamma")
    assert gamma.largest == pytest.approx(3.0) and gamma.rms == pytest.approx(np.sqrt(10 / 28))
    squares = [np.sum(v**2) for k, v in patches[0].values.items() if k.endswith("/gamma")]
    assert gamma.relative == pytest.approx(np.sqrt(10 / sum(squares)))


def test_an_average_has_the_statistics_of_the_images_of_both(trunk, task):
    """Averaged by numbers of images, batch norm's statistics are those of all images together."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, deviation, (number, 8)) for mean, deviation, number in ((0, 1, 30), (5, 2, 10))]
    patches = []
    for part in parts:
        patch = bind(trunk, task, "scale_bias+last").patch()
        statistics = {"stem_bn/moving_mean": part.mean(0), "stem_bn/moving_variance": part.var(0)}
        patches.append(dataclasses.replace(patch, values=patch.values | statistics))
    averaged = patch_files.average(patches, [30, 10])
    together = np.concatenate(parts)
    np.testing.assert_allclose(averaged.values["stem_bn/moving_mean"], together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(averaged.values["stem_bn/moving_variance"], together.var(0), rtol=1e-5)
    assert (averaged.values["stem_bn/moving_variance"] > 4).all(), "a plain average would stay below"


def test_a_detectors_head_has_statistics_too_and_they_are_averaged_alike():
    trunk = Trunk(small_net(size=64), "test", Preprocessing(64, "tf"))
    patch = bind(trunk, DetectionTask.on(trunk, "shapes", ("a",), num_maps=3, width=0.1), "last").patch()
    key = "head.extra_0.squeeze_bn.moving_"
    other = dataclasses.replace(patch, values=patch.values | {f"{key}mean": patch.values[f"{key}mean"] + 4.0})
    averaged = patch_files.average([patch, other])
    # Two halves with variance 1 and means 4 apart.
    np.testing.assert_allclose(averaged.values[f"{key}variance"], 1.0 + 2.0**2)
    assert "head.moving_variance" in {line.name for line in patch_files.summarise(averaged)}


def test_scales_and_heads_are_plain_averages_and_the_result_is_a_patch(trunk, patches, images):
    averaged = patch_files.average(patches)
    for key in ("stem_bn/gamma", "head.kernel"):
        one, two = (patch.values[key] for patch in patches)
        assert not np.array_equal(one, two)
        np.testing.assert_allclose(averaged.values[key], (one + two) / 2, rtol=1e-5, atol=1e-7)
    assert averaged.metrics == {} and averaged.task == patches[0].task
    assert np.isfinite(bind_patch(trunk, averaged).model(images, training=False)).all()


def test_the_average_of_a_patch_with_itself_is_that_patch(patches):
    assert same(patch_files.average([patches[0]] * 3).values, patches[0].values)


def _with_task(patch, **changes):
    return dataclasses.replace(patch, task=dataclasses.replace(patch.task, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: dataclasses.replace(p, fingerprint="0" * 64),
            "different trunks, by fingerprint: .* and 000000000000",
        ),
        (lambda p: _with_task(p, labels=("circle", "square", "moon")), "different labels"),
        (lambda p: _with_task(p, preprocessing=Preprocessing(48, "tf")), "different preprocessing"),
        (lambda p: dataclasses.replace(p, values={k: v for k, v in p.values.items() if k != "head.bias"}), "head.bias"),
    ],
)
def test_patches_that_do_not_belong_together_are_not_averaged(patches, change, message):
    with pytest.raises(ModelPatchError, match=message):
        patch_files.average([patches[0], change(patches[1])])


def test_patches_of_different_kinds_and_weights_that_do_not_fit_are_refused(trunk, task, patches):
    with pytest.raises(ModelPatchError, match="have different trained kinds: .* and depthwise.last"):
        patch_files.average([patches[0], bind(trunk, task, "depthwise+last").patch()])
    with pytest.raises(ModelPatchError, match="1 patch is given to average: expected at least two"):
        patch_files.average(patches[:1])
    for weights in ([1], [1, -1], [1, float("nan")]):
        with pytest.raises(ModelPatchError, match="do not fit 2 patches: give a positive number for each"):
            patch_files.average(patches, weights)


def test_converting_halves_the_file_and_says_how_far_values_moved(trunk, patches, tmp_path):
    patches[0].save(tmp_path / "p.safetensors")
    old, new, change = patch_files.convert(tmp_path / "p.safetensors", tmp_path / "half.safetensors", "float16")
    assert new.num_bytes < old.num_bytes and 0 < change < 0.1
    for key, value in patches[0].values.items():
        np.testing.assert_allclose(Patch.load(tmp_path / "half.safetensors").values[key], value, rtol=change * 1.001)
    with pytest.raises(ModelPatchError, match="half.safetensors exists: choose another --output"):
        patch_files.convert(tmp_path / "p.safetensors", tmp_path / "half.safetensors", "float32")
    with pytest.raises(ModelPatchError, match="cannot hold int8"):
        patch_files.convert(tmp_path / "p.safetensors", tmp_path / "never.safetensors", "int8")
    assert not (tmp_path / "never.safetensors").exists()
