"""Small random nets over every layer class of Keras that has a state, noise or axes, and over bare operations.

`RECIPES` holds a use of each class of `keras.layers` on a map `(batch, height, width, channels)`, `NO_IMAGES` the classes that
have no place in a net of images, each with the reason. Together they are all of them: a test says so.
"""

import inspect
import math

import keras
import numpy as np
from keras import layers, ops

SIZE = 16

NO_IMAGES = {
    "FlaxLayer": "needs JAX",
    "HashedCrossing": "takes strings or categories",
    "Hashing": "takes strings or categories",
    "InputLayer": "is the input of every net here",
    "IntegerLookup": "takes categories and holds a table",
    "JaxLayer": "needs JAX",
    "Layer": "is a base class",
    "MaxNumBoundingBoxes": "takes boxes",
    "StringLookup": "takes strings",
    "TFSMLayer": "is a SavedModel, see tests/trunks/test_hub.py",
    "TextVectorization": "takes strings",
    "TorchModuleWrapper": "needs PyTorch",
    "Wrapper": "is a base class",
}


def classes() -> dict[str, type[keras.Layer]]:
    """Returns every layer class of Keras, by its own name."""
    found = [each for each in vars(layers).values() if inspect.isclass(each) and issubclass(each, keras.Layer)]
    return {each.__name__: each for each in found}


def sequence(x):
    return layers.Reshape((-1, x.shape[-1]))(x)


