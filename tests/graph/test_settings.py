import keras
import pytest

from model_patch import ModelPatchError, Preprocessing, Trunk
from model_patch.trunks import open_trunk
from tests.conftest import SIZE, small_net


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_data_format", "channels_first"),
        ("floatx", "float16"),
        ("floatx", "bfloat16"),
        ("floatx", "float64"),
    ],
)
def test_a_setting_of_keras_that_nets_cannot_work_with_is_named(name, value):
    before, change = getattr(keras.config, name)(), getattr(keras.config, f"set_{name}")
    net = small_net()
    change(value)
    try:
        for make in (lambda: open_trunk("bundled"), lambda: Trunk(net, "own", Preprocessing(SIZE, "tf"))):
            with pytest.raises(
                ModelPatchError, match=rf"Keras is set to {name}={value}, .* keras.json .*set_{name}\('{before}'"
            ):
                make()
    finally:
        change(before)
