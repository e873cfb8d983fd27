"""A bank predicts each image as the bound task would."""

import dataclasses
import threading

import keras
import numpy as np
import pytest
from keras import layers

from model_patch import ModelPatchError, PatchError, Preprocessing, Task, Trunk, bind
from model_patch.bank.bank import Bank
from model_patch.bank.compiled import PART
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, random_norms, same, small_net, snapshot

CLASSES = (2, 3, 5, 7)


def bound_task(trunk, name: str, classes: int, train: str, seed: int):
    """Returns a task with values of its own wherever it may have some."""
    bound = bind(trunk, Task(name, tuple(map(str, range(classes))), trunk.preprocessing), train)
    random = np.random.default_rng(seed)
    for key, variable in (bound.patch_variables | bound.head_variables).items():
        low = 0.5 if key.endswith(("gamma", "variance")) else -0.5
        variable.assign(random.uniform(low, 1.5, variable.shape))
    return bound


def tasks_of(trunk, train: str = "scale_bias+last"):
    return [bound_task(trunk, f"task{k}", classes, train, k) for k, classes in enumerate(CLASSES)]


def assert_predictions(bank, tasks, images, random):
    """Each image of a mixed batch gets the logits of its own task, and -infinity behind them."""
    chosen = random.integers(0, len(tasks), len(images))
    logits = np.array(bank(images, [tasks[k].task.name for k in chosen]))
    of_tasks = [np.array(bound.model(images, training=False)) for bound in tasks]
    for i, (k, got) in enumerate(zip(chosen, logits, strict=True)):
        expected = of_tasks[k][i]
        np.testing.assert_allclose(got[: len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert np.isneginf(got[len(expected) :]).all()


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("kinds", "trained"),
    [
        ("scale_bias", "scale_bias+last"),
        ("scale_bias", "last"),
        ("scale_bias+depthwise", "depthwise+last"),
        ("scale_bias+depthwise", "scale_bias+depthwise+last"),
        ("bias", "bias+last"),
        ("statistics", "statistics+last"),
        ("depthwise+bias", "depthwise+bias+last"),
    ],
)
def test_every_image_is_predicted_by_its_task(trunk, images, random, kinds, trained):
    before = snapshot(trunk.variables())
    tasks = tasks_of(trunk, trained)
    bank = Bank(trunk, kinds, capacity=5, classes=7)
    for task in tasks:
        bank.add(task)
    assert_predictions(bank, tasks, images, random)
    assert same(before, snapshot(trunk.variables()))


def layer_norm_net():
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 4, strides=4, name="patches")(image)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.GroupNormalization(2, name="groups")(x)
    return keras.Model(image, keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x))


def nested_net():
    inner = small_net()
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, keras.layers.ReLU()(inner(keras.layers.Rescaling(0.5)(image))))


def gated_net():
    """Squeeze and excitation, bare operations, padding before strides: as in MobileNetV3 and EfficientNet."""
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(image)
    x = keras.layers.BatchNormalization()(x)
    x = x * (keras.layers.ReLU(6.0)(x + 3.0) / 6.0)
    x = keras.layers.ZeroPadding2D(1)(x)
    x = keras.layers.DepthwiseConv2D(3, strides=2, use_bias=False)(x)
    x = keras.layers.Activation("silu")(keras.layers.BatchNormalization()(x))
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = keras.layers.Multiply()([x, keras.layers.Conv2D(8, 1, activation="sigmoid")(gate)])
    x = keras.layers.Concatenate()([x, keras.layers.MaxPooling2D(3, 1, "same")(x)])
    model = keras.Model(image, x)
    random_norms(model)
    return model


def no_norm_net():
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(image)
    x = keras.layers.DepthwiseConv2D(3, activation="relu")(x)
    return keras.Model(image, keras.layers.Dense(8)(keras.layers.Flatten()(keras.layers.MaxPooling2D(4)(x))))


@pytest.mark.parametrize("net", [layer_norm_net, nested_net, gated_net, no_norm_net])
def test_other_nets(net, images, random):
    trunk = Trunk(net(), net.__name__, Preprocessing(SIZE, "tf"))
    tasks = tasks_of(trunk)
    bank = Bank(trunk, capacity=4, classes=7)
    for task in tasks:
        bank.add(task)
    assert_predictions(bank, tasks, images, random)


