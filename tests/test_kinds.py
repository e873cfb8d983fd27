import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.kinds import KINDS, TrainSpec


@pytest.mark.parametrize(
    "text", ["last", "scale_bias", "scale_bias+last", "scale_bias+depthwise+last", "statistics", "full"]
)
def test_what_is_trained_is_written_as_it_is_read(text):
    assert str(TrainSpec.parse(text)) == text


def test_the_order_of_kinds_does_not_matter_and_full_includes_the_last_layer():
    assert TrainSpec.parse("last+depthwise+scale_bias") == TrainSpec.parse("scale_bias+depthwise+last")
    assert TrainSpec.parse("full") == TrainSpec.parse("full+last")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scale-bias",
            "unknown patch kind 'scale-bias': expected one of bias, depthwise, full, last, scale_bias, statistics",
        ),
        ("", "unknown patch kind ''"),
        ("last+last", "'last.last' names a patch kind more than once"),
        ("full+bias", "'full.bias' joins full with a part of it"),
    ],
)
def test_what_cannot_be_trained_is_refused(text, message):
    with pytest.raises(ModelPatchError, match=message):
        TrainSpec.parse(text)


def test_statistics_must_be_one_of_two_and_go_with_the_kind():
    assert TrainSpec.parse("scale_bias+last") == TrainSpec.parse("scale_bias+last", "frozen")
    assert TrainSpec.parse("full") == TrainSpec.parse("full", "batch")
    assert TrainSpec.parse("statistics+last") == TrainSpec.parse("statistics+last", "batch")
    with pytest.raises(ModelPatchError, match="unknown norm_statistics 'moving'"):
        TrainSpec.parse("last", "moving")
    with pytest.raises(ModelPatchError, match="statistics alone with norm_statistics=frozen changes nothing"):
        TrainSpec.parse("statistics", "frozen")


# Learnt values by (net, what is trained): the counts of the paper's nets, and a check that no kind goes untested.
COUNTS = {
    "MobileNetV2": {"scale_bias": 34_112, "depthwise": 64_224, "bias": 17_056, "statistics": 0, "full": 2_223_872},
    "InceptionV3": {"scale_bias": 34_432, "bias": 17_216, "statistics": 0, "full": 21_768_352},
}


@pytest.fixture(scope="module")
def nets():
    opened = {}
    for name in COUNTS:
        model = getattr(keras.applications, name)(
            weights=None, include_top=False, pooling="avg", input_shape=(96, 96, 3)
        )
        opened[name] = Trunk(model, f"keras:{name}", Preprocessing(96, "tf"))
    return opened


@pytest.mark.parametrize(("net", "kind"), [(net, kind) for net, kinds in COUNTS.items() for kind in kinds])
def test_learnt_values_are_counted_exactly(nets, net, kind):
    task = Task("toy", ("a", "b", "c"), Preprocessing(96, "tf"))
    counts = bind(nets[net], task, f"{kind}+last").counts()
    assert counts.patch == COUNTS[net][kind]
    assert counts.trained == counts.patch + counts.head
    total = nets[net].num_parameters() + counts.head
    added = 17_216 if net == "InceptionV3" and kind == "scale_bias" else 0  # Its batch norms have no gamma.
    assert counts.patch + counts.statistics + counts.shared + counts.head == total + added


def test_every_kind_is_counted():
    assert set(COUNTS["MobileNetV2"]) == set(KINDS)


def test_a_trunk_without_slots_for_a_kind_is_refused(nets):
    task = Task("toy", ("a", "b"), Preprocessing(96, "tf"))
    with pytest.raises(ModelPatchError, match="keras:InceptionV3 has no slot for depthwise"):
        bind(nets["InceptionV3"], task, "depthwise+last")


def test_a_new_kind_is_one_function():
    from model_patch.kinds import kind

    @kind
    def first_kernel(layer):
        return {"kernel"} if layer.name == "Conv1" else set()

    try:
        model = keras.applications.MobileNetV2(alpha=0.35, weights=None, include_top=False, input_shape=(32, 32, 3))
        trunk = Trunk(model, "test", Preprocessing(32, "tf"))
        bound = bind(
            trunk, Task("toy", ("a", "b"), Preprocessing(32, "tf")), TrainSpec.parse("first_kernel+last", "frozen")
        )
        assert set(bound.patch_variables) == {"Conv1/kernel"}
        assert bound.counts().patch == int(np.prod(trunk.variables()["Conv1/kernel"].shape))
    finally:
        del KINDS["first_kernel"]
