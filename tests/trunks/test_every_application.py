"""Every net of keras.applications: what its patches count, and that all of it works.

`make test` has two of them, `make test-slow` two more, and `make soak` the others.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_patch import Bank, Patch, Task, bind, bind_patch, join
from model_patch.export import check, export
from model_patch.export.saved_model import export_saved_model
from model_patch.fold import fold
from model_patch.graph.rewrite import walk
from model_patch.kinds import KINDS, offer_scale_bias
from model_patch.layers import NORMS, variables
from model_patch.trunks import open_trunk
from model_patch.trunks.applications import NETS
from tests.conftest import random_norms, same, snapshot

# Parameters without top, of a scale-and-bias patch, and of a depthwise patch. The totals are those that Keras' own
# documentation gives for the nets without top, where it does; MobileNet's, MobileNetV2's, InceptionV3's and EfficientNetB0's
# counts were worked out by hand, too.
COUNTS = {
    "ConvNeXtBase": (87_566_464, 58_240, 0),
    "ConvNeXtLarge": (196_230_336, 87_360, 0),
    "ConvNeXtSmall": (49_454_688, 43_680, 0),
    "ConvNeXtTiny": (27_820_128, 22_944, 0),
    "ConvNeXtXLarge": (348_147_968, 116_480, 0),
    "DenseNet121": (7_037_504, 83_648, 0),
    "DenseNet169": (12_642_880, 158_400, 0),
    "DenseNet201": (18_321_984, 229_056, 0),
    "EfficientNetB0": (4_049_571, 42_016, 182_016),
    "EfficientNetB1": (6_575_239, 62_048, 256_656),
    "EfficientNetB2": (7_768_569, 67_568, 278_976),
    "EfficientNetB3": (10_783_535, 87_296, 371_520),
    "EfficientNetB4": (17_673_823, 125_200, 555_672),
    "EfficientNetB5": (28_513_527, 172_736, 740_640),
    "EfficientNetB6": (40_960_143, 224_432, 990_312),
    "EfficientNetB7": (64_097_687, 310_720, 1_355_616),
    "EfficientNetV2B0": (5_919_312, 60_608, 116_640),
    "EfficientNetV2B1": (6_931_124, 71_072, 136_512),
    "EfficientNetV2B2": (8_769_374, 82_288, 158_832),
    "EfficientNetV2B3": (12_930_622, 109_216, 213_408),
    "EfficientNetV2L": (117_746_848, 512_576, 1_031_616),
    "EfficientNetV2M": (53_150_388, 292_032, 585_216),
    "EfficientNetV2S": (20_331_360, 153_872, 303_552),
    "InceptionResNetV2": (54_336_736, 60_544, 0),
    "InceptionV3": (21_802_784, 34_432, 0),
    "MobileNet": (3_228_864, 21_888, 44_640),
    "MobileNetV2": (2_257_984, 34_112, 64_224),
    "MobileNetV3Large": (2_996_352, 24_400, 91_608),
    "MobileNetV3Small": (939_120, 12_112, 58_584),
    "NASNetLarge": (84_916_818, 196_668, 1_449_342),
    "NASNetMobile": (4_269_716, 36_738, 285_569),
    "ResNet101": (42_658_176, 105_344, 0),
    "ResNet101V2": (42_626_560, 97_664, 0),
    "ResNet152": (58_370_944, 151_424, 0),
    "ResNet152V2": (58_331_648, 143_744, 0),
    "ResNet50": (23_587_712, 53_120, 0),
    "ResNet50V2": (23_564_800, 45_440, 0),
    "VGG16": (14_714_688, 8_448, 0),
    "VGG19": (20_024_384, 11_008, 0),
    "Xception": (20_861_480, 54_528, 207_432),
}

SMALLEST = {
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "VGG19",
    "Xception",
}
"""The smallest net of each module of keras.applications."""

LONG = {"ConvNeXtTiny", "MobileNetV3Small"}
"""Those of them that are trained by `make test-slow`: one with layer norms and layer scales, and one with gates and parts
without norms. All others are trained by `make soak`."""

SHORT = {"MobileNet", "VGG16"}
"""Those that are trained by `make test`: one with norms and depthwise kernels, and one without norms."""

DEEPEST = {"InceptionResNetV2", "NASNetMobile"}
"""The smallest of two families, which by their 780 layers take as long as four others."""

SIZES = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
"""Image sizes in pixels of nets that do not take 32."""

SCALES = {"EfficientNetV2L": 0.5, "EfficientNetV2M": 0.5, "EfficientNetV2S": 0.5}
"""Means of the norms' scales where it is not 1: so deep, random nets make of a change in the seventh digit another prediction."""

