"""Claims on numbers whose verdicts are worked out by hand."""

import pytest

from model_patch.experiments.report.claims import check_claims


def rows(field="train", **accuracies):
    """Rows of two seeds: names with `_` for `+`, accuracies of the seeds."""
    return {
        "rows": [
            {field: name.replace("_PLUS_", "+"), "seed": seed, "test_accuracy": accuracy, "task": "a"}
            for name, both in accuracies.items()
            for seed, accuracy in enumerate(both)
        ]
    }


def verdicts(**results):
    return {(v.claim, v.where): v.holds for v in check_claims({k.replace("__", "-"): v for k, v in results.items()})}


@pytest.mark.parametrize(("patch", "holds"), [((0.95, 0.96), True), ((0.80, 0.92), False)])
def test_patches_against_the_last_layer(patch, holds):
    found = verdicts(transfer__digits=rows(last=(0.80, 0.81), scale_bias_PLUS_last=patch, scale_bias=(0.83, 0.84)))
    assert found == {
        ("`scale_bias+last` beats `last` by more than the spread", "transfer-digits"): holds,
        ("`scale_bias` with a random last layer is comparable to `last`: within 5 points", "transfer-digits"): True,
    }


def test_tasks_together_within_a_point_of_independent_nets():
    together = rows("share", nothing=(0.950, 0.960), trunk=(0.945, 0.947), trunk_PLUS_patch=(0.91, 0.91))
    found = verdicts(multitask=together, resolutions=together)
    assert list(found.values()) == [True, True, True]
    assert not next(iter(verdicts(multitask=rows("share", nothing=(0.96,), trunk=(0.94,))).values()))


def test_rates():
    def at(rate, **accuracies):
        return [row | {"learning_rate": rate} for row in rows(**accuracies)["rows"]]

    low = at(0.003, scale_bias_PLUS_last=(0.80, 0.80), full=(0.97, 0.97))
    high = at(0.1, scale_bias_PLUS_last=(0.95, 0.95), full=(0.2, 0.3))
    (verdict,) = check_claims({"rates": {"rows": low + high}})
    assert verdict.holds and verdict.where == "rates, scale_bias+last"
    assert "best rate of `scale_bias+last` 0.1" in verdict.numbers and "`full` at 0.1: 0.2500" in verdict.numbers
    bears = at(0.1, scale_bias_PLUS_last=(0.95, 0.95), full=(0.98, 0.98))
    assert not check_claims({"rates": {"rows": low + bears}})[0].holds


def test_experiments_that_are_not_there_are_left_out():
    assert check_claims({}) == [] and check_claims({"expressivity": {"rows": []}}) == []
