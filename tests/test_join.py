"""Joined tasks against the same tasks bound one by one, each with its own images; sizes are primes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import Bank, ModelPatchError, Patch, Preprocessing, Task, Trunk, bind, bind_patch, fold
from model_patch.export.vector_net import vector_net
from model_patch.join import join
from model_patch.kinds import TrainSpec
from tests.conftest import SIZE, same, small_net, snapshot

BATCHES = {"two": 3, "three": 5, "five": 7}
CLASSES = {"two": 2, "three": 3, "five": 5}
RATE = 0.1


def tasks(sizes=(SIZE, SIZE, SIZE)) -> list[Task]:
    return [
        Task(name, tuple(f"class {i}" for i in range(n)), Preprocessing(size, "tf"))
        for (name, n), size in zip(CLASSES.items(), sizes, strict=True)
    ]


def batch(sizes=(SIZE, SIZE, SIZE)):
    rng = np.random.default_rng(0)
    images = {
        name: rng.uniform(-1 - k, 1, (n, size, size, 3)).astype("float32")
        for k, ((name, n), size) in enumerate(zip(BATCHES.items(), sizes, strict=True))
    }
    return images, {name: np.arange(n) % CLASSES[name] for name, n in BATCHES.items()}


def step(joined, images, labels, eager=True):
    """One step of plain gradient descent, as Keras does it; a graph takes longer to trace than the step takes."""
    optimizer = keras.optimizers.SGD(RATE)
    joined.model.compile(optimizer, joined.losses(), metrics=joined.metrics(), jit_compile=False, run_eagerly=eager)
    return joined.model.train_on_batch(images, labels, return_dict=True)


@pytest.mark.parametrize(
    ("train", "share"),
    [
        *((train, "trunk") for train in ("scale_bias+depthwise+last", "last", "bias")),
        *(("scale_bias+depthwise+last", share) for share in ("nothing", "trunk+patch")),
    ],
)
def test_outputs_are_those_of_each_bound_task(trunk, train, share):
    joined = join(trunk, tasks(), train, share=share)
    images, _ = batch()
    outputs = joined.model(images, training=False)
    for name, bound in joined.tasks.items():
        assert outputs[name].shape == (BATCHES[name], CLASSES[name])
        np.testing.assert_allclose(outputs[name], bound.model(images[name], training=False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("train", "share"),
    [
        *((train, "trunk") for train in ("scale_bias+depthwise+last", "last", "statistics+last")),
        ("scale_bias+depthwise+last", "trunk+patch"),
    ],
)
def test_a_frozen_trunk_stays_to_the_last_bit(trunk, train, share):
    before = snapshot(trunk.variables())
    joined = join(trunk, tasks(), TrainSpec.parse(train, "batch"), share=share)
    heads = snapshot(joined.tasks["two"].head_variables)
    for _ in range(3):
        step(joined, *batch())
    assert same(before, snapshot(trunk.variables()))
    assert not same(heads, snapshot(joined.tasks["two"].head_variables))


def test_a_task_is_untouched_by_the_images_of_another(trunk):
    after = []
    for other in (0.0, 50.0):
        joined = join(trunk, tasks(), TrainSpec.parse("scale_bias+last", "batch"))
        images, labels = batch()
        images["five"] = images["five"] + other
        step(joined, images, labels)
        after.append([snapshot(bound.patch_variables | bound.head_variables) for bound in joined.tasks.values()])
    (two, three, five), (two_again, three_again, five_again) = after
    assert same(two, two_again) and same(three, three_again) and not same(five, five_again)


def test_batch_norms_that_stay_shared_keep_the_statistics_of_the_merged_batch(trunk):
    joined = join(trunk, tasks(), "last", train_trunk=True, momentum=0.75)
    images, labels = batch()
    before = snapshot(trunk.variables())
    merged = np.concatenate(list(images.values()))
    stem = np.array(trunk.model.get_layer("stem")(merged))
    step(joined, images, labels)
    moved = 0.75 * before["stem_bn/moving_mean"] + 0.25 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(trunk.variables()["stem_bn/moving_mean"], moved, rtol=1e-4, atol=1e-5)


def test_one_patch_for_all_learns_from_all(trunk):
    joined = join(trunk, tasks(), share="trunk+patch")
    two, five = joined.tasks["two"], joined.tasks["five"]
    assert all(two.patch_variables[key] is five.patch_variables[key] for key in two.patch_variables)
    assert two.head is not five.head
    before = snapshot(two.patch_variables)
    step(joined, *batch())
    assert not same(before, snapshot(five.patch_variables))


def test_parameters_are_counted_once(trunk):
    counts = {
        share: join(trunk, tasks(), share=share).num_parameters() for share in ("nothing", "trunk", "trunk+patch")
    }
    heads = sum(16 * n + n for n in CLASSES.values())
    net, norms = trunk.num_parameters(), 4 * (8 + 8 + 12)
    gamma = 8  # What depthwise_bn lacks, and a patch adds.
    assert counts == {
        "nothing": 3 * net + heads,
        "trunk": net + gamma + 2 * norms + heads,
        "trunk+patch": net + gamma + heads,
    }


def test_a_trained_trunk_is_what_the_patches_belong_to(trunk, tmp_path):
    joined = join(trunk, tasks(), train_trunk=True)
    early = joined.tasks["two"].patch()
    step(joined, *batch())
    joined.freeze()
    bound = joined.tasks["two"]
    bound.patch().save(tmp_path / "two.safetensors")
    images, _ = batch()
    fresh = Trunk(small_net(seed=5), "test", trunk.preprocessing)
    for key, variable in fresh.variables().items():
        variable.assign(trunk.variables()[key])
    again = bind_patch(fresh, Patch.load(tmp_path / "two.safetensors"))
    np.testing.assert_allclose(again.model(images["two"]), bound.model(images["two"]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelPatchError, match="belongs to another trunk"):
        bind_patch(fresh, early)


def test_no_task_is_bound_to_a_trunk_while_it_is_trained(trunk, task):
    joined = join(trunk, tasks(), train_trunk=True)
    with pytest.raises(ModelPatchError, match=r"the trunk test is in joint training: freeze\(\) the joined tasks"):
        bind(trunk, task)
    joined.freeze()
    assert not trunk.model.trainable_variables and bind(trunk, task).counts().patch == 56


def test_a_nested_trunk_is_joined_inside(task):
    image = keras.Input((SIZE, SIZE, 3))
    inner = small_net()
    net = keras.Model(image, keras.layers.Dense(8, name="project")(inner(image)))
    joined = join(Trunk(net, "nested", task.preprocessing), tasks(), TrainSpec.parse("scale_bias+last", "batch"))
    images, labels = batch()
    assert "small/stem_bn/gamma" in joined.tasks["two"].patch_variables
    outputs = joined.model(images, training=False)
    for name, bound in joined.tasks.items():
        np.testing.assert_allclose(outputs[name], bound.model(images[name]), rtol=1e-5, atol=1e-6)
    before = snapshot(joined.tasks["two"].patch_variables)
    step(joined, images, labels)
    after = snapshot(joined.tasks["two"].patch_variables)
    assert all(not np.array_equal(before[key], after[key]) for key in before)


def test_a_feature_map_is_pooled(task):
    layers = [keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    joined = join(Trunk(keras.Sequential(layers), "sequential", task.preprocessing), tasks())
    images, labels = batch()
    np.testing.assert_allclose(
        joined.model(images)["five"], joined.tasks["five"].model(images["five"]), rtol=1e-5, atol=1e-6
    )
    step(joined, images, labels)


def test_dropout_is_on_where_patches_or_the_trunk_are_learnt(task):
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.BatchNormalization(name="norm")(image)
    net = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Dropout(0.5, name="drop")(x)))
    images, _ = batch()

    def is_random(train, train_trunk):
        trunk = Trunk(net, "dropout", task.preprocessing)
        model = join(trunk, tasks(), TrainSpec.parse(train, "frozen"), train_trunk=train_trunk).model
        return not np.array_equal(model(images, training=True)["two"], model(images, training=False)["two"])

    assert is_random("scale_bias+last", False) and is_random("last", True) and not is_random("last", False)


def test_the_joined_model_is_an_ordinary_keras_model(trunk, tmp_path):
    """Fit on a `tf.data.Dataset` whose batches change in size, weights of tasks, saved and loaded."""
    joined = join(trunk, tasks())
    images, labels = batch()

    def two_steps():
        yield images, labels
        yield {name: x[:2] for name, x in images.items()}, {name: y[:2] for name, y in labels.items()}

    spec = (
        {name: tf.TensorSpec((None, SIZE, SIZE, 3)) for name in images},
        {name: tf.TensorSpec((None,), tf.int64) for name in images},
    )
    data = tf.data.Dataset.from_generator(two_steps, output_signature=spec)
    joined.model.compile("adam", joined.losses(), {"two": 0.5, "three": 2.0, "five": 1.0}, joined.metrics())
    logs = joined.model.fit(data, epochs=2, verbose=0).history
    assert {"loss", "two_loss", "three_accuracy", "five_accuracy"} <= logs.keys()
    joined.model.save(tmp_path / "joined.keras")
    loaded = keras.models.load_model(tmp_path / "joined.keras")
    for name, logits in loaded(images).items():
        np.testing.assert_allclose(logits, joined.model(images)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("statistics", "sizes"), [("frozen", (SIZE,) * 3), ("batch", (SIZE,) * 3), ("batch", (SIZE, 20, 20))]
)
def test_a_joined_model_is_not_saved_to_hdf5_which_holds_each_name_once(trunk, tmp_path, statistics, sizes):
    trunks = [trunk, Trunk(small_net(size=20), "net", Preprocessing(20, "tf"))]
    model = join(trunks, tasks(sizes), TrainSpec.parse("scale_bias+last", statistics)).model
    with pytest.raises(
        ModelPatchError, match=r"joined\.h5 cannot hold a joined model, .*: give a file ending in \.keras"
    ):
        model.save(tmp_path / "joined.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "there is no task to join"),
        ({"tasks": tasks()[:1] * 2}, "two tasks are named 'two': give each its own name"),
        (
            {"tasks": [Task("two words", ("a", "b"), Preprocessing(SIZE, "tf"))]},
            "the task name 'two words' cannot name an",
        ),
        ({"tasks": tasks((SIZE, 23, SIZE))}, f"the task 'three' has images of 23 px: .* not only {SIZE}"),
        ({"share": "head"}, "unknown share 'head': expected one of nothing, trunk, trunk.patch"),
        ({"share_head": True}, "the tasks 'two' and 'three' have other labels: give each its head"),
        ({"train": "scale"}, "unknown patch kind 'scale'"),
    ],
)
def test_what_cannot_be_joined_is_refused(trunk, arguments, message):
    with pytest.raises(ModelPatchError, match=message):
        join(**{"trunk": trunk, "tasks": tasks()} | arguments)


def split_net() -> keras.Model:
    """Operations that give several tensors, some large and some small, in a tuple, a list and a dict."""
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.BatchNormalization(name="first")(keras.layers.Conv2D(8, 3, padding="same")(image))
    a, b = keras.ops.split(x, 2, axis=-1)
    a = keras.layers.BatchNormalization(name="second")(keras.layers.DepthwiseConv2D(3, padding="same")(a))
    mean, variance = keras.ops.moments(b, axes=(1, 2), keepdims=True)
    rows = keras.ops.unstack(keras.ops.concatenate([a, b], -1), SIZE, axis=1)
    x = keras.ops.stack([rows[0], rows[-1], *rows[1:-1]], axis=1) * variance[..., :1] + mean[..., :1]
    x = keras.layers.BatchNormalization(name="third")(keras.layers.Conv2D(6, 3, strides=4)(x))
    return keras.Model(image, x)


class TwoMaps(keras.layers.Layer):
    """A layer of two inputs and two outputs with variables of its own."""

    def build(self, first_shape, second_shape):
        self.scale = self.add_weight(shape=(first_shape[-1],), initializer="ones", name="scale")

    def call(self, first, second):
        return {"sum": first * self.scale + second, "small": keras.ops.mean(first * second, axis=(1, 2))}

    def compute_output_spec(self, first, second):
        small = keras.KerasTensor((first.shape[0], first.shape[-1]), first.dtype)
        return {"sum": keras.KerasTensor(first.shape, first.dtype), "small": small}


def two_maps_net() -> keras.Model:
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, padding="same")(image))
    outputs = TwoMaps()(x, keras.layers.ReLU()(x))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, strides=4)(outputs["sum"]))
    return keras.Model(image, pooled + outputs["small"])


@pytest.mark.parametrize("train", ["scale_bias+last", "full"])
@pytest.mark.parametrize("net", [split_net, two_maps_net])
def test_operations_of_several_tensors_are_joined_like_others(net, train, task):
    joined = join(Trunk(net(), "several", task.preprocessing), tasks(), train)
    images, labels = batch()
    step(joined, images, labels)
    outputs = joined.model(images, training=False)
    for name, bound in joined.tasks.items():
        np.testing.assert_allclose(outputs[name], bound.model(images[name], training=False), atol=1e-5)


def test_layers_and_tasks_may_be_named_as_this_packages_own(images):
    ours = ["head", "pool", "part", "merge_parts", "rewrite_extra", "permute", "images", "rows", "patches", "trunk"]
    image = keras.Input((SIZE, SIZE, 3), name="merge_tasks")
    x = image
    for name in ours:
        x = keras.layers.Conv2D(3, 3, padding="same", name=name)(x)
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.DepthwiseConv2D(3, 4, name="split_tasks")(x))
    trunk = Trunk(keras.Model(image, x, name="pool"), "ours", Preprocessing(SIZE, "tf"))
    names = [
        "head",
        "head_0",
        "merge_tasks",
        "split_tasks",
        "shared_trunk",
        "joined",
        f"joined_{SIZE}px",
        "pool",
        "norm",
    ]
    joined = join(trunk, [Task(name, ("a", "b"), trunk.preprocessing) for name in names])
    outputs = joined.model(dict.fromkeys(names, images), training=False)
    bank = Bank(trunk, capacity=len(names))
    for name, bound in joined.tasks.items():
        expected = bound.model(images, training=False)
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5)
        np.testing.assert_allclose(bind_patch(trunk, bound.patch()).model(images), expected, atol=1e-6)
        bank.add(bound)
        np.testing.assert_allclose(bank(images, [name] * len(images))[:, :2], expected, atol=1e-5)
    assert {"head.kernel", "head.bias"} <= bound.patch().values.keys()
    np.testing.assert_allclose(fold(bound).model(images), expected, atol=1e-5)
    net = vector_net([bound])
    vector = net.vectors[bound.task.name]
    np.testing.assert_allclose(net.model([images, vector]), expected, atol=1e-5)