FOLDED = {
    "ConvNeXtBase": (0, 0, 41),
    "ConvNeXtLarge": (0, 0, 41),
    "ConvNeXtSmall": (0, 0, 41),
    "ConvNeXtTiny": (0, 0, 23),
    "ConvNeXtXLarge": (0, 0, 41),
    "DenseNet121": (59, 62, 0),
    "DenseNet169": (83, 86, 0),
    "DenseNet201": (99, 102, 0),
    "EfficientNetB0": (49, 0, 0),
    "EfficientNetB1": (69, 0, 0),
    "EfficientNetB2": (69, 0, 0),
    "EfficientNetB3": (78, 0, 0),
    "EfficientNetB4": (96, 0, 0),
    "EfficientNetB5": (116, 0, 0),
    "EfficientNetB6": (134, 0, 0),
    "EfficientNetB7": (163, 0, 0),
    "EfficientNetV2B0": (59, 0, 0),
    "EfficientNetV2B1": (73, 0, 0),
    "EfficientNetV2B2": (76, 0, 0),
    "EfficientNetV2B3": (88, 0, 0),
    "EfficientNetV2L": (217, 0, 0),
    "EfficientNetV2M": (157, 0, 0),
    "EfficientNetV2S": (110, 0, 0),
    "InceptionResNetV2": (204, 0, 0),
    "InceptionV3": (94, 0, 0),
    "MobileNet": (27, 0, 0),
    "MobileNetV2": (52, 0, 0),
    "MobileNetV3Large": (46, 0, 0),
    "MobileNetV3Small": (34, 0, 0),
    "NASNetLarge": (260, 4, 0),
    "NASNetMobile": (188, 4, 0),
    "ResNet101": (104, 0, 0),
    "ResNet101V2": (66, 34, 0),
    "ResNet152": (155, 0, 0),
    "ResNet152V2": (100, 51, 0),
    "ResNet50": (53, 0, 0),
    "ResNet50V2": (32, 17, 0),
    "VGG16": (0, 0, 0),
    "VGG19": (0, 0, 0),
    "Xception": (40, 0, 0),
}
"""How many norms go into convolutions, become affine layers, and are not folded."""

IN_LITERT = ("EfficientNetB0", "MobileNetV3Small", "ResNet50V2")


def channels(layer) -> int:
    """Returns how many channels a norm normalises, or a convolution gives."""
    if not isinstance(layer, NORMS):
        return layer.output.shape[-1]
    return layer.input.shape[layer.axis if isinstance(layer.axis, int) else layer.axis[0]]


def test_every_net_of_keras_is_counted_and_of_each_family_the_smallest_is_known():
    assert NETS.keys() == COUNTS.keys()
    assert {NETS[name].__module__ for name in SMALLEST | DEEPEST} == {net.__module__ for net in NETS.values()}
    assert FOLDED.keys() == COUNTS.keys()


def marked(names, short, slow):
    """Returns parameters: names in neither set are for `make soak`."""
    marks = {name: () if name in short else pytest.mark.slow if name in slow else pytest.mark.soak for name in names}
    return [pytest.param(name, marks=mark) for name, mark in sorted(marks.items(), key=lambda each: each[0])]


# Of the others the trunk itself is counted, below.
@pytest.mark.parametrize(
    "name",
    marked(COUNTS.keys() - SMALLEST, {"MobileNetV3Large"}, {"EfficientNetB1", "NASNetMobile", "ResNet101V2"}),
)
def test_patches_have_the_parameters_of_the_architecture(name):
    with keras.StatelessScope():  # Variables have shapes here, and take no memory.
        net = NETS[name](weights=None, include_top=False, pooling="avg", input_shape=(96, 96, 3))
    layers = [layer for _, layer in walk(net)]
    offer_scale_bias(layers)
    total = sum(int(np.prod(variable.shape)) for layer in layers for variable in layer.weights)
    scaled = [layer for layer in layers if {"gamma", "beta"} <= KINDS["scale_bias"](layer)]
    kernels = [variables("", layer)["/depthwise_kernel"] for layer in layers if KINDS["depthwise"](layer)]
    scale_bias, depthwise = sum(2 * channels(layer) for layer in scaled), sum(int(np.prod(k.shape)) for k in kernels)
    # ConvNeXt's layer scales have no bias.
    scale_bias += sum(channels(layer) for layer in layers if KINDS["scale_bias"](layer) == {"gamma"})
    assert (total, scale_bias, depthwise) == COUNTS[name]


