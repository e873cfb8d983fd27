import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind, join
from model_patch.graph.rewrite import walk
from model_patch.kinds import TrainSpec
from model_patch.training.statistics import EstimateStatistics, estimate_statistics
from tests.conftest import same, snapshot


@pytest.fixture
def eager():
    """Runs TensorFlow's functions without tracing them: quicker, where each is called a few times."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def batches(images, *sizes):
    ends = np.cumsum(sizes)
    return [(images[end - size : end], None) for size, end in zip(sizes, ends, strict=True)]


def norm_inputs(model):
    """A net from images to a dict by layer name: the inputs `(batch, height, width, channels)` of its batch norms."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return keras.Model(model.input, {layer.name: layer.input for layer in norms})


def assert_statistics(bound, inputs, **tolerance):
    """Compares every batch norm of the task with its inputs, all images at once, in plain numpy."""
    layers = dict(walk(bound.features))
    for name, values in inputs.items():
        flat = np.reshape(values, (-1, values.shape[-1])).astype("float64")
        np.testing.assert_allclose(layers[name].moving_mean, flat.mean(0), **tolerance)
        np.testing.assert_allclose(layers[name].moving_variance, flat.var(0), **tolerance)


@pytest.mark.parametrize("sizes", [(5, 7), (11, 1), (1, 8, 3)])
def test_every_image_counts_the_same_in_every_layer(trunk, task, images, sizes):
    bound = bind(trunk, task, TrainSpec.parse("scale_bias+last", "batch"))
    reader = norm_inputs(bound.features)
    parts = [reader(x, training=True) for x, _ in batches(images, *sizes)]
    estimate_statistics(bound, batches(images, *sizes))
    inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert len(inputs) == 2
    assert_statistics(bound, inputs, rtol=1e-4, atol=1e-5)


def side_by_side(size=6):
    """Batch norms that none other comes before, on maps of different sizes: their inputs do not depend on the batches."""
    image = keras.Input((size, size, 3))
    maps = [image, keras.layers.AveragePooling2D(3)(image), keras.layers.Conv2D(4, size)(image)]
    pooled = [keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x)) for x in maps]
    model = keras.Model(image, keras.layers.Concatenate()(pooled))
    return Trunk(model, "side by side", Preprocessing(size, "none"))


@pytest.mark.parametrize("splits", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_statistics_do_not_depend_on_how_images_are_split_into_batches(splits, eager):
    """Random splits, the last image of each an outlier."""
    trunk, rng = side_by_side(), np.random.default_rng(0)
    bound = bind(trunk, Task("noise", ("a", "b"), trunk.preprocessing), TrainSpec.parse("scale_bias+last", "batch"))
    reader = norm_inputs(trunk.model)
    for _ in range(splits):
        sizes = [*rng.integers(1, 65, rng.integers(1, 4)), 1]
        images = rng.normal(size=(sum(sizes), 6, 6, 3)).astype("float32")
        images[-1] = 5 * rng.normal(size=3)
        estimate_statistics(bound, batches(images, *sizes))
        assert_statistics(bound, reader(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", ["trunk", "trunk+patch"])
def test_joined_tasks_weight_their_images_too(eager, share):
    """Tasks differ in how many images they have in each step; norms that they share see all of them."""
    trunk, rng = side_by_side(), np.random.default_rng(0)
    tasks = [Task(name, ("a", "b"), trunk.preprocessing) for name in ("one", "two")]
    joined = join(trunk, tasks, TrainSpec.parse("scale_bias+last", "batch"), share=share)
    reader = norm_inputs(trunk.model)
    steps = [
        {name: rng.normal(k, 1 + k, (size, 6, 6, 3)).astype("float32") for k, (name, size) in enumerate(step.items())}
        for step in ({"one": 9, "two": 2}, {"one": 1, "two": 7}, {"one": 4, "two": 1})
    ]
    of_task = {name: np.concatenate([step[name] for step in steps]) for name in ("one", "two")}
    estimate_statistics(joined, [(step, None) for step in steps])
    for name, bound in joined.tasks.items():
        images = np.concatenate(list(of_task.values())) if share == "trunk+patch" else of_task[name]
        assert_statistics(bound, reader(images), rtol=1e-4, atol=1e-4)


def test_one_graph_serves_all_sizes_of_batches(trunk, task, images):
    class CountsTraces(keras.layers.Layer):
        traces = 0

        def call(self, inputs):
            self.traces += 1
            return inputs

    counter = CountsTraces()
    counted = Trunk(keras.Model(trunk.model.input, counter(trunk.model.output)), "counted", trunk.preprocessing)
    bound = bind(counted, task, TrainSpec.parse("scale_bias+last", "batch"))
    counter.traces = 0
    estimate_statistics(bound, batches(images, 4, 5, 3))
    assert counter.traces <= 1


def test_nothing_but_the_tasks_own_statistics_moves(trunk, task, images):
    before = snapshot(trunk.variables())
    bound = bind(trunk, task, TrainSpec.parse("scale_bias+last", "batch"))
    learnt = {key: v for key, v in bound.patch_variables.items() if "moving" not in key} | bound.head_variables
    values = snapshot(learnt)
    estimate_statistics(bound, batches(images, 12))
    assert same(before, snapshot(trunk.variables())) and same(values, snapshot(learnt))


@pytest.mark.parametrize("train", ["last", "scale_bias+last", "depthwise+last"])
def test_the_trunks_statistics_stay(trunk, task, images, train):
    bound = bind(trunk, task, TrainSpec.parse(train, "frozen"))
    before = snapshot(bound.patch_variables)
    estimate_statistics(bound, batches(images, 12))
    assert same(before, snapshot(bound.patch_variables))


def test_no_batch_is_refused(trunk, task):
    with pytest.raises(ModelPatchError, match="no image came"):
        estimate_statistics(bind(trunk, task, TrainSpec.parse("scale_bias", "batch")), [])


@pytest.mark.parametrize("joins", [False, True])
def test_the_callback_gives_keras_own_fit_the_statistics_of_ours(trunk, task, images, labels, eager, joins):
    spec = TrainSpec.parse("scale_bias+last", "batch")
    trained = join(trunk, [task], spec) if joins else bind(trunk, task, spec)
    bound = trained.tasks[task.name] if joins else trained
    by_name = {task.name: images}, {task.name: labels}
    dataset = tf.data.Dataset.from_tensors(by_name if joins else (images, labels))
    trained.model.compile("sgd", {task.name: task.loss()} if joins else task.loss(), run_eagerly=True)
    trained.model.fit(dataset, verbose=0)
    moving = snapshot({key: v for key, v in bound.patch_variables.items() if "moving" in key})
    trained.model.fit(dataset, verbose=0, callbacks=[EstimateStatistics(trained, dataset)])
    found = snapshot({key: bound.patch_variables[key] for key in moving})
    estimate_statistics(trained, dataset)
    assert same(found, snapshot({key: bound.patch_variables[key] for key in moving})) and not same(moving, found)
