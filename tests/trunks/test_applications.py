import os
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.graph.rewrite import walk
from model_patch.layers import variables
from model_patch.preprocessing import Preprocessing
from model_patch.trunks import open_trunk
from model_patch.trunks.applications import DECIDED, NETS, SIZES, build, mode_of
from model_patch.trunks.weights import save_weights
from tests.conftest import same, snapshot

SMALL = "keras:MobileNet?alpha=0.25"


@pytest.fixture(scope="module")
def small():
    return open_trunk(f"{SMALL}&weights=none", 32)


def test_a_trunk_is_named_by_its_spec_knows_its_preprocessing_and_is_frozen(small):
    assert small.name == f"{SMALL}&weights=none"
    assert (small.preprocessing.image_size, small.preprocessing.mode) == (32, "tf")
    assert small.model.input_shape == (None, 32, 32, 3)
    assert small.model.trainable_variables == []


def test_the_list_of_nets_is_that_of_keras():
    assert len(NETS) >= 40
    assert {"MobileNetV2", "InceptionV3", "EfficientNetB0", "ResNet50", "ConvNeXtTiny"} < NETS.keys()
    assert SIZES.keys() < NETS.keys()


@pytest.mark.parametrize("name", NETS)
def test_images_are_scaled_as_the_nets_own_preprocess_input_does(name):
    images = np.random.default_rng(0).uniform(0, 255, (2, 5, 5, 3)).astype("float32")
    expected = sys.modules[NETS[name].__module__].preprocess_input(images.copy(), data_format="channels_last")
    scaled = Preprocessing(5, mode_of(NETS[name])).scale(images)
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("MobileNetV2", "tf"), ("DenseNet121", "torch"), ("ResNet50", "caffe"), ("MobileNetV3Small", "none")],
)
def test_each_family_has_the_mode_that_keras_documents(name, mode):
    assert mode_of(NETS[name]) == mode


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MobileNetV3Small", 224),
        ("InceptionV3", 299),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("EfficientNetB1", 240), ("EfficientNetV2B2", 260))),
    ],
)
def test_a_net_is_built_for_the_size_that_keras_builds_its_classifier_for(name, size):
    with keras.StatelessScope():  # Variables have shapes here, and take no memory.
        assert NETS[name](weights=None).input_shape[1:3] in ((size, size), (None, None))
    assert SIZES.get(name, 224) == size


@pytest.mark.slow
def test_a_trunk_has_the_size_of_its_net():
    trunk = open_trunk("keras:InceptionV3?weights=none")
    assert trunk.model.input_shape == (None, 299, 299, 3) and trunk.preprocessing.image_size == 299


@pytest.mark.parametrize(
    "name",
    [
        "Xception",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("InceptionV3", "EfficientNetB0", "ConvNeXtTiny")),
    ],
)
def test_keys_do_not_depend_on_what_was_built_before(name):
    with keras.StatelessScope():
        nets = [build(name, 96) for _ in range(2)]
    first, second = ([key for path, layer in walk(net) for key in variables(path, layer)] for net in nets)
    assert first == second and len(first) > 100


def test_opening_a_trunk_leaves_keras_names_and_pythons_random_numbers_as_they_were():
    before, random_before = keras.layers.Dense(1).name, random.getstate()
    open_trunk(f"{SMALL}&weights=none", 32)
    number = int(before.rpartition("_")[2]) if "_" in before else 0
    assert random.getstate() == random_before
    assert keras.layers.Dense(1).name == f"dense_{number + 1}"


CACHED = {0.25: "mobilenet_2_5_128_tf_no_top.h5", 0.5: "mobilenet_5_0_128_tf_no_top.h5"}

OTHER_PROCESS = f"""
import keras
from model_patch import ModelPatchError, open_trunk
keras.layers.Dense(3).build((1, 2))
trunk = open_trunk("{SMALL}&weights=none", 48)
print("said", trunk.fingerprint(trunk.variables()))
for alpha in (0.25, 0.5, 0.75):
    try:
        trunk = open_trunk(f"keras:MobileNet?alpha={{alpha}}", 128)
        print("said", trunk.fingerprint(trunk.variables()))
    except ModelPatchError as error:
        print("said", error)
"""


@pytest.fixture(scope="module")
def other_process(tmp_path_factory):
    """What a process without a network says of random and of cached weights: Keras reads KERAS_HOME when it is imported."""
    home = tmp_path_factory.mktemp("home")
    cache = home / "models"
    cache.mkdir()
    trunk = open_trunk(f"{SMALL}&weights=none&seed=5", 128)
    trunk.model.save(cache / CACHED[0.25])
    (cache / CACHED[0.5]).write_bytes((cache / CACHED[0.25]).read_bytes()[:50_000])
    closed = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # Nobody listens at that port.
    environment = {**os.environ, **closed, "no_proxy": "", "KERAS_HOME": str(home)}
    command = [sys.executable, "-c", OTHER_PROCESS]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=1800)
    said = [line.removeprefix("said ") for line in ran.stdout.splitlines() if line.startswith("said ")]
    return SimpleNamespace(said=said, cache=cache, whole=trunk.fingerprint(trunk.variables()))


