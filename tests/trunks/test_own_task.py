import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Patch, Task, bind, bind_patch, open_trunk, own_task

FIXTURES = Path(__file__).parent.parent / "fixtures"
TEACHABLE = FIXTURES / "teachable"
SPEC = f"file:{TEACHABLE / 'keras_model.h5'}"


def test_an_export_of_teachable_machine_opens_as_a_trunk_and_its_classes_are_the_first_task(tmp_path):
    expected = np.load(TEACHABLE / "expected.npz")
    trunk = open_trunk(SPEC)
    assert trunk.model.output.shape == (None, 10)  # Of the layer before the classes.
    own = own_task(SPEC)
    assert own.task.labels == ("Cat", "My dog", "Nothing")
    own.patch().save(tmp_path / "own.safetensors")
    loaded = bind_patch(trunk, Patch.load(tmp_path / "own.safetensors"))
    for bound in (own, loaded):
        probabilities = keras.ops.softmax(bound.model(expected["images"]))
        np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-5)
    second = bind(trunk, Task("second", ("a", "b"), trunk.preprocessing), "scale_bias+depthwise+last")
    assert second.counts().patch == 2 * 2 * 8 + 9 * 8


def test_any_classifier_that_ends_in_softmax_has_a_task_of_its_own(tmp_path):
    expected = np.load(FIXTURES / "keras2_expected.npz")
    labels = tmp_path / "classes.txt"
    labels.write_text("a\nb\n\nc\nd\ne\n")
    for name in ("keras2_classifier.h5", "keras2_classifier.keras"):
        own = own_task(f"file:{FIXTURES / name}", labels, "five")
        assert (own.task.name, own.task.labels) == ("five", tuple("abcde"))
        probabilities = keras.ops.softmax(own.model(expected["images"]))
        np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-5)


def test_what_has_no_task_of_its_own_is_refused(tmp_path):
    shutil.copy(TEACHABLE / "keras_model.h5", tmp_path)
    headless = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
    headless.save(tmp_path / "headless.keras")
    (tmp_path / "two.txt").write_text("0 a\n1 b\n")
    for make, message in (
        (lambda: own_task("bundled"), "'bundled' is no whole classifier: expected file:PATH or tfjs:PATH"),
        (lambda: own_task(f"{SPEC}#sequential"), "without #layer"),
        (lambda: own_task(f"file:{tmp_path}/keras_model.h5"), "labels.txt cannot be read"),
        (lambda: own_task(SPEC, tmp_path / "two.txt"), "has 3 classes and 2 labels"),
        (lambda: open_trunk(f"file:{tmp_path}/headless.keras?top=false"), "no dense layer with softmax"),
        (lambda: open_trunk(f"{SPEC}?top=no"), "top=no in .* is neither true nor false"),
    ):
        with pytest.raises(ModelPatchError, match=message):
            make()