@pytest.mark.parametrize("kinds", ["bias", "scale_bias", "scale_bias+depthwise"])
def test_the_model_of_a_bank_has_every_shared_kernel_so_that_it_can_be_exported(trunk, kinds):
    held = {id(variable) for variable in Bank(trunk, kinds, capacity=2).model.variables}
    shared = {key for key in trunk.variables() if "kernel" in key and not ("depthwise" in key and "depthwise" in kinds)}
    assert shared == {key for key in shared if id(trunk.variables()[key]) in held}


@pytest.mark.parametrize("op_threads", [0, 1])
def test_large_batches_and_patches_out_of_files(trunk, random, tmp_path, monkeypatch, op_threads):
    from model_patch import Patch

    # Batches fall into parts, and where operations have one thread only, into more of them.
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: op_threads)
    tasks = tasks_of(trunk)
    bank = Bank(trunk, capacity=4, classes=7)
    for task in tasks:
        task.patch().save(tmp_path / "p.safetensors")
        bank.add(Patch.load(tmp_path / "p.safetensors"))
    images = random.uniform(-1, 1, (4 * PART + 1, SIZE, SIZE, 3)).astype("float32")
    assert_predictions(bank, tasks, images, random)


def test_tasks_come_and_go_without_a_trace(trunk, images, random, monkeypatch):
    tasks = tasks_of(trunk)
    bank = Bank(trunk, capacity=3, classes=7)
    bank.add(tasks[0])
    traces = []
    call = type(bank.model).call
    monkeypatch.setattr(
        type(bank.model), "call", lambda self, *args, **kw: traces.append(self.name) or call(self, *args, **kw)
    )
    assert_predictions(bank, tasks[:1], images, random)
    first = traces.count("bank")
    assert first > 0
    for task in tasks[1:3]:
        bank.add(task)
    assert_predictions(bank, tasks[:3], images[:5], random)
    bank.remove("task1")
    bank.add(tasks[3])
    assert_predictions(bank, [tasks[0], tasks[2], tasks[3]], images, random)
    assert traces.count("bank") == first
    with pytest.raises(ModelPatchError, match="unknown task 'task1': expected one of task0, task2, task3"):
        bank(images[:1], ["task1"])


def test_it_grows_when_it_is_full(trunk, images, random):
    tasks = tasks_of(trunk)
    bank = Bank(trunk, capacity=1, classes=7)
    for task in tasks:
        bank.add(task)
    assert bank.capacity == 4
    assert_predictions(bank, tasks, images, random)


def test_a_task_can_be_replaced(trunk, images, random):
    old, new = (bound_task(trunk, "task", 3, "scale_bias+last", seed) for seed in (0, 1))
    bank = Bank(trunk, capacity=2)
    bank.add(old)
    with pytest.raises(ModelPatchError, match="holds a task named 'task' already"):
        bank.add(new)
    bank.add(new, replace=True)
    assert_predictions(bank, [new], images, random)


def test_predictions_stay_whole_while_tasks_are_replaced(trunk, images):
    """A call while patches change gets the predictions of one of them, never by a mixture, and never by another task."""
    versions = [bound_task(trunk, "task", 3, "scale_bias+last", seed) for seed in range(3)]
    still = bound_task(trunk, "still", 5, "scale_bias+last", 9)
    expected = [np.array(bound.model(images[:1], training=False))[0] for bound in versions]
    expected_still = np.array(still.model(images[:1], training=False))[0]
    bank = Bank(trunk, capacity=3)
    bank.add(versions[0])
    bank.add(still)
    patches = [bound.patch() for bound in versions]
    stop, wrong = threading.Event(), []

    def ask():
        while not stop.is_set():
            both = np.array(bank(np.repeat(images[:1], 2, axis=0), ["task", "still"]))
            if min(abs(both[0, :3] - each).max() for each in expected) > 1e-4:
                wrong.append(both[0])
            if abs(both[1, :5] - expected_still).max() > 1e-4:
                wrong.append(both[1])
            alone = np.array(bank(images[:1], ["task"]))[0, :3]  # Folded, after some.
            if min(abs(alone - each).max() for each in expected) > 1e-4:
                wrong.append(alone)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(30):
        bank.add(patches[i % 3], replace=True)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bank.capacity <= 12  # Rows that are still read delay their reuse, and no more.