def test_random_weights_are_those_of_the_seed_in_this_process_and_in_another(small, other_process):
    keys = small.variables().keys()
    again, other = (open_trunk(f"{SMALL}&weights=none&seed={seed}", 32) for seed in (0, 1))
    assert again.fingerprint(keys) == small.fingerprint(keys) != other.fingerprint(keys)
    assert other_process.said[0] == small.fingerprint(keys)


def _save(trunk, path):
    if path.suffix == ".safetensors":
        save_weights(trunk, path)
    elif path.name.endswith(".weights.h5"):
        trunk.model.save_weights(path)
    else:
        trunk.model.save(path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5", ".keras", ".h5"])
def test_weights_are_read_from_files_of_every_kind(small, tmp_path, suffix):
    path = _save(small, tmp_path / f"trunk{suffix}")
    loaded = open_trunk(f"{SMALL}&weights={path}&seed=1", 32)  # By itself, another seed gives other values, see above.
    assert same(snapshot(loaded.variables()), snapshot(small.variables()))


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5", ".keras", ".h5"])
def test_weights_of_another_net_and_damaged_weights_are_refused(small, tmp_path, suffix):
    path = _save(small, tmp_path / f"trunk{suffix}")
    with pytest.raises(ModelPatchError, match=rf"{re.escape(str(path))} do not fit .*MobileNet.*: "):
        open_trunk(f"keras:MobileNet?alpha=0.5&weights={path}", 32)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ModelPatchError, match=rf"{re.escape(str(path))} (is damaged|do not fit)"):
        open_trunk(f"{SMALL}&weights={path}", 32)


def test_variables_that_a_file_lacks_are_named_and_do_not_stay_random(small, tmp_path):
    shallow = keras.Model(small.model.input, small.model.get_layer("conv_pw_11_relu").output)
    shallow.save_weights(tmp_path / "shallow.weights.h5")
    with pytest.raises(ModelPatchError, match=r"shallow.weights.h5 do not fit MobileNet without its top: "):
        open_trunk(f"{SMALL}&weights={tmp_path / 'shallow.weights.h5'}", 32)


def test_options_reach_the_constructor():
    small, large = (
        open_trunk(f"keras:MobileNetV3Small?weights=none&minimalistic={flag}", 32) for flag in ("true", "false")
    )
    assert 0 < small.num_parameters() < large.num_parameters()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keras:MobilNetV2", "unknown net 'MobilNetV2' in 'keras:MobilNetV2': did you mean MobileNetV2 or "),
        ("keras:", "unknown net '' in 'keras:': expected one of ConvNeXtBase, "),
        ("keras:zzz", "unknown net 'zzz' in 'keras:zzz': expected one of ConvNeXtBase, "),
        ("keras:MobileNetV2#Conv1", "'keras:MobileNetV2#Conv1' has a part after '#'"),
        (
            "keras:MobileNetV2?width=1",
            "unknown option 'width' in 'keras:MobileNetV2?width=1': expected one of alpha, seed, weights",
        ),
        (
            "keras:VGG16?pooling=max",
            "unknown option 'pooling' in 'keras:VGG16?pooling=max': expected one of seed, weights",
        ),
        ("keras:MobileNetV2?alpha=wide", "alpha=wide in 'keras:MobileNetV2?alpha=wide' is not a number, true or false"),
        ("keras:MobileNetV2?seed=0.5", "seed=0.5 in 'keras:MobileNetV2?seed=0.5' is not a whole number"),
        (
            "keras:MobileNetV2?weights=random",
            "weights=random in 'keras:MobileNetV2?weights=random' is unknown",
        ),
        ("keras:MobileNetV2?weights=nowhere.h5", "the weights file nowhere.h5 does not exist"),
        (
            "keras:InceptionV3?weights=none",
            "keras:InceptionV3 cannot be built at 32 px: Input size must be at least 75x75",
        ),
        (
            "keras:MobileNetV2?alpha=0.4",
            "keras:MobileNetV2 cannot be built at 32 px, alpha=0.4: If imagenet weights are",
        ),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_sentence(text, message):
    with pytest.raises(ModelPatchError, match=re.escape(message)) as raised:
        open_trunk(text, 32)
    assert "\n" not in str(raised.value)


def test_no_argument_that_a_trunk_decides_can_be_given():
    for argument in DECIDED:
        with pytest.raises(ModelPatchError, match=f"unknown option '{argument}'"):
            open_trunk(f"keras:MobileNetV2?{argument}=1")


def test_the_cache_is_used_and_what_is_not_whole_in_it_is_not_and_no_file_is_left(other_process):
    _, cached, *refused = other_process.said
    assert cached == other_process.whole
    assert len(refused) == 2
    for said in refused:
        assert said.startswith(
            f"the ImageNet weights of MobileNet are not whole in {other_process.cache} and cannot be downloaded ("
        )
        assert said.endswith("or give weights=PATH or weights=none")
    assert "delete its file there if there is one, and connect to the network, " in refused[0]
    url, name = re.search(r"or fetch (https://\S+) elsewhere and put it there as (\S+),", refused[1]).groups()
    assert url.endswith(f"/mobilenet/{name}") and name == "mobilenet_7_5_128_tf_no_top.h5"
    left = {path.name for path in other_process.cache.iterdir()}
    assert left == set(CACHED.values()), "nothing new, and nothing half"
