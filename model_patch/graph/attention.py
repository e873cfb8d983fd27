"""Opening Keras' multi-head attention: its projections become layers of a nested graph, which patches can reach."""

import keras

from model_patch.graph.rewrite import rewrite, walk

_TENSORS = ("query", "value", "key")


@keras.saving.register_keras_serializable(package="model_patch")
class KnownShape(keras.layers.Layer):
    """Gives its input, and says what shape it has where operations left sizes open.

    Args:
        shape: without the batch.
        **kwargs: options of `keras.layers.Layer`.
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.known_shape = tuple(shape)

    def call(self, inputs):
        return inputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs.shape[0], *self.known_shape), inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "shape": list(self.known_shape)}


def open_attention(model: keras.Model) -> keras.Model:
    """Returns the graph with each `MultiHeadAttention` as a graph of its own, over the same layers and variables.

    The nested graph has the layer's name, and its projections the names that Keras gives them, so variables keep their keys:
    `attention/query/kernel`. An attention that is called with a mask, in a fixed mode or for its scores remains a layer,
    and so does every subclass.

    Args:
        model: functional; returned itself where it has no such layer.
    """
    if not any(type(layer) is keras.layers.MultiHeadAttention for _, layer in walk(model)):
        return model
    opened: dict[tuple, keras.Model] = {}

    def call(layer, *args, **kwargs):
        given = dict(zip(_TENSORS, args, strict=False)) | kwargs
        tensors = {name: given.pop(name) for name in _TENSORS if given.get(name) is not None}
        if type(layer) is not keras.layers.MultiHeadAttention or any(given.values()) or given.get("training") is False:
            return layer(*args, **kwargs)
        key = (id(layer), *((name, x.shape) for name, x in tensors.items()))
        if key not in opened:
            # Some nets say of a layer that it gives another number of tokens than it does, which attention takes as well.
            inputs = {
                name: keras.Input((*[None] * (len(x.shape) - 2), x.shape[-1]), dtype=x.dtype)
                for name, x in tensors.items()
            }
            # The projections leave the number of tokens open, which the attention itself does not.
            shape = layer.compute_output_spec(**tensors).shape[1:]
            outputs = KnownShape(shape, name="shape")(layer.call(**inputs))
            opened[key] = keras.Model(list(inputs.values()), outputs, name=layer.name)
        return opened[key](list(tensors.values()))

    return rewrite(model, lambda path, layer: layer, call)
