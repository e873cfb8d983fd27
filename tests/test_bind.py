import dataclasses

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.kinds import TrainSpec
from tests.backends import tensorflow_only
from tests.conftest import SIZE, random_norms, same, small_net, snapshot, train_steps

TRAINS = ["last", "scale_bias", "scale_bias+last", "depthwise+last", "bias+last", "scale_bias+depthwise+last", "full"]
SETTINGS = [(train, norm) for train in TRAINS for norm in ("batch", "frozen")] + [("statistics+last", "batch")]


@pytest.mark.parametrize(("train", "norm"), SETTINGS)
def test_before_training_the_features_are_the_trunks_to_the_last_bit(trunk, task, images, train, norm):
    bound = bind(trunk, task, TrainSpec.parse(train, norm))
    assert np.array_equal(bound.features(images, training=False), trunk.model(images, training=False))
    assert bound.model(images, training=False).shape == (12, 3)


@pytest.mark.parametrize(("train", "norm"), SETTINGS)
def test_training_changes_what_the_task_owns_and_nothing_else(trunk, task, images, labels, train, norm):
    bound = bind(trunk, task, TrainSpec.parse(train, norm))
    shared, before = snapshot(trunk.variables()), snapshot(bound.patch_variables | bound.head_variables)
    predictions = np.array(bound.model(images, training=False))
    train_steps(bound, images, labels)
    after = snapshot(bound.patch_variables | bound.head_variables)
    assert same(shared, snapshot(trunk.variables()))
    learnt = {id(v) for v in bound.model.trainable_variables}
    for key, variable in (bound.patch_variables | bound.head_variables).items():
        statistic = "moving" in key
        expected = id(variable) in learnt or (statistic and norm == "batch")
        assert (not np.array_equal(before[key], after[key])) == expected, key
    assert not np.array_equal(predictions, bound.model(images, training=False))


def test_after_training_another_task_the_first_predicts_as_before_to_the_last_bit(trunk, task, images, labels):
    first = bind(trunk, task, "scale_bias+last")
    train_steps(first, images, labels)
    patch, predictions = snapshot(first.patch_variables), np.array(first.model(images, training=False))
    shared = snapshot(trunk.variables())
    for train in ("last", "scale_bias+depthwise+last", "bias+last", "full"):
        other = bind(trunk, Task("other", ("a", "b", "c", "d"), task.preprocessing), train)
        train_steps(other, images, labels)
    assert same(patch, snapshot(first.patch_variables))
    assert same(shared, snapshot(trunk.variables()))
    assert np.array_equal(predictions, first.model(images, training=False))


def test_the_last_layer_stays_at_its_random_values_where_it_is_not_learnt(trunk, task, images, labels):
    bound = bind(trunk, task, "scale_bias", seed=3)
    before = snapshot(bound.head_variables)
    train_steps(bound, images, labels)
    assert same(before, snapshot(bound.head_variables))
    again, other = bind(trunk, task, "scale_bias", seed=3), bind(trunk, task, "scale_bias", seed=4)
    assert same(before, snapshot(again.head_variables))
    assert not same(before, snapshot(other.head_variables))


def test_the_patch_is_the_trained_set(trunk, task):
    bound = bind(trunk, task, "scale_bias+depthwise+last")
    names = {key.rpartition("/")[2] for key in bound.patch_variables}
    assert names == {"gamma", "beta", "moving_mean", "moving_variance", "depthwise_kernel"}
    assert set(bound.head_variables) == {"head.kernel", "head.bias"}
    learnt = {id(v) for v in bound.model.trainable_variables}
    owned = {id(v) for k, v in (bound.patch_variables | bound.head_variables).items() if "moving" not in k}
    assert learnt == owned


def test_a_nested_trunk_is_patched_inside(task, images, labels):
    inner = small_net()
    image = keras.Input((SIZE, SIZE, 3))
    trunk = Trunk(keras.Model(image, keras.layers.Dense(8, name="project")(inner(image))), "nested", task.preprocessing)
    bound = bind(trunk, task, "scale_bias+last")
    assert f"{inner.name}/stem_bn/gamma" in bound.patch_variables
    assert np.array_equal(bound.features(images), trunk.model(images))
    before = snapshot(trunk.variables())
    train_steps(bound, images, labels)
    assert same(before, snapshot(trunk.variables()))