def volume(x):
    return layers.Reshape((*x.shape[1:3], x.shape[3] // 2, 2))(x)


def pool(x):
    return layers.AveragePooling2D(4)(x) if min(x.shape[1:3]) >= 8 else x


def vector(x):
    return layers.GlobalAveragePooling2D()(x)


def rgb(x):
    return layers.Conv2D(3, 1)(x)


def numbers(x):
    """Small whole numbers, from a net's input."""
    return layers.Discretization([60.0, 120.0, 180.0])(layers.AveragePooling2D(4)(x))


def other(x, channels=None):
    return layers.Conv2D(channels or x.shape[-1], 1)(x)


def by_rows(x):
    return ops.softmax(x, axis=1)


R = np.random.Generator


def axis(r: R, rank: int = 4, batch: bool = False) -> int:
    """Any axis, counted from the front or the back; that of the batch only if `batch`."""
    number = int(r.integers(0 if batch else 1, rank))
    return number - rank * int(r.integers(2))


def merged(layer_class, **options):
    def apply(r: R, x):
        second = [other(x), layers.GlobalMaxPooling2D(keepdims=True)(other(x)), vector(other(x))][int(r.integers(2))]
        inputs = [x, second] if layer_class is layers.Subtract or r.integers(2) else [second, x, x]
        return layer_class(**options)(inputs[:2] if layer_class is layers.Subtract else inputs)

    return apply


def on(shaped, make):
    """A recipe that calls a layer on a map that was brought to another shape."""
    return lambda r, x: make(r)(shaped(x))


def simple(make):
    return lambda r, x: make(r)(x)


def augment(name, **options):
    def apply(r: R, x):
        layer_class = getattr(layers, name)
        ranged = {"value_range": (-9.0, 9.0)} if "value_range" in inspect.signature(layer_class).parameters else {}
        return layer_class(**options | ranged)(rgb(x))

    return apply


def attention(layer_class, *arguments, **options):
    def apply(r: R, x):
        x = sequence(layers.AveragePooling2D(4)(x))
        if layer_class in (layers.Attention, layers.AdditiveAttention):
            return layer_class(*arguments, **options)([x, x])
        return layer_class(*arguments, **options)(x, value=x, use_causal_mask=bool(r.integers(2)))

    return apply


def recurrent(make):
    return lambda r, x: make(r)(sequence(layers.AveragePooling2D(4)(x)))


POOLS = {"padding": "same"}

RECIPES = {
    "Activation": simple(lambda r: layers.Activation(r.choice(["gelu", "softmax", "log_softmax", "relu6", "tanh"]))),
    "ActivityRegularization": simple(lambda r: layers.ActivityRegularization(l2=1e-4)),
    "AdaptiveAveragePooling1D": on(sequence, lambda r: layers.AdaptiveAveragePooling1D(4)),
    "AdaptiveAveragePooling2D": simple(lambda r: layers.AdaptiveAveragePooling2D(4)),
    "AdaptiveAveragePooling3D": on(volume, lambda r: layers.AdaptiveAveragePooling3D((4, 4, 2))),
    "AdaptiveMaxPooling1D": on(sequence, lambda r: layers.AdaptiveMaxPooling1D(4)),
    "AdaptiveMaxPooling2D": simple(lambda r: layers.AdaptiveMaxPooling2D(4)),
    "AdaptiveMaxPooling3D": on(volume, lambda r: layers.AdaptiveMaxPooling3D((4, 4, 2))),
    "Add": merged(layers.Add),
    "AdditiveAttention": attention(layers.AdditiveAttention, dropout=0.3),
    "AlphaDropout": simple(lambda r: layers.AlphaDropout(0.3)),
    "Attention": attention(layers.Attention, dropout=0.3, use_scale=True),
    "AugMix": augment("AugMix"),
    "AutoContrast": augment("AutoContrast"),
    "Average": merged(layers.Average),
    "AveragePooling1D": on(sequence, lambda r: layers.AveragePooling1D(2, **POOLS)),
    "AveragePooling2D": simple(lambda r: layers.AveragePooling2D(2, **POOLS)),
    "AveragePooling3D": on(volume, lambda r: layers.AveragePooling3D(2, **POOLS)),
    "BatchNormalization": simple(lambda r: layers.BatchNormalization(axis(r))),
    "Bidirectional": recurrent(lambda r: layers.Bidirectional(layers.GRU(3, dropout=0.2, return_sequences=True))),
    "CenterCrop": simple(lambda r: layers.CenterCrop(7, 6)),
    "Concatenate": lambda r, x: layers.Concatenate(axis(r, batch=True))([x, other(x)]),
    "Conv1D": on(sequence, lambda r: layers.Conv1D(6, 3, activation=r.choice(["softmax", "relu"]))),
    "Conv1DTranspose": on(sequence, lambda r: layers.Conv1DTranspose(6, 3)),
    "Conv2D": simple(lambda r: layers.Conv2D(6, int(r.integers(1, 4)), activation=r.choice(["softmax", "relu"]))),
    "Conv2DTranspose": simple(lambda r: layers.Conv2DTranspose(6, 3)),
    "Conv3D": on(volume, lambda r: layers.Conv3D(4, 2)),
    "Conv3DTranspose": on(volume, lambda r: layers.Conv3DTranspose(4, 2)),
    "ConvLSTM1D": simple(lambda r: layers.ConvLSTM1D(4, 3, dropout=0.2)),
    "ConvLSTM2D": on(volume, lambda r: layers.ConvLSTM2D(4, 2, recurrent_dropout=0.2, dropout=0.1)),
    "ConvLSTM3D": on(pool, lambda r: lambda x: layers.ConvLSTM3D(3, 2)(layers.Reshape((2, -1, *x.shape[1:3], 1))(x))),
    "Cropping1D": on(sequence, lambda r: layers.Cropping1D((2, 1))),
    "Cropping2D": simple(lambda r: layers.Cropping2D(((0, 1), (2, 1)))),
    "Cropping3D": on(volume, lambda r: layers.Cropping3D(((0, 1), (2, 1), (1, 0)))),
    "CutMix": augment("CutMix"),
    "Dense": simple(lambda r: layers.Dense(6, activation=r.choice(["softmax", "relu"]))),
    "DepthwiseConv1D": on(sequence, lambda r: layers.DepthwiseConv1D(3, depth_multiplier=int(r.integers(1, 3)))),
    "DepthwiseConv2D": simple(
        lambda r: layers.DepthwiseConv2D(
            3, padding=r.choice(["same", "valid"]), activation=r.choice(["softmax", "relu", "linear"])
        )
    ),
    "Dot": lambda r, x: layers.Dot(axis(r, 3), normalize=bool(r.integers(2)))([sequence(pool(x)), sequence(pool(x))]),
    "Dropout": simple(lambda r: layers.Dropout(0.3, noise_shape=(None, 1, 1, 1) if r.integers(2) else None)),
    "ELU": simple(lambda r: layers.ELU()),
    "EinsumDense": lambda r, x: layers.EinsumDense("abcd,bde->abce", (x.shape[1], x.shape[2], 5))(x),
    "Flatten": simple(lambda r: layers.Flatten()),
    "GRU": recurrent(lambda r: layers.GRU(4, dropout=0.2, recurrent_dropout=0.2)),
    "GRUCell": recurrent(lambda r: layers.RNN(layers.GRUCell(4, dropout=0.2))),
    "GaussianDropout": simple(lambda r: layers.GaussianDropout(0.3)),
    "GaussianNoise": simple(lambda r: layers.GaussianNoise(0.3)),
    "GlobalAveragePooling1D": on(sequence, lambda r: layers.GlobalAveragePooling1D()),
    "GlobalAveragePooling2D": simple(lambda r: layers.GlobalAveragePooling2D(keepdims=bool(r.integers(2)))),
    "GlobalAveragePooling3D": on(volume, lambda r: layers.GlobalAveragePooling3D()),
    "GlobalMaxPooling1D": on(sequence, lambda r: layers.GlobalMaxPooling1D()),
    "GlobalMaxPooling2D": simple(lambda r: layers.GlobalMaxPooling2D(keepdims=bool(r.integers(2)))),
    "GlobalMaxPooling3D": on(volume, lambda r: layers.GlobalMaxPooling3D()),
    "GroupNormalization": simple(lambda r: layers.GroupNormalization(2, axis=axis(r))),
    "GroupedQueryAttention": attention(layers.GroupQueryAttention, 4, 4, 2, dropout=0.3),
    "Identity": simple(lambda r: layers.Identity()),
    "LSTM": recurrent(lambda r: layers.LSTM(4, dropout=0.2, return_sequences=bool(r.integers(2)))),
    "LSTMCell": recurrent(lambda r: layers.RNN(layers.LSTMCell(4, recurrent_dropout=0.2))),
    "Lambda": simple(lambda r: layers.Lambda(by_rows)),
    "LayerNormalization": simple(lambda r: layers.LayerNormalization(axis(r) if r.integers(2) else [1, 3])),
    "LeakyReLU": simple(lambda r: layers.LeakyReLU()),
    "Masking": lambda r, x: layers.LSTM(4)(layers.Masking(0.0)(sequence(pool(layers.ReLU()(x))))),
    "MaxPooling1D": on(sequence, lambda r: layers.MaxPooling1D(2, **POOLS)),
    "MaxPooling2D": simple(lambda r: layers.MaxPooling2D(2, **POOLS)),
    "MaxPooling3D": on(volume, lambda r: layers.MaxPooling3D(2, **POOLS)),
    "Maximum": merged(layers.Maximum),
    "MelSpectrogram": lambda r, x: layers.MelSpectrogram(
        fft_length=32, sequence_stride=16, num_mel_bins=4, sampling_rate=64, max_freq=32, min_freq=1
    )(layers.Flatten()(pool(x))),
    "Minimum": merged(layers.Minimum),
    "MixUp": augment("MixUp"),
    "MultiHeadAttention": attention(layers.MultiHeadAttention, 2, 4, dropout=0.3),
    "Multiply": merged(layers.Multiply),
    "Normalization": lambda r, x: normalization(r, x),
    "PReLU": simple(lambda r: layers.PReLU(shared_axes=[[1, 2], [1], [2, 3]][int(r.integers(3))])),
    "Permute": simple(lambda r: layers.Permute([(2, 1, 3), (3, 1, 2), (1, 3, 2)][int(r.integers(3))])),
    "Pipeline": lambda r, x: layers.Pipeline([layers.Rescaling(0.5), layers.RandomFlip()])(x),
    # Keras multiplies by the scale along the last axis, whatever the axis is.
    "RMSNormalization": simple(lambda r: layers.RMSNormalization(axis=3 if axis(r) > 0 else -1)),
    "RNN": recurrent(lambda r: layers.RNN([layers.SimpleRNNCell(4, dropout=0.2), layers.GRUCell(3)])),
    "RandAugment": augment("RandAugment"),
    "RandomBrightness": augment("RandomBrightness", factor=0.5),
    "RandomColorDegeneration": augment("RandomColorDegeneration", factor=0.5),
    "RandomColorJitter": augment("RandomColorJitter"),
    "RandomContrast": augment("RandomContrast", factor=0.5),
    "RandomCrop": lambda r, x: layers.RandomCrop(x.shape[1], x.shape[2])(x),
    "RandomElasticTransform": augment("RandomElasticTransform"),
    "RandomErasing": augment("RandomErasing"),
    "RandomFlip": augment("RandomFlip"),
    "RandomGaussianBlur": augment("RandomGaussianBlur"),
    "RandomGrayscale": augment("RandomGrayscale"),
    "RandomHue": augment("RandomHue", factor=0.5),
    "RandomInvert": augment("RandomInvert"),
    "RandomPerspective": augment("RandomPerspective"),
    "RandomPosterization": augment("RandomPosterization", factor=4),
    "RandomRotation": augment("RandomRotation", factor=0.5),
    "RandomSaturation": augment("RandomSaturation", factor=0.5),
    "RandomSharpness": augment("RandomSharpness", factor=0.5),
    "RandomShear": augment("RandomShear", x_factor=0.5),
    "RandomTranslation": augment("RandomTranslation", height_factor=0.5, width_factor=0.5),
    "RandomZoom": augment("RandomZoom", height_factor=0.5),
    "ReLU": simple(lambda r: layers.ReLU(6.0, 0.1)),
    "RepeatVector": on(vector, lambda r: layers.RepeatVector(3)),
    "Rescaling": lambda r, x: layers.Rescaling(
        r.uniform(0.5, 2, [(), x.shape[-1:], x.shape[1:]][int(r.integers(3))]).tolist(), offset=0.5
    )(x),
    "Reshape": lambda r, x: layers.Reshape([(-1, 4), (x.shape[2], -1, 2), (2, 2, -1, 2)][int(r.integers(3))])(x),
    "Resizing": simple(lambda r: layers.Resizing(5, 7)),
    "SeparableConv1D": on(sequence, lambda r: layers.SeparableConv1D(6, 3)),
    "SeparableConv2D": simple(
        lambda r: layers.SeparableConv2D(6, 3, padding="same", activation=r.choice(["softmax", "relu", "linear"]))
    ),
    "SimpleRNN": recurrent(lambda r: layers.SimpleRNN(4, dropout=0.2)),
    "SimpleRNNCell": recurrent(lambda r: layers.RNN(layers.SimpleRNNCell(4, recurrent_dropout=0.2))),
    "Softmax": simple(lambda r: layers.Softmax(axis(r, batch=True) if r.integers(2) else (1, 2))),
    "SpatialDropout1D": on(sequence, lambda r: layers.SpatialDropout1D(0.3)),
    "SpatialDropout2D": simple(lambda r: layers.SpatialDropout2D(0.3)),
    "SpatialDropout3D": on(volume, lambda r: layers.SpatialDropout3D(0.3)),
    "SpectralNormalization": simple(
        lambda r: layers.SpectralNormalization([layers.Conv2D(6, 3), layers.Dense(6)][int(r.integers(2))])
    ),
    "StackedRNNCells": recurrent(lambda r: layers.RNN(layers.StackedRNNCells([layers.GRUCell(4), layers.GRUCell(3)]))),
    "STFTSpectrogram": lambda r, x: layers.STFTSpectrogram(frame_length=16, frame_step=8, fft_length=16)(
        layers.Reshape((-1, 1))(pool(x))
    ),
    "Subtract": merged(layers.Subtract),
    "TimeDistributed": simple(
        lambda r: layers.TimeDistributed(
            [layers.Dense(5), layers.AlphaDropout(0.3), layers.SpectralNormalization(layers.Dense(5))][
                int(r.integers(3))
            ]
        )
    ),
    "UnitNormalization": simple(lambda r: layers.UnitNormalization(axis(r, batch=True))),
    "UpSampling1D": on(sequence, lambda r: layers.UpSampling1D(2)),
    "UpSampling2D": simple(lambda r: layers.UpSampling2D(2)),
    "UpSampling3D": on(volume, lambda r: layers.UpSampling3D((1, 2, 1))),
    "ZeroPadding1D": on(sequence, lambda r: layers.ZeroPadding1D((1, 2))),
    "ZeroPadding2D": simple(lambda r: layers.ZeroPadding2D(((0, 1), (2, 1)))),
    "ZeroPadding3D": on(volume, lambda r: layers.ZeroPadding3D(((0, 1), (2, 1), (1, 0)))),
}

FIRST = {
    "CategoryEncoding": lambda r, x: layers.CategoryEncoding(4, "multi_hot")(layers.Flatten()(numbers(x))),
    "ContrastLimitedAdaptiveHistogramEqualization": lambda r, x: layers.ContrastLimitedAdaptiveHistogramEqualization()(
        x
    ),
    "Discretization": lambda r, x: layers.Embedding(4, 5)(numbers(x)),
    "Embedding": lambda r, x: layers.Embedding(4, 5)(numbers(x)),
    "Equalization": lambda r, x: layers.Equalization()(x),
    "ReversibleEmbedding": lambda r, x: layers.ReversibleEmbedding(4, 5)(numbers(x)),
    "Solarization": lambda r, x: layers.Solarization(0.5, 0.5)(x),
}
"""What jumps where its input changes a little stands at the start of a net, where nothing has been rounded yet."""

OPERATIONS = {
    "constant": lambda r, x: x + r.normal(size=x.shape[1:]).astype("float32"),
    "channel": lambda r, x: x * r.uniform(0.5, 1.5, x.shape[-1:]).astype("float32"),
    "softmax": lambda r, x: ops.softmax(x, axis=axis(r, batch=True)),
    "mean": lambda r, x: x - ops.mean(x, axis=axis(r, batch=True), keepdims=True),
    "mean_of_all": lambda r, x: x - ops.mean(x),
    "flip": lambda r, x: ops.flip(x, axis=axis(r, batch=True)),
    "roll": lambda r, x: ops.roll(x, 2, axis=axis(r, batch=True)),
    "cumsum": lambda r, x: ops.cumsum(x, axis=axis(r)),
    "split": lambda r, x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1),
    "unstack": lambda r, x: ops.stack(ops.unstack(x, x.shape[1], axis=1)[::-1], axis=axis(r)),
    "moments": lambda r, x: (x - ops.moments(x, axes=(1, 2), keepdims=True)[0]) * 0.5,
    "transpose": lambda r, x: ops.transpose(x, [(0, 2, 1, 3), (0, 3, 1, 2), (3, 1, 2, 0)][int(r.integers(3))]),
    "reshape": lambda r, x: ops.reshape(x, [(-1, x.shape[2], x.shape[1] * x.shape[3]), (-1, 2)][int(r.integers(2))]),
    "matmul": lambda r, x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
    "max_k": lambda r, x: ops.top_k(x, 2)[0],
    "where": lambda r, x: ops.where(x > 0, x, 0.1 * x),
    "slice": lambda r, x: x[:, ::2, :, ::-1],
}


def normalization(r: R, x):
    where = [-1, axis(r), None, (1, 3)][int(r.integers(4))]
    axes = () if where is None else (where,) if isinstance(where, int) else where
    shape = [x.shape[each] for each in axes]
    return layers.Normalization(where, mean=r.normal(size=shape), variance=r.uniform(0.5, 1.5, shape))(x)


def as_map(x):
    """Brings what a layer gives to a small map again."""
    shape = x.shape[1:]
    if len(shape) != 3:
        rows = (1, 1) if len(shape) == 1 else (shape[0], math.prod(shape[1:-1]))
        x = layers.Reshape((*rows, shape[-1]))(x)
    if x.shape[-1] > 12 or x.shape[-1] % 4:
        x = layers.Conv2D(8, 1)(x)
    if min(x.shape[1:3]) < 8:
        x = layers.Resizing(8, 8)(x)
    while math.prod(x.shape[1:3]) > SIZE**2:
        x = layers.MaxPooling2D(2, padding="same")(x)
    return x


def net(name: str, seed: int) -> keras.Model:
    """A net with a layer class, or an operation, of a name, and some random others; the same for the same seed."""
    keras.utils.clear_session(free_memory=False)  # So that Keras gives the same names again.
    keras.utils.set_random_seed(seed)
    r = np.random.default_rng(seed)
    image = keras.Input((SIZE, SIZE, 3))
    x = image
    if name in FIRST:
        x = FIRST[name](r, x)
        x = as_map(layers.Conv2D(8, 1)(x if len(x.shape) == 4 else layers.Reshape((1, -1, x.shape[-1]))(x)))
    x = layers.Conv2D(8, 3, strides=int(r.integers(1, 3)), padding="same")(layers.Rescaling(1 / 255)(x))
    x = layers.BatchNormalization()(x)
    others = list((RECIPES | OPERATIONS).items())
    chosen = [(RECIPES | OPERATIONS)[name]] if name not in FIRST else []
    while len(chosen) < 2:
        chosen.append(others[int(r.integers(len(others)))][1])
    for recipe in chosen:
        if r.integers(2):
            x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = as_map(recipe(r, x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 1)(x))
    if r.integers(2):
        x = layers.Dense(6)(layers.Flatten()(x))
    model = keras.Model(image, x)
    for variable in model.weights:
        if "float" in variable.dtype:
            positive = variable.name in ("gamma", "moving_variance", "variance", "scale")
            low, high = (0.5, 1.5) if positive else (-0.3, 0.3)
            variable.assign(
                r.uniform(low, high, variable.shape) if positive else variable + r.uniform(low, high, variable.shape)
            )
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return model