def test_a_row_that_no_task_has_is_never_the_trunks_prediction(trunk, images):
    bank = Bank(trunk, capacity=3)
    bank.add(bound_task(trunk, "task", 3, "scale_bias+last", 0))
    row = np.array([bank.row("task")], "int32")
    assert not np.isnan(bank.model([images[:1], row])[0, :3]).any()
    assert np.isnan(bank.model([images[:1], row + 1])).all()
    with pytest.raises(Exception, match="indices|out of"):
        bank.model([images[:1], row + 99])


def test_what_does_not_belong_is_refused(trunk, images, task):
    bank = Bank(trunk, capacity=2, classes=3)
    good = bound_task(trunk, "good", 3, "scale_bias+last", 0)
    bank.add(good)
    with pytest.raises(ModelPatchError, match="has 5 classes: make the bank with classes=5"):
        bank.add(bound_task(trunk, "wide", 5, "scale_bias+last", 0))
    with pytest.raises(ModelPatchError, match="has its own .*depthwise_kernel.*leaves to the trunk"):
        bank.add(bound_task(trunk, "deep", 3, "depthwise+last", 0))
    other = Trunk(small_net(seed=5), "other", trunk.preprocessing)
    with pytest.raises(PatchError, match="belongs to another trunk"):
        bank.add(bound_task(other, "foreign", 3, "scale_bias+last", 0))
    cut = good.patch()
    values = {key: value for key, value in cut.values.items() if not key.endswith("stem_bn/beta")}
    with pytest.raises(PatchError, match="missing: stem_bn/beta"):
        bank.add(dataclasses.replace(cut, values=values, task=dataclasses.replace(cut.task, name="cut")))
    broken = dataclasses.replace(cut, values=cut.values | {"stem_bn/moving_variance": np.full(8, -9.0, "float32")})
    for _ in range(3):  # More often than there are rows: none is lost.
        with pytest.raises(ModelPatchError, match="'stem_bn' cannot be folded: its values are NaN or infinite"):
            bank.add(dataclasses.replace(broken, task=dataclasses.replace(cut.task, name="broken")))
    assert bank.capacity == 2
    with pytest.raises(ModelPatchError, match="2 images with 1 task names"):
        bank(images[:2], ["good"])
    with pytest.raises(ModelPatchError, match="images are .2, 32, 16, 3.: expected .None, 32, 32, 3"):
        bank(images[:2, :, ::2], ["good"] * 2)
    assert list(bank.tasks) == ["good"]


@pytest.mark.parametrize("kinds", ["full", "last", "scale_bias+last"])
def test_kinds_that_make_no_bank(trunk, kinds):
    with pytest.raises(ModelPatchError, match="there is no bank of"):
        Bank(trunk, kinds)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("saved_for", [32, None])
def test_zeros_before_a_convolution_are_judged_by_the_size_that_the_trunk_takes(saved_for, size, tmp_path):
    """At 32 px they are those of the padding `same`, which then replaces them; at 33 px they are not."""
    image = keras.Input((saved_for, saved_for, 3))
    x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(image)
    x = keras.layers.DepthwiseConv2D(3, 2, use_bias=False, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    net = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(x))
    random_norms(net)
    net.save(tmp_path / "net.keras")
    trunk = open_trunk(f"file:{tmp_path}/net.keras", size)
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last")
    bank = Bank(trunk, "scale_bias", capacity=1, classes=2)
    bank.add(bound)
    images = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype("float32")
    np.testing.assert_allclose(bank(images, ["two"] * 2), bound.model(images), atol=1e-5)


RANDOM = np.random.default_rng(0)

