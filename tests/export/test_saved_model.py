import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.data import open_data
from model_patch.data.decoding import decode
from model_patch.data.pipeline import batches
from model_patch.export import clean_saved_model, export
from model_patch.export.saved_model import export_saved_model, read_task
from model_patch.predict import predict
from model_patch.preprocessing import RESIZE
from tests.conftest import small_net


def in_memory(bound, pixels):
    return np.array(tf.nn.softmax(bound.model(bound.task.preprocessing(pixels), training=False)))


@pytest.fixture
def pixels():
    return np.random.default_rng(4).integers(0, 256, (5, 40, 24, 3)).astype("float32")


def test_a_process_without_this_package_gets_the_same_predictions(trained, pixels, tmp_path, one_clean_process):
    export_saved_model(trained, tmp_path / "task")
    with one_clean_process(clean_saved_model.__file__) as run:
        (predictions,) = run([(tmp_path / "task", pixels, ())])
    expected = in_memory(trained, pixels)
    np.testing.assert_allclose(predictions["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(tf.nn.softmax(predictions["logits"]), expected, atol=1e-5)
    assert [x.decode() for x in predictions["label"]] == [trained.task.labels[i] for i in expected.argmax(-1)]


@pytest.mark.parametrize("mode", ["caffe", "torch"])  # The other modes do less.
def test_every_preprocessing_is_part_of_it(images, pixels, mode, tmp_path):
    trunk = Trunk(small_net(), "test", Preprocessing(32, mode))
    bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "last")
    export_saved_model(bound, tmp_path / "task")
    serve = tf.saved_model.load(tmp_path / "task").signatures["serving_default"]
    for batch in (pixels, pixels[:1], pixels[:, :7, :9]):
        np.testing.assert_allclose(serve(images=batch)["probabilities"], in_memory(bound, batch), atol=1e-5)


def test_encoded_files_of_different_sizes_are_predicted_as_their_pixels(trained, tmp_path):
    rng, contents = np.random.default_rng(0), []
    for name, size in (("a.png", (20, 30)), ("b.jpg", (64, 48)), ("c.bmp", (32, 32)), ("d.gif", (9, 50))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), "uint8")).save(tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    export_saved_model(trained, tmp_path / "task")
    predictions = tf.saved_model.load(tmp_path / "task").signatures["encoded"](contents=tf.constant(contents))
    for content, probabilities in zip(contents, predictions["probabilities"], strict=True):
        np.testing.assert_allclose(probabilities, in_memory(trained, decode(content)[None])[0], atol=1e-5)


def test_each_weight_is_stored_once_and_the_labels_are_an_asset(task, tmp_path):
    net = keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False, input_shape=(32, 32, 3))
    trunk = Trunk(net, "test", task.preprocessing)
    bound = bind(trunk, task, "scale_bias+last")
    export_saved_model(bound, tmp_path / "task")
    weights = 4 * sum(int(np.prod(v.shape)) for v in bound.model.weights)
    stored = sum(f.stat().st_size for f in (tmp_path / "task" / "variables").iterdir())
    assert weights < stored < 1.1 * weights
    assert (tmp_path / "task" / "assets" / "labels.txt").read_text().split() == list(task.labels)


def test_tasks_that_differ_in_values_alone_are_traced_once(trunk, pixels, tmp_path):
    labels = {"first": ("a", "b"), "second": ("c", "d"), "wider": ("a", "b", "c"), "calibrated": ("e", "f")}
    tasks = [
        bind(
            trunk, Task(name, each, trunk.preprocessing, temperature=2.0, use_temperature=name == "calibrated"), seed=i
        )
        for i, (name, each) in enumerate(labels.items())
    ]
    for bound in tasks:
        for variable in bound.patch_variables.values():
            variable.assign(variable * np.random.default_rng(len(bound.task.name)).uniform(0.7, 1.3, variable.shape))
    export("saved_model", tasks, tmp_path / "out")
    graphs = {name: (tmp_path / "out" / name / "saved_model.pb").read_bytes() for name in labels}
    assert graphs["first"] == graphs["second"] == graphs["calibrated"] != graphs["wider"]
    for bound in tasks:
        folder, task = tmp_path / "out" / bound.task.name, bound.task
        expected = task.read(np.array(bound.model(task.preprocessing(pixels), training=False)))
        given = tf.saved_model.load(folder).signatures["serving_default"](images=tf.constant(pixels))
        for name, each in expected.items():
            np.testing.assert_allclose(given[name], each, atol=1e-5)
        assert [label.decode() for label in given["label"].numpy()] == task.texts(expected)
        assert read_task(folder) == task


def test_an_existing_folder_is_neither_overwritten_nor_touched(trained, tmp_path):
    (tmp_path / "task").mkdir()
    with pytest.raises(ModelPatchError, match="task exists: choose another --output, or delete it"):
        export_saved_model(trained, tmp_path / "task")
    assert list(tmp_path.rglob("*")) == [tmp_path / "task"]


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelPatchError, match="file/task cannot be written"):
        export_saved_model(trained, tmp_path / "file" / "task")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("resizing", "alpha", "format", "name"),
    [
        pytest.param(resizing, alpha, format, name, marks=[pytest.mark.slow][: i != k])
        for i, (resizing, alpha) in enumerate(zip(RESIZE, ("white", "drop", "#2060a0"), strict=True))
        for k, (format, name) in enumerate(
            (("saved_model", "encoded"), ("signatures", "two.encoded"), ("bank", "encoded"))
        )
    ],
)
def test_training_prediction_and_exports_bring_files_to_the_net_alike(trunk, resizing, alpha, format, name, tmp_path):
    rng = np.random.default_rng(0)
    for part, sizes in (("train", [(9, 50), (40, 40)]), ("test", [(64, 20), (33, 34)])):
        for label, size in zip("ab", sizes, strict=True):
            file = tmp_path / "images" / part / label / "x.png"
            file.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (*size, 4), "uint8")).save(file)
    data = open_data(f"folder:{tmp_path}/images")
    prepared = dataclasses.replace(trunk.preprocessing, resizing=resizing, alpha=alpha)
    bound = bind(trunk, Task("two", data.labels, prepared), "last")
    paths = sorted(str(path) for path in tmp_path.glob("images/train/*/*"))
    contents = tf.constant([Path(path).read_bytes() for path in paths])
    ((trained, labels),) = batches(data.train, prepared, 2)
    expected = np.zeros((2, 2), "float32")
    expected[labels.numpy()] = tf.nn.softmax(bound.model(trained, training=False))
    for prediction, row in zip(predict(bound, paths), expected, strict=True):
        np.testing.assert_allclose(list(prediction.probabilities.values()), row, atol=1e-5)
    export(format, [bound], tmp_path / format)
    (folder,) = {path.parent for path in (tmp_path / format).rglob("saved_model.pb")}
    signature = tf.saved_model.load(folder).signatures[name]
    tasks = {"tasks": tf.constant(["two", "two"])} if format == "bank" else {}
    np.testing.assert_allclose(signature(contents=contents, **tasks)["probabilities"], expected, atol=1e-5)


def test_a_bank_of_tasks_that_take_images_differently_is_refused(trunk, task, tmp_path):
    cropped = dataclasses.replace(task, name="cropped", preprocessing=Preprocessing(32, "tf", resizing="crop"))
    with pytest.raises(ModelPatchError, match="'shapes' and 'cropped' bring images to the net differently"):
        export("bank", [bind(trunk, task), bind(trunk, cropped)], tmp_path / "bank")
