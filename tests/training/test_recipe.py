import keras
import pytest

from model_patch import ModelPatchError
from model_patch.kinds import TrainSpec
from model_patch.training.recipe import ADAM_LEARNING_RATES, OPTIMIZERS, PAPER_LEARNING_RATE, SCHEDULES, Recipe


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_goes_with_every_schedule(optimizer, schedule):
    recipe = Recipe(optimizer=optimizer, schedule=schedule, learning_rate=0.125)
    assert float(recipe.make_optimizer(TrainSpec.parse("last"), 20).learning_rate) == 0.125


def test_the_papers_schedule_falls_by_two_percent_every_two_and_a_half_epochs():
    schedule = SCHEDULES["paper"](0.045, 1000, 20)
    rates = [float(schedule(step)) for step in (0, 49, 50, 99, 100)]
    assert rates == pytest.approx([0.045, 0.045, 0.0441, 0.0441, 0.043218])


def test_the_cosine_ends_at_zero_with_the_last_step():
    recipe = Recipe(epochs=3, schedule="cosine", learning_rate=1.0)
    schedule = recipe.make_optimizer(TrainSpec.parse("last"), 7)._learning_rate
    assert float(schedule(21)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("train", "statistics", "name"),
    [
        ("last", "frozen", "last"),
        ("scale_bias+last", "frozen", "patch"),
        ("scale_bias", "batch", "patch"),
        ("scale_bias+depthwise+last", "frozen", "depthwise"),
        ("full", "batch", "full"),
    ],
)
def test_the_default_rate_follows_what_is_trained(train, statistics, name):
    optimizer = Recipe().make_optimizer(TrainSpec.parse(train, statistics), 10)
    assert isinstance(optimizer, keras.optimizers.Adam)
    expected = ADAM_LEARNING_RATES[name][statistics == "frozen"]
    assert float(optimizer.learning_rate) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("train", "rate"),
    [
        ("scale_bias+last", 0.01),
        ("depthwise+last", 0.01),
        ("scale_bias+depthwise+last", 0.005),
        ("scale_bias+statistics+last", 0.03),
        ("full", 0.01),
    ],
)
def test_a_relative_rate_rises_to_its_default_in_a_tenth_of_the_steps(train, rate):
    spec, recipe = TrainSpec.parse(train), Recipe(epochs=2)
    assert recipe.is_relative(spec)
    schedule = recipe.make_optimizer(spec, 10, relative=True)._learning_rate
    assert [float(schedule(step)) for step in (0, 2, 20)] == pytest.approx([0.0, rate, 0.0], abs=1e-7)


@pytest.mark.parametrize(("width", "rate", "with_kernels"), [(164, 0.04, 0.02), (464, 0.005, 0.00707), (1, 0.06, 0.06)])
def test_a_relative_default_depends_on_the_width_and_the_statistics(width, rate, with_kernels):
    recipe, patch = Recipe(epochs=1), TrainSpec.parse("scale_bias+last")
    for spec, trains_trunk, expected in (
        (patch, False, rate),
        (patch, True, with_kernels),
        (TrainSpec.parse("full"), False, with_kernels),
    ):
        optimizer = recipe.make_optimizer(spec, 10, relative=True, width=width, trains_trunk=trains_trunk)
        assert float(optimizer._learning_rate(1)) == pytest.approx(expected, rel=1e-2)
    for train, factor in (("scale_bias+last", 3.0), ("statistics+last", 1.0)):
        optimizer = recipe.make_optimizer(TrainSpec.parse(train, "batch"), 10, relative=True, width=width)
        assert float(optimizer._learning_rate(1)) == pytest.approx(min(0.06, factor * rate), rel=1e-2)
    given = Recipe(epochs=1, learning_rate=0.01).make_optimizer(
        TrainSpec.parse("scale_bias"), 10, relative=True, width=width
    )
    assert float(given._learning_rate(1)) == pytest.approx(0.01)


def test_other_optimizers_start_at_the_papers_rate():
    optimizer = Recipe(optimizer="rmsprop").make_optimizer(TrainSpec.parse("scale_bias"), 10)
    assert float(optimizer.learning_rate) == pytest.approx(PAPER_LEARNING_RATE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adm"}, "unknown optimizer 'adm': expected one of adam, adamw, rmsprop, sgd"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"epochs": 0}, "epochs is 0: expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1: expected at least 1"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1: expected at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: expected at least 0"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(fields, message):
    with pytest.raises(ModelPatchError, match=message):
        Recipe(**fields)
