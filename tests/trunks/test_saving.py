import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.trunks import open_trunk
from model_patch.trunks.saving import save_trunk, saved_spec
from tests.conftest import same, small_net, snapshot


@pytest.mark.parametrize("spec", ["bundled", "keras:MobileNetV2?alpha=0.35&weights=none&seed=3", "file"])
def test_a_trained_trunk_is_opened_again_by_its_new_spec(spec, tmp_path):
    if spec == "file":
        small_net().save(tmp_path / "net.keras")
        spec = f"file:{tmp_path}/net.keras?preprocessing=unit"
    trunk = open_trunk(spec, 32)
    for variable in trunk.variables().values():
        variable.assign(np.random.default_rng(0).uniform(0.5, 1.5, variable.shape))
    saved = save_trunk(trunk, tmp_path / "trunks" / "row-seed0")
    again = open_trunk(saved, 32)
    assert same(snapshot(trunk.variables()), snapshot(again.variables()))
    assert again.preprocessing == trunk.preprocessing
    keys = list(trunk.variables())
    assert again.fingerprint(keys) == trunk.fingerprint(keys) != open_trunk(spec, 32).fingerprint(keys)
    assert len(list((tmp_path / "trunks").iterdir())) == 1


def test_the_new_spec_keeps_the_options_of_the_net():
    spec = saved_spec("keras:MobileNetV2?alpha=0.35&weights=imagenet&seed=3", "runs/a/trunks/trunk-seed0")
    assert spec == "keras:MobileNetV2?alpha=0.35&weights=runs/a/trunks/trunk-seed0.safetensors"


@pytest.mark.parametrize(
    ("spec", "saved"),
    [
        ("keras:EfficientNetB0", "file:stem.keras"),
        ("keras:EfficientNetB0?weights=none", "keras:EfficientNetB0?weights=stem.safetensors"),
        ("slim:model.ckpt", "file:stem.keras"),
    ],
)
def test_a_net_that_weights_alone_do_not_make_again_is_saved_whole(spec, saved):
    assert saved_spec(spec, "stem") == saved


def test_a_path_that_cannot_stand_in_a_spec_is_refused():
    with pytest.raises(ModelPatchError, match=r"runs/a&b/trunk.safetensors cannot be part of a spec"):
        saved_spec("bundled", "runs/a&b/trunk")
