import keras
import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.graph.rewrite import functional, rewrite, walk
from tests.conftest import small_net


def _nested() -> keras.Model:
    """A classifier around a backbone around a block, with a bare `+` and a layer that is used twice."""
    inner_in = keras.Input((8, 8, 4))
    inner = keras.Model(inner_in, keras.layers.BatchNormalization(name="bn")(inner_in) + inner_in, name="block")
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 1, name="conv")(image)
    x = inner(x)
    twice = keras.layers.BatchNormalization(name="twice")
    x = keras.layers.Add(name="add")([twice(x), twice(x * 2.0)])
    backbone = keras.Model(image, x, name="backbone")
    outer = keras.Input((8, 8, 3))
    return keras.Model(outer, keras.layers.GlobalAveragePooling2D(name="pool")(backbone(outer)))


def _copy(layer):
    copy = type(layer).from_config(layer.get_config())
    copy.build_from_config(layer.get_build_config())
    copy.set_weights(layer.get_weights())
    return copy


def test_paths_name_layers_inside_nested_models():
    assert [path for path, _ in walk(_nested())] == [
        "backbone/conv",
        "backbone/block/bn",
        "backbone/twice",
        "backbone/add",
        "pool",
    ]


def test_layers_that_are_not_replaced_are_the_same_objects_and_the_others_are_not():
    model = small_net()
    replaced = rewrite(model, lambda path, layer: _copy(layer) if path.endswith("bn") else layer)
    for (path, old), (new_path, new) in zip(walk(model), walk(replaced), strict=True):
        assert path == new_path
        assert (new is old) == (not path.endswith("bn"))


def test_a_rewrite_with_copies_gives_the_same_output_to_the_last_bit():
    model, x = small_net(), np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    copied = rewrite(model, lambda path, layer: _copy(layer))
    assert np.array_equal(model(x), copied(x))


def test_nested_models_layers_used_twice_and_bare_operations_are_rewritten():
    model, x = _nested(), np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    replaced = rewrite(model, lambda path, layer: _copy(layer) if "BatchNorm" in type(layer).__name__ else layer)
    old, new = dict(walk(model)), dict(walk(replaced))
    assert old.keys() == new.keys()
    assert {path for path in old if old[path] is not new[path]} == {"backbone/block/bn", "backbone/twice"}
    assert np.array_equal(model(x), replaced(x))
    new["backbone/block/bn"].gamma.assign([2.0] * 4)
    assert not np.allclose(model(x), replaced(x)), "the replaced layer is part of the new graph"


def test_a_nested_model_in_which_nothing_changes_is_shared_whole():
    model = _nested()
    assert rewrite(model, lambda path, layer: layer).get_layer("backbone") is model.get_layer("backbone")


def test_call_decides_how_layers_are_applied():
    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        return outputs * 3.0 if layer.name == "pool" else outputs

    model, x = _nested(), np.ones((2, 8, 8, 3), "float32")
    np.testing.assert_allclose(rewrite(model, lambda p, layer: layer, call)(x), 3 * model(x), rtol=1e-6)


def test_sequential_models_become_graphs_over_the_same_layers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    graph = functional(model)
    assert [layer for _, layer in walk(graph)] == model.layers


def test_a_model_without_a_graph_is_refused_by_name():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelPatchError, match="'mine' is a subclassed Own without a layer graph"):
        functional(Own(name="mine"))
    with pytest.raises(ModelPatchError, match="'early' has no input shape yet"):
        functional(keras.Sequential([keras.layers.Dense(3)], name="early"))