def test_a_sequential_trunk_with_a_feature_map_is_pooled(task, images, labels):
    layers = [keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    bound = bind(Trunk(keras.Sequential(layers), "sequential", task.preprocessing), task)
    assert bound.features.output.shape == (None, 4)
    train_steps(bound, images, labels)


@pytest.mark.slow
@tensorflow_only  # Elsewhere the small nets, which have such a norm, too: JAX compiles each of the 94 convolutions.
def test_batch_norms_without_scale_get_one(task, images):
    model = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg", input_shape=(75, 75, 3))
    random_norms(model)
    trunk = Trunk(model, "inception", Preprocessing(75, "tf"))
    bound = bind(trunk, dataclasses.replace(task, preprocessing=trunk.preprocessing), "scale_bias+last")
    gammas = [v for key, v in bound.patch_variables.items() if key.endswith("/gamma")]
    assert len(gammas) == 94 and all(np.array_equal(v, np.ones(v.shape)) for v in gammas)
    x = np.random.default_rng(0).normal(size=(2, 75, 75, 3)).astype("float32")
    assert np.array_equal(bound.features(x), model(x))


def test_a_bound_model_is_an_ordinary_keras_model(trunk, task, images, tmp_path):
    bound = bind(trunk, task, "scale_bias+last")
    bound.model.save(tmp_path / "bound.keras")
    loaded = keras.models.load_model(tmp_path / "bound.keras")
    assert np.array_equal(loaded(images), bound.model(images))
    assert len(loaded.trainable_variables) == len(bound.model.trainable_variables)


def test_a_variable_without_an_owner_is_named(trunk, task):
    from model_patch.bind import _check_covered

    bound = bind(trunk, task, "scale_bias+last")
    del bound.patch_variables["stem_bn/gamma"]
    with pytest.raises(ModelPatchError, match="no trunk, patch or head owns stem_bn/gamma of the task 'shapes'"):
        _check_covered(bound)


def test_counts_add_up_and_the_fraction_is_of_the_tasks_own_total(trunk, task):
    bound = bind(trunk, task, "scale_bias+last")
    assert np.array_equal(bound.patch_variables["depthwise_bn/gamma"], np.ones(8)), "the trunk's norm has no scale"
    counts = bound.counts()
    assert (counts.patch, counts.head, counts.statistics) == (2 * (8 + 8 + 12), 16 * 3 + 3, 2 * (8 + 8 + 12))
    assert counts.shared == trunk.num_parameters() - (4 * 8 + 3 * 8 + 4 * 12)
    assert counts.trained_fraction == (56 + 51) / (counts.shared + 56 + 56 + 51)


@pytest.mark.parametrize(
    ("train", "statistics", "replaced"),
    [
        ("last", "frozen", 0),
        # The scale that the second norm lacks is none of the trunk's values.
        ("scale_bias+last", "frozen", 2 * (8 + 8 + 12) - 8),
        ("scale_bias+last", "batch", 4 * (8 + 8 + 12) - 8),
        ("depthwise+last", "frozen", 9 * (8 + 8)),
        ("full", "auto", None),
    ],
)
def test_what_a_task_reuses_of_the_trunk_is_what_it_leaves_as_it_is(trunk, task, train, statistics, replaced):
    total = trunk.num_parameters()
    reused = bind(trunk, task, TrainSpec.parse(train, statistics)).reused_fraction()
    assert reused == pytest.approx(1 - (total if replaced is None else replaced) / total, abs=1e-12)


def test_dropout_in_the_trunk_is_on_for_patches_and_off_for_the_last_layer_alone(task, images):
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.BatchNormalization(name="norm")(image)
    net = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Dropout(0.5, name="drop")(x)))
    trunk = Trunk(net, "dropout", Preprocessing(SIZE, "tf"))

    def is_random(train):
        model = bind(trunk, task, train).features
        return not np.array_equal(model(images, training=True), model(images, training=False))

    assert is_random("scale_bias+last") and not is_random("last")


@pytest.mark.parametrize("train", ["last", "scale_bias+last", "depthwise+last"])
def test_a_bound_model_saved_to_hdf5_is_loaded_with_the_same_outputs(trunk, task, images, tmp_path, train):
    model = bind(trunk, task, train).model
    model.save(tmp_path / "bound.h5")
    loaded = keras.models.load_model(tmp_path / "bound.h5")
    assert np.array_equal(loaded(images), model(images))


def test_a_task_at_another_image_size_than_the_trunks_is_refused(trunk, task):
    other = Task(task.name, task.labels, Preprocessing(SIZE + 1, task.preprocessing.mode))
    message = f"'shapes' takes images of {SIZE + 1} px and the trunk test {SIZE} px: open the trunk at {SIZE + 1} px"
    with pytest.raises(ModelPatchError, match=message):
        bind(trunk, other)
