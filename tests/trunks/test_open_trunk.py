from pathlib import Path

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.spec import parse
from model_patch.trunks import bundled, open_trunk
from model_patch.trunks.weights import load_weights, save_weights
from tests.conftest import small_net

FIXTURES = Path(__file__).parent.parent / "fixtures"
SMALL = "keras:MobileNetV2?alpha=0.35&weights=none"


def test_a_random_trunk_can_be_had_again_by_its_seed():
    one, two, other = open_trunk(SMALL, 32), open_trunk(SMALL, 32), open_trunk(f"{SMALL}&seed=1", 32)
    keys = sorted(one.variables())
    assert one.fingerprint(keys) == two.fingerprint(keys) != other.fingerprint(keys)


def test_weights_are_saved_and_loaded_whole_and_the_bundled_trunk_is_made_of_them(tmp_path):
    source = open_trunk(f"{SMALL}&seed=7", 32)
    save_weights(source, tmp_path / "trunk.safetensors")
    keys = sorted(source.variables())
    opened = open_trunk(f"keras:MobileNetV2?alpha=0.35&weights={tmp_path}/trunk.safetensors", 48)
    shipped = bundled.open_bundled(parse("bundled"), folder=tmp_path)
    assert source.fingerprint(keys) == opened.fingerprint(keys) == shipped.fingerprint(keys)
    assert shipped.preprocessing.image_size == 48
    wider = open_trunk("keras:MobileNetV2?alpha=0.5&weights=none", 32)
    before = wider.fingerprint(wider.variables())
    with pytest.raises(ModelPatchError, match="do not fit keras:MobileNetV2.*of another shape: "):
        load_weights(wider, tmp_path / "trunk.safetensors")
    assert wider.fingerprint(wider.variables()) == before


@pytest.mark.parametrize("name", ["keras2_classifier.h5", "keras2_classifier.keras"])
def test_files_that_keras_2_wrote_open(name):
    trunk = open_trunk(f"file:{FIXTURES / name}")
    assert trunk.num_parameters() > 0


def test_a_saved_net_is_opened_whole_cut_or_at_a_nested_model(tmp_path):
    inner = small_net()
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.Dense(4, name="logits")(inner(image))).save(tmp_path / "outer.keras")
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    nested = open_trunk(f"file:{tmp_path}/outer.keras#small")
    assert np.array_equal(nested.model(x), inner(x))
    cut = open_trunk(f"file:{tmp_path}/outer.keras#small/stem_bn", 48)
    assert cut.model.output.shape[-1] == 8 and cut.preprocessing.image_size == 48
    with pytest.raises(ModelPatchError, match="smal"):
        open_trunk(f"file:{tmp_path}/outer.keras#smal")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kers:x", "unknown trunk 'kers': expected one of bundled, file, .*keras, .*slim"),
        ("keras:MobilNetV2", "unknown net 'MobilNetV2'.*did you mean MobileNetV2"),
        ("keras:MobileNetV2?foo=1", "unknown option 'foo'"),
        ("keras:MobileNetV2?weights=none&alpha=x", "alpha=x in .* is not a number"),
        ("keras:MobileNetV2?weights=nowhere.h5", "the weights file nowhere.h5 does not exist"),
        ("keras:InceptionV3?weights=none", "keras:InceptionV3 cannot be built at 32 px"),
        ("file:nowhere.keras", "nowhere.keras does not exist"),
        ("file:setup.py", "setup.py"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_sentence(text, message):
    with pytest.raises(ModelPatchError, match=message):
        open_trunk(text, 32)
