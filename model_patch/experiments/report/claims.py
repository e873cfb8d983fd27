"""The paper's claims, each evaluated on the numbers of a suite."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from model_patch.experiments.report.rates import best_rate, by_rate
from model_patch.experiments.report.sample import Sample

COMPARABLE = 0.05
"""Accuracies that differ by at most this, in 0..1, are called comparable."""

FAR = 0.10
"""An accuracy is far above another if it is higher by at least this."""

POINT = 0.01


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a claim holds in one place.

    Attributes:
        claim: one sentence.
        where: the experiment, and the task or row.
        holds: whether it does.
        numbers: what it rests on, as text.
    """

    claim: str
    where: str
    holds: bool
    numbers: str


Results = Mapping[str, dict]
"""What the experiments of a suite wrote to their `results.json`, by name."""


def check_claims(results: Results) -> list[Verdict]:
    """Returns a verdict per claim and place; claims whose experiments are not there are left out."""
    return [verdict for claim in CLAIMS for verdict in claim(results)]


def by_train(rows: Iterable[dict], **where) -> dict[str, Sample]:
    """Returns the accuracies over the seeds by what was trained, or shared, of the rows with the given fields."""
    grouped: dict[str, list[float]] = {}
    for row in rows:
        if all(row[field] == value for field, value in where.items()):
            grouped.setdefault(str(row.get("train", row.get("share"))), []).append(row["test_accuracy"])
    return {train: Sample(tuple(accuracies)) for train, accuracies in grouped.items()}


def by_share(rows: list[dict]) -> dict[str, Sample]:
    """Returns the means over the tasks, one per seed, by what was shared."""
    seeds = sorted({row["seed"] for row in rows})
    shares = dict.fromkeys(row["share"] for row in rows)
    return {
        share: Sample(
            tuple(
                float(np.mean([row["test_accuracy"] for row in rows if (row["share"], row["seed"]) == (share, seed)]))
                for seed in seeds
            )
        )
        for share in shares
    }


def _of(results: Results, prefix: str) -> Iterable[tuple[str, list[dict]]]:
    return ((name, each["rows"]) for name, each in results.items() if name.split("-")[0] == prefix)


def _pair(
    claim: str, where: str, rows: dict[str, Sample], high: str, low: str, least: float = 0.0
) -> Iterable[Verdict]:
    if high in rows and low in rows:
        numbers = f"`{high}` {rows[high]}, `{low}` {rows[low]}"
        yield Verdict(claim, where, rows[high].above(rows[low], least), numbers)


def _patch_above_last(patch: str) -> Callable[[Results], Iterable[Verdict]]:
    def verdicts(results: Results):
        for name, rows in _of(results, "transfer"):
            claim = f"`{patch}` beats `last` by more than the spread"
            yield from _pair(claim, name, by_train(rows), patch, "last")

    return verdicts


def _patch_alone(results: Results):
    for name, rows in _of(results, "transfer"):
        samples = by_train(rows)
        if {"scale_bias", "last"} <= samples.keys():
            patch, last = samples["scale_bias"], samples["last"]
            numbers = f"`scale_bias` {patch}, `last` {last}"
            claim = (
                f"`scale_bias` with a random last layer is comparable to `last`: within {100 * COMPARABLE:.0f} points"
            )
            yield Verdict(claim, name, abs(patch.mean - last.mean) <= COMPARABLE, numbers)


def _rates(results: Results):
    for name, rows in _of(results, "rates"):
        grouped = by_rate(rows)
        if "full" not in grouped:
            continue
        best = {train: best_rate(rates) for train, rates in grouped.items()}
        for train, rates in grouped.items():
            rate = best[train]
            if train in ("full", "last") or rate not in grouped["full"]:
                continue
            full, at_its_best = (grouped["full"][each] for each in (rate, best["full"]))
            numbers = (
                f"best rate of `{train}` {rate:g}, {rates[rate]}; of `full` {best['full']:g}, {at_its_best}; "
                f"`full` at {rate:g}: {full}"
            )
            holds = rate > best["full"] and at_its_best.above(full)
            yield Verdict(
                "a patch benefits from a larger learning rate than `full` tolerates", f"{name}, {train}", holds, numbers
            )


def _random(results: Results):
    claim = f"on a random trunk `scale_bias+last` beats `last` by at least {100 * FAR:.0f} points"
    for name, rows in _of(results, "random"):
        yield from _pair(claim, name, by_train(rows), "scale_bias+last", "last", FAR)


def _statistics(results: Results):
    claim = "training scale and bias beats re-estimating statistics alone, by more than the spread"
    for name, rows in _of(results, "statistics"):
        yield from _pair(claim, name, by_train(rows), "scale_bias+last", "statistics+last")


def _multitask(results: Results):
    claim = "a task with a shared trunk and its own patch is within 1 point of its separate model"
    for name, rows in _of(results, "multitask"):
        for task in dict.fromkeys(row["task"] for row in rows):
            samples = by_train(rows, task=task)
            if {"trunk", "nothing"} <= samples.keys():
                numbers = f"`trunk` {samples['trunk']}, `nothing` {samples['nothing']}"
                yield Verdict(
                    claim, f"{name}, {task}", samples["trunk"].mean >= samples["nothing"].mean - POINT, numbers
                )
        claim_of_all = "private patches beat shared ones by more than the spread, averaged over tasks"
        yield from _pair(claim_of_all, name, by_share(rows), "trunk", "trunk+patch")


def _resolutions(results: Results):
    claim = "a patch per resolution beats one model for all, by more than the spread"
    for name, rows in _of(results, "resolutions"):
        yield from _pair(claim, name, by_share(rows), "trunk", "trunk+patch")


CLAIMS = (
    _patch_above_last("scale_bias+last"),
    _patch_above_last("depthwise+last"),
    _patch_alone,
    _rates,
    _random,
    _statistics,
    _multitask,
    _resolutions,
)
"""Every claim: from the results to its verdicts."""