LOOKS_AT_AXES = {
    "normalization of rows and channels": lambda x: layers.Normalization(
        (1, 3), mean=RANDOM.normal(size=(16, 8)), variance=RANDOM.uniform(0.5, 2, (16, 8))
    )(x),
    "positions": lambda x: x + RANDOM.normal(size=(16, 16, 8)).astype("float32"),
    "rescaling by pixel": lambda x: layers.Rescaling(RANDOM.uniform(0.5, 2, (16, 16, 1)).tolist())(x),
    "rows times columns": lambda x: layers.Multiply()(
        [layers.AveragePooling2D((16, 1))(x), layers.AveragePooling2D((1, 16))(x)]
    ),
    "sum with a vector": lambda x: layers.Add()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)]),
    "softmax of rows": lambda x: layers.Activation(lambda y: keras.ops.softmax(y, axis=1))(x),
    "softmax behind a kernel": lambda x: layers.DepthwiseConv2D(3, padding="same", activation="softmax")(x),
    "softmax behind a bias": lambda x: layers.Conv2D(8, 3, padding="same", activation="softmax")(x),
    "concatenated rows": lambda x: layers.Concatenate(1)([x, x]),
    "options": lambda x: layers.Reshape((16, 16, 8))(
        layers.MultiHeadAttention(2, 4)(layers.Reshape((256, 8))(x), layers.Reshape((256, 8))(x), use_causal_mask=True)
    ),
}


@pytest.mark.parametrize("block", LOOKS_AT_AXES)
def test_what_looks_at_axes_by_number_is_right_in_a_bank(block):
    image = keras.Input((16, 16, 3))
    x = layers.BatchNormalization(name="first")(layers.Conv2D(8, 3, padding="same")(image))
    x = LOOKS_AT_AXES[block](x)
    x = layers.ReLU()(layers.BatchNormalization(name="second")(layers.DepthwiseConv2D(3, padding="same")(x)))
    net = keras.Model(image, x)
    random_norms(net)
    trunk = Trunk(net, "axes", Preprocessing(16, "tf"))
    bound = bind(
        trunk, Task("a", ("x", "y"), trunk.preprocessing), "bias+last" if "bias" in block else "scale_bias+last"
    )
    bank = Bank(trunk, "bias" if "bias" in block else "scale_bias", capacity=1, classes=2)
    bank.add(bound)
    for number in (1, 5, 33):
        x = RANDOM.uniform(-1, 1, (number, 16, 16, 3)).astype("float32")
        np.testing.assert_allclose(bank(x, ["a"] * number), bound.model(x, training=False), atol=2e-5)


class Halved(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 0.5 * super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Halved(), "is a Halved, which may compute otherwise than Keras' BatchNormalization"),
        (lambda: layers.BatchNormalization(axis=1), "channels on another axis than the last"),
        (lambda: layers.LayerNormalization(axis=[1, 2]), "channels on another axis than the last"),
    ],
)
def test_slots_that_a_bank_cannot_fill_are_refused_by_name(layer, message):
    image = keras.Input((16, 16, 3))
    trunk = Trunk(keras.Model(image, layer()(layers.Conv2D(8, 3)(image))), "other", Preprocessing(16, "tf"))
    with pytest.raises(ModelPatchError, match=message):
        Bank(trunk)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: layers.Softmax(axis=0)(x),
        lambda x: x - keras.ops.mean(x, axis=-4, keepdims=True),
        lambda x: keras.ops.reshape(x, (-1, 4)),
        lambda x: layers.Lambda(lambda y: keras.ops.flip(y, axis=0))(x),
    ],
)
def test_a_trunk_that_mixes_up_the_images_of_a_batch_is_refused(mix):
    image = keras.Input((16, 16, 3))
    net = keras.Model(image, mix(layers.Conv2D(8, 3)(image)))
    with pytest.raises(ModelPatchError, match="computes an image otherwise with others in its batch"):
        Trunk(net, "mixes", Preprocessing(16, "tf"))


def test_a_trunk_whose_layers_take_parts_of_images_as_a_batch_is_accepted():
    image = keras.Input((16, 16, 3))
    rows = keras.ops.reshape(layers.Conv2D(8, 3, padding="same")(image), (-1, 16, 8))
    rows = layers.Conv1D(8, 3, padding="same")(rows)
    net = keras.Model(image, layers.BatchNormalization()(keras.ops.reshape(rows, (-1, 16, 16, 8))))
    assert Trunk(net, "rows", Preprocessing(16, "tf")).splits_images
