"""Every image backbone of the installed KerasHub: bound, trained, saved, loaded, banked, joined, exported, or refused by name."""

import keras
import numpy as np
import pytest

from model_patch import Bank, ModelPatchError, Patch, Preprocessing, Task, bind, bind_patch, join
from model_patch.export.saved_model import export_saved_model
from tests.conftest import random_norms, same, snapshot
from tests.trunks.kerashub_backbones import CONFIGS, NOT_BANKED, REFUSED, build, image_backbones, shape

try:
    import keras_hub
except ImportError:
    keras_hub = None

REASON = "KerasHub is not installed: see docs/trunks.md for an environment of its own"
pytestmark = pytest.mark.skipif(keras_hub is None, reason=REASON)


def test_every_image_backbone_of_the_library_has_a_configuration():
    assert image_backbones(keras_hub).keys() == CONFIGS.keys()
    assert REFUSED.keys() | NOT_BANKED.keys() <= CONFIGS.keys()


def trunk_of(name):
    from model_patch.trunks.kerashub import trunk_of

    keras.utils.set_random_seed(0)
    backbone = build(keras_hub, name)
    random_norms(backbone)
    return backbone, trunk_of(backbone, name, Preprocessing(shape(name)[0], "unit"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_task_is_learnt_saved_loaded_banked_joined_and_exported(name, tmp_path):
    import tensorflow as tf

    if name in REFUSED:
        with pytest.raises(ModelPatchError, match=REFUSED[name]):
            trunk_of(name)
        return
    backbone, trunk = trunk_of(name)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *shape(name))).astype("float32")
    images = pixels / 255
    given = backbone(images, training=False)
    given = min(reversed(given.values()), key=lambda x: x.shape[1]) if isinstance(given, dict) else given
    assert_near(trunk.model(images), given)

    tasks = [Task(label, ("a", "b"), trunk.preprocessing) for label in ("first", "second")]
    bounds = [bind(trunk, task, "scale_bias+last", seed=i) for i, task in enumerate(tasks)]
    frozen, patches = snapshot(trunk.variables()), [snapshot(bound.patch_variables) for bound in bounds]
    for bound, patch in zip(bounds, patches, strict=True):
        features = np.asarray(trunk.model(images))
        if features.ndim == 3:
            features = features[:, 0] if bound.task.pooling == "class" else features.mean(1)
        assert_near(bound.features(images), features.mean((1, 2)) if features.ndim == 4 else features)
        bound.model.compile(keras.optimizers.SGD(0.01, clipnorm=1.0), bound.task.loss(), run_eagerly=True)
        bound.model.train_on_batch(images, 1 - np.argmax(bound.model(images), axis=-1))
        assert same(frozen, snapshot(trunk.variables()))
        assert any(not np.array_equal(patch[key], value) for key, value in snapshot(bound.patch_variables).items())
    logits = [np.array(bound.model(images, training=False)) for bound in bounds]

    bounds[0].patch().save(tmp_path / "task.safetensors")
    _, other = trunk_of(name)  # Another object of the same net: keys and values come out the same.
    loaded = bind_patch(other, Patch.load(tmp_path / "task.safetensors"))
    assert_near(loaded.model(images, training=False), logits[0])

    joined = join(trunk, tasks, "scale_bias+last")
    for bound in bounds:
        joined.tasks[bound.task.name].load(bound.patch())
    outputs = joined.model({"first": images, "second": images[:1]}, training=False)
    assert_near(outputs["first"], logits[0])
    assert_near(outputs["second"], logits[1][:1])

    if name in NOT_BANKED:
        with pytest.raises(ModelPatchError, match=NOT_BANKED[name]):
            Bank(trunk, "scale_bias", capacity=2, classes=2)
    else:
        bank = Bank(trunk, "scale_bias", capacity=2, classes=2)
        for bound in bounds:
            bank.add(bound)
        assert_near(bank(images, ["second", "first"]), [logits[1][0], logits[0][1]])

    export_saved_model(bounds[0], tmp_path / "exported")
    serve = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    assert_near(serve(images=pixels)["logits"], logits[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "scale_bias", "total"),
    [
        # 25 norms of 768 channels. Biases of attention and of the two dense layers, positions of 197 tokens.
        (
            "ViTBackbone",
            {"patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072},
            38_400,
            85_798_656,
        ),
        # 25 norms of 384 channels, 24 layer scales.
        (
            "DINOV2Backbone",
            {"patch_size": 14, "num_layers": 12, "num_heads": 6, "hidden_dim": 384, "intermediate_dim": 1536},
            28_416,
            None,
        ),
    ],
)
def test_patches_of_well_known_transformers_have_the_parameters_of_the_architecture(name, options, scale_bias, total):
    from model_patch.trunks.kerashub import trunk_of

    backbone = getattr(keras_hub.models, name)(**options, image_shape=(224, 224, 3))
    trunk = trunk_of(backbone, name, Preprocessing(224, "unit"))
    assert trunk.prefix_tokens == 1
    assert bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last").counts().patch == scale_bias
    assert total is None or trunk.num_parameters() == total


def assert_near(given, expected):
    """Differences grow with the numbers."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(given, expected, atol=1e-4 * max(1.0, np.abs(expected).max()), rtol=0)
