"""Trunks that give tokens: pooling, slots, and everything that is made of a bound task."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from model_patch import (
    Bank,
    ModelPatchError,
    Patch,
    Preprocessing,
    Task,
    Trunk,
    bind,
    bind_patch,
    fold,
    join,
    open_trunk,
)
from model_patch.export import export
from model_patch.trunks.saving import save_trunk
from tests.backends import tensorflow_only
from tests.conftest import same, snapshot, train_steps
from tests.graph.test_every_layer import predictions
from tests.token_nets import SIZE, small_vit, windowed_vit

PREPROCESSING = Preprocessing(SIZE, "tf")
DIM, DEPTH = 12, 2
LABELS = np.arange(6) % 2


@pytest.fixture(scope="module")
def trunk():
    return Trunk(small_vit(), "vit", PREPROCESSING)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (6, SIZE, SIZE, 3)).astype("float32")


def task(name="two", **options):
    return Task(name, ("a", "b"), PREPROCESSING, **options)


@pytest.mark.parametrize(
    ("prefix", "pooling", "resolved"),
    [(1, "auto", "class"), (0, "auto", "mean"), (1, "mean", "mean"), (2, "class+mean", "class+mean")],
)
def test_a_head_takes_the_tokens_that_the_pooling_names_and_its_patch_says_which(
    images, tmp_path, prefix, pooling, resolved
):
    trunk = Trunk(small_vit(prefix, depth=1), "vit", PREPROCESSING, prefix)
    tokens = np.asarray(trunk.model(images))
    assert tokens.shape == (6, 4 + prefix, DIM)
    parts = {"class": tokens[:, 0], "mean": tokens[:, prefix:].mean(axis=1)}
    bound = bind(trunk, task(pooling=pooling), "last")
    expected = np.concatenate([parts[name] for name in resolved.split("+")], axis=-1)
    np.testing.assert_allclose(bound.features(images), expected, atol=1e-5)
    assert bound.task.pooling == resolved
    bound.patch().save(tmp_path / "patch.safetensors")
    patch = Patch.load(tmp_path / "patch.safetensors")
    assert (patch.task.pooling, patch.task.prefix_tokens) == (resolved, prefix)
    # A trunk that says otherwise of its tokens does not change what the head takes.
    other = Trunk(trunk.model, "vit", PREPROCESSING, 0 if prefix else 1)
    np.testing.assert_allclose(bind_patch(other, patch).model(images), bound.model(images), atol=1e-5)


def test_the_tokens_before_those_of_patches_are_what_is_left_of_a_square():
    for prefix in (0, 1, 2):
        assert Trunk(small_vit(prefix, depth=1), "vit", PREPROCESSING).prefix_tokens == prefix


def test_poolings_that_cannot_be_are_refused(trunk):
    plain = Trunk(small_vit(0, depth=1), "plain", PREPROCESSING)
    features = Trunk(keras.Model(plain.model.input, plain.model.output[:, 0]), "features", PREPROCESSING)
    for make, message in (
        (lambda: task(pooling="max"), "unknown pooling 'max': expected one of auto, class, class.mean, mean"),
        (lambda: bind(plain, task(pooling="class"), "last"), "pooling=class needs a class token, and plain has none"),
        (lambda: bind(features, task(pooling="mean"), "last"), "pooling=mean needs tokens, and features gives"),
        (lambda: Trunk(plain.model, "plain", PREPROCESSING, 4), "gives 4 tokens, with prefix_tokens=4"),
        (lambda: Trunk(features.model, "features", PREPROCESSING, 1), "which gives no tokens: leave it out"),
        (
            lambda: join(trunk, [task("a"), task("b", pooling="mean")]),
            "the tasks 'a' and 'b' pool tokens by class and mean",
        ),
        (
            lambda: Bank(trunk).add(bind(trunk, task(pooling="mean"))),
            "pools tokens by mean, and the bank by class: make it with pooling=mean",
        ),
    ):
        with pytest.raises(ModelPatchError, match=message):
            make()


# Per block two norms, of which the first block's second is an RMS norm with a bias added, and a layer scale.
SCALES = 2 * DIM * (2 * DEPTH + 1) + DIM * DEPTH
# Per block four projections of attention, two dense layers and the norms' biases; the patches, and the last norm.
BIASES = DEPTH * (4 * DIM + 2 * DIM + DIM) + DIM * (2 * DEPTH) + DIM


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("scale_bias", SCALES), ("bias", BIASES), ("scale_bias+bias", SCALES + BIASES - DIM * 2 * DEPTH)],
)
def test_learnt_values_are_counted_exactly(trunk, kind, expected):
    assert bind(trunk, task(), kind).counts().patch == expected


@pytest.fixture(scope="module")
def bounds(trunk, images):
    before = snapshot(trunk.variables())
    bounds = [bind(trunk, task(name), "scale_bias+bias+last") for name in ("first", "second")]
    np.testing.assert_allclose(bounds[0].features(images), trunk.model(images)[:, 0], atol=1e-5)
    for i, bound in enumerate(bounds):
        train_steps(bound, images, (LABELS + i) % 2, steps=1)
    assert same(before, snapshot(trunk.variables()))
    return bounds


def test_tasks_compute_the_same_loaded_joined_banked_and_folded(trunk, bounds, images, tmp_path):
    logits = [np.asarray(bound.model(images)) for bound in bounds]
    bounds[0].patch().save(tmp_path / "patch.safetensors")
    again = bind_patch(Trunk(trunk.model, "vit", PREPROCESSING), Patch.load(tmp_path / "patch.safetensors"))
    np.testing.assert_allclose(again.model(images), logits[0], atol=1e-6)
    bounds[0].model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(images), logits[0], atol=1e-6)

    joined = join(trunk, [bound.task for bound in bounds], bounds[0].train_spec)
    for bound in bounds:
        joined.tasks[bound.task.name].load(bound.patch())
    outputs = joined.model({bound.task.name: images for bound in bounds})
    for bound, expected in zip(bounds, logits, strict=True):
        np.testing.assert_allclose(outputs[bound.task.name], expected, atol=1e-5)

    bank = Bank(trunk, "scale_bias+bias", capacity=2, classes=2)
    for bound in bounds:
        bank.add(bound)
    mixed = bank(images, ["first", "second"] * 3)
    np.testing.assert_allclose(mixed, np.where(LABELS[:, None], logits[1], logits[0]), atol=1e-5)
    np.testing.assert_allclose(fold(bounds[0]).model(images), logits[0], atol=1e-5)


def test_a_bank_of_64_tasks_predicts_as_64_bound_models(images):
    trunk = Trunk(small_vit(depth=1), "vit", PREPROCESSING)
    bank, rng = Bank(trunk, "scale_bias+bias", capacity=64, classes=2), np.random.default_rng(0)
    bound, expected = bind(trunk, task("any"), "scale_bias+bias+last"), []
    for i in range(64):
        for variable in bound.model.trainable_variables:
            variable.assign_add(rng.normal(0, 0.1, variable.shape))
        patch = bound.patch()
        bank.add(dataclasses.replace(patch, task=dataclasses.replace(patch.task, name=f"task{i}")))
        expected.append(np.asarray(bound.model(images[i % 6][None]))[0])
    given = bank(images[np.arange(64) % 6], [f"task{i}" for i in range(64)])
    np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.slow
@tensorflow_only
def test_exports_predict_as_the_models_do(bounds, images, tmp_path):
    pixels = (images + 1) * 127.5
    for format in ("saved_model", "signatures", "bank", "litert", "litert_set", "onnx"):
        export(format, bounds, tmp_path / format)
        for bound, given in zip(bounds, predictions(format, tmp_path / format, bounds, pixels), strict=True):
            np.testing.assert_allclose(given, bound.model(images), atol=1e-4)


def test_a_trunk_of_tokens_comes_back_from_its_file_with_its_prefix(images, tmp_path):
    trunk = Trunk(small_vit(2, depth=1), "vit", PREPROCESSING, 2)
    spec = save_trunk(Trunk(trunk.model, "file:x.keras", PREPROCESSING, 2), tmp_path / "vit")
    opened = open_trunk(spec)
    assert opened.prefix_tokens == 2
    np.testing.assert_allclose(opened.model(images), trunk.model(images), atol=1e-6)
    assert opened.fingerprint(opened.variables()) == trunk.fingerprint(trunk.variables())


def test_patches_from_before_layer_scales_and_rms_norms_had_slots_still_load(images, tmp_path, monkeypatch):
    from model_patch.kinds import TrainSpec

    trunk = Trunk(small_vit(), "vit", PREPROCESSING)
    bound = bind(trunk, task(), TrainSpec.parse("scale_bias+last", version=1))
    assert bound.counts().patch == 2 * DIM * 2 * DEPTH
    train_steps(bound, images, LABELS, steps=1)
    bound.patch().save(tmp_path / "old.safetensors")
    raw = (tmp_path / "old.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["model_patch"])["kinds_version"] == 1
    patch = Patch.load(tmp_path / "old.safetensors")
    np.testing.assert_allclose(bind_patch(trunk, patch).model(images), bound.model(images), atol=1e-6)
    bank = Bank(trunk, "scale_bias", capacity=2, classes=2)
    bank.add(patch)
    np.testing.assert_allclose(bank(images, ["two"] * 6), bound.model(images), atol=1e-5)


def test_variables_without_a_name_are_called_by_their_attribute(trunk):
    assert "block_0_scale/gamma" in trunk.variables()
    assert trunk.counted_keys()["block_0_scale/gamma"].startswith("block_0_scale/variable")


@pytest.mark.parametrize(
    ("norm_inside", "kinds", "inside"),
    [(False, "scale_bias", ""), (True, "scale_bias", "inside"), (False, "bias", "attention/query")],
)
def test_layers_within_windows_are_bound_and_those_outside_joined_and_banked(images, norm_inside, kinds, inside):
    trunk = Trunk(windowed_vit(norm_inside), "windows", PREPROCESSING)
    tasks = [task(name) for name in ("first", "second")]
    bounds = [bind(trunk, each, f"{kinds}+last", seed=i) for i, each in enumerate(tasks)]
    np.testing.assert_allclose(bounds[0].features(images), np.mean(trunk.model(images), (1, 2)), atol=1e-5)
    for bound, labels in zip(bounds, (LABELS, 1 - LABELS), strict=True):
        before = snapshot(bound.patch_variables)
        train_steps(bound, images, labels, steps=1)
        # A bias of the keys moves all scores of a query alike, and learns nothing.
        learnt = {
            key for key, value in snapshot(bound.patch_variables).items() if not np.array_equal(before[key], value)
        }
        assert learnt >= {key for key in before if "/key/" not in key}
    if inside:
        for what, make in (
            ("joined", lambda: join(trunk, tasks, f"{kinds}+last")),
            ("banked", lambda: Bank(trunk, kinds, capacity=2, classes=2)),
        ):
            message = (
                f"the layer '{inside}.*' of windows computes with parts of images and cannot be {what}: leave the kind"
            )
            with pytest.raises(ModelPatchError, match=message):
                make()
        return
    expected = [np.asarray(bound.model(images, training=False)) for bound in bounds]
    joined, bank = join(trunk, tasks, f"{kinds}+last"), Bank(trunk, kinds, capacity=2, classes=2)
    for bound in bounds:
        joined.tasks[bound.task.name].load(bound.patch())
        bank.add(bound)
    outputs = joined.model({"first": images, "second": images[:2]}, training=False)
    np.testing.assert_allclose(outputs["first"], expected[0], atol=1e-5)
    np.testing.assert_allclose(outputs["second"], expected[1][:2], atol=1e-5)
    mixed = bank(images, ["first", "second"] * 3)
    np.testing.assert_allclose(mixed, [expected[i % 2][i] for i in range(6)], atol=1e-5)