@pytest.mark.parametrize("name", marked(COUNTS, SHORT, LONG))
def test_a_task_is_learnt_saved_loaded_exported_banked_and_joined(name, tmp_path):
    size = SIZES.get(name, 32)
    trunk = open_trunk(f"keras:{name}?weights=none", size)
    random_norms(trunk.model, scale=SCALES.get(name, 1.0))
    total, scale_bias, depthwise = COUNTS[name]
    assert trunk.num_parameters() == total
    kinds = "scale_bias+depthwise" if depthwise else "scale_bias"
    tasks = [Task("two", ("a", "b"), trunk.preprocessing), Task("three", ("a", "b", "c"), trunk.preprocessing)]
    joined = join(trunk, tasks, f"{kinds}+last", train_trunk=False)
    bound, other = joined.tasks.values()
    assert bound.counts().patch == scale_bias + depthwise

    pixels = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")
    images = trunk.preprocessing.scale(pixels)
    np.testing.assert_allclose(bound.features(images), trunk.model(images), atol=1e-5, rtol=1e-4)
    frozen, patch = snapshot(trunk.variables()), snapshot(bound.patch_variables)
    # Eagerly: tracing takes longer than the step. Deep random nets are sure of themselves: only of what is wrong they learn.
    bound.model.compile(keras.optimizers.SGD(0.01, clipnorm=1.0), bound.task.loss(), run_eagerly=True)
    bound.model.fit(images, 1 - np.argmax(bound.model(images), axis=-1), verbose=0)
    assert same(frozen, snapshot(trunk.variables()))
    learnt = {key for key, value in snapshot(bound.patch_variables).items() if not np.array_equal(value, patch[key])}
    assert {key.rpartition("/")[2] for key in learnt} >= {"gamma", "beta"} | (
        {"depthwise_kernel"} if depthwise else set()
    )

    bound.patch().save(tmp_path / "task.safetensors")
    loaded = bind_patch(trunk, Patch.load(tmp_path / "task.safetensors"))
    predictions = np.array(bound.model(images, training=False))
    assert np.array_equal(loaded.model(images, training=False), predictions)
    export_saved_model(bound, tmp_path / "exported")
    serve = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    np.testing.assert_allclose(serve(images=pixels)["logits"], predictions, atol=1e-4, rtol=1e-4)

    norms = [path for path, layer in walk(bound.model) if isinstance(layer, NORMS)]
    folded = fold(bound, images)
    affine = sum(reason.startswith("an affine layer") for reason in folded.left.values())
    assert (len(norms) - len(folded.left), affine, len(folded.left) - affine) == FOLDED[name]
    assert folded.left.keys() <= set(norms)  # How far the predictions may differ is checked by fold itself.

    bank = Bank(trunk, kinds, capacity=2, classes=3)
    for each in (bound, other):
        bank.add(each)
    others = other.model(images[:1])
    for row, expected in zip(bank(images, ["three", "two"]), (others[0], predictions[1]), strict=True):
        assert_near(row[: len(expected)], expected)

    logits = joined.model({"two": images, "three": images[:1]})
    assert_near(logits["two"], predictions)
    assert_near(logits["three"], others)


def assert_near(logits, expected):
    """Differences grow with the logits."""
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1.0, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("name", marked(IN_LITERT, (), {"MobileNetV3Small"}))
def test_litert_predicts_as_the_net(name, tmp_path):
    trunk = open_trunk(f"keras:{name}?weights=none", SIZES.get(name, 32))
    random_norms(trunk.model)
    tasks = [bind(trunk, Task(label, (label, "other"), trunk.preprocessing), seed=len(label)) for label in ("a", "bc")]
    for format in ("litert", "litert_set"):
        export(format, tasks, tmp_path / format)
        assert max(check(format, tasks, tmp_path / format).values()) <= 1e-4
