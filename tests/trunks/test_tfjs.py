import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Task, bind, bind_patch, open_trunk, own_task
from model_patch.trunks.file import load_model
from tests.conftest import train_steps
from tests.trunks.tfjs_files import write_tfjs

TEACHABLE = Path(__file__).parent.parent / "fixtures" / "teachable"
H5 = TEACHABLE / "keras_model.h5"


@pytest.fixture(scope="module")
def model():
    return load_model(H5)


@pytest.fixture(scope="module")
def expected():
    return np.load(TEACHABLE / "expected.npz")


@pytest.mark.parametrize(("quantised", "tolerance"), [("", 1e-6), ("uint16", 1e-4), ("float16", 1e-3), ("uint8", 0.03)])
def test_a_layers_model_opens_with_its_weights_however_they_are_stored(model, expected, tmp_path, quantised, tolerance):
    path = write_tfjs(H5, model, tmp_path / "model", quantised, shards=3)
    trunk = open_trunk(f"tfjs:{path}#sequential")
    same = open_trunk(f"file:{H5}#sequential")
    images = expected["images"]
    np.testing.assert_allclose(trunk.model(images), same.model(images), atol=tolerance)
    assert trunk.variables().keys() == same.variables().keys()
    if not quantised:  # What a patch leaves frozen is the same net.
        bound = bind(trunk, Task("two", ("a", "b"), trunk.preprocessing), "scale_bias+last")
        train_steps(bound, images, np.array([0, 1]), steps=1)
        np.testing.assert_allclose(bind_patch(same, bound.patch()).model(images), bound.model(images), atol=1e-5)


def test_the_classes_of_a_model_of_teachable_machine_in_javascript_are_a_task(model, expected, tmp_path):
    path = write_tfjs(H5, model, tmp_path / "model")
    (path.parent / "metadata.json").write_text(json.dumps({"labels": ["Cat", "My dog", "Nothing"], "imageSize": 32}))
    own = own_task(f"tfjs:{path.parent}")
    assert own.task.labels == ("Cat", "My dog", "Nothing")
    probabilities = keras.ops.softmax(own.model(expected["images"]))
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-5)


def test_what_is_no_layers_model_is_refused_in_one_sentence(model, tmp_path):
    path = write_tfjs(H5, model, tmp_path / "model")
    contents = json.loads(path.read_text())
    (entry, *rest) = contents["weightsManifest"][0]["weights"]
    group = contents["weightsManifest"][0]
    function = {"class_name": "Lambda", "config": {"name": "f", "function": ["gASV", None, None]}}
    lambdas = {"class_name": "Sequential", "config": {"name": "s", "layers": [function]}}

    def manifest(**changes):
        return {"weightsManifest": [group | changes]}

    cases = {
        "no_model": ({"modelTopology": None}, "is damaged, or is no model of TensorFlow.js"),
        "graph": ({"format": "graph-model"}, "is a graph model, which has no layers"),
        "lambda": ({"modelTopology": lambdas}, "has a Lambda layer, which is Python code, and is not run"),
        "unknown": (
            {"modelTopology": {"class_name": "Sequential", "config": [{"class_name": "Nothing", "config": {}}]}},
            "cannot be loaded as a Keras model",
        ),
        "outside": (manifest(paths=["../weights.bin"]), "names weights outside its folder"),
        "absent": (manifest(paths=["nothing.bin"]), "cannot be read"),
        "less": (manifest(weights=rest), "bytes are left over"),
        "text": (manifest(weights=[entry | {"dtype": "string"}, *rest]), "is of type string"),
        "renamed": (manifest(weights=[entry | {"name": "other/kernel"}, *rest]), "are not those of its layers"),
    }
    for name, (changes, message) in cases.items():
        folder = tmp_path / name
        shutil.copytree(path.parent, folder)
        (folder / "model.json").write_text(json.dumps(contents | changes))
        with pytest.raises(ModelPatchError, match=message) as raised:
            open_trunk(f"tfjs:{folder}")
        assert "\n" not in str(raised.value), name
    (folder / "group1-shard1of1.bin").write_bytes(b"1234")
    (folder / "model.json").write_text(json.dumps(contents))
    with pytest.raises(ModelPatchError, match="are damaged, or of another format"):
        open_trunk(f"tfjs:{folder}")
    with pytest.raises(ModelPatchError, match="does not exist: expected tfjs:PATH"):
        open_trunk(f"tfjs:{tmp_path}")
