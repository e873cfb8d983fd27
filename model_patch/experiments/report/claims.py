"""The paper's claims, each evaluated on the numbers of a suite."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from model_patch.experiments.report.comparison import best_rate, by_rate
from model_patch.experiments.report.joint import mean_over_tasks
from model_patch.experiments.report.sample import Sample, grouped

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
"""Contents of `results.json` by name of the experiment."""


def check_claims(results: Results) -> list[Verdict]:
    """Returns a verdict per claim and place; claims without results are skipped."""
    return [verdict for claim in CLAIMS for verdict in claim(results)]


def by_row(rows: Iterable[dict], **where) -> dict[str, Sample]:
    """Returns the accuracies over the seeds by what was trained, or shared, of the rows with the given fields."""
    chosen = [row for row in rows if all(row[field] == value for field, value in where.items())]
    groups = grouped(chosen, "train" if chosen and "train" in chosen[0] else "share")
    return {str(name): Sample.of(group) for name, group in groups.items()}


def by_share(rows: list[dict]) -> dict[str, Sample]:
    """Returns the means over the tasks, one per seed, by what was shared."""
    return {str(share): mean_over_tasks(group) for share, group in grouped(rows, "share").items()}


def _of(results: Results, prefix: str) -> Iterable[tuple[str, list[dict]]]:
    return ((name, each["rows"]) for name, each in results.items() if name.split("-")[0] == prefix)


def _beats(
    prefix: str, high: str, low: str, claim: str, least: float = 0.0, samples: Callable[..., dict] = by_row
) -> Callable[[Results], Iterable[Verdict]]:
    """Returns the claim that one row is above another, by more than the spread, in all experiments of a prefix."""

    def verdicts(results: Results):
        for name, rows in _of(results, prefix):
            found = samples(rows)
            if high in found and low in found:
                numbers = f"`{high}` {found[high]}, `{low}` {found[low]}"
                yield Verdict(claim, name, found[high].above(found[low], least), numbers)

    return verdicts


def _patch_alone(results: Results):
    claim = f"`scale_bias` with a random last layer is comparable to `last`: within {100 * COMPARABLE:.0f} points"
    for name, rows in _of(results, "transfer"):
        samples = by_row(rows)
        if {"scale_bias", "last"} <= samples.keys():
            patch, last = samples["scale_bias"], samples["last"]
            holds = abs(patch.mean - last.mean) <= COMPARABLE
            yield Verdict(claim, name, holds, f"`scale_bias` {patch}, `last` {last}")


def _rates(results: Results):
    claim = "a patch benefits from a larger learning rate than `full` tolerates"
    for name, rows in _of(results, "rates"):
        accuracies = by_rate(rows)
        if "full" not in accuracies:
            continue
        best = {train: best_rate(rates) for train, rates in accuracies.items()}
        for train, rates in accuracies.items():
            rate = best[train]
            if train in ("full", "last") or rate not in accuracies["full"]:
                continue
            full, at_its_best = (accuracies["full"][each] for each in (rate, best["full"]))
            numbers = (
                f"best rate of `{train}` {rate:g}, {rates[rate]}; of `full` {best['full']:g}, {at_its_best}; "
                f"`full` at {rate:g}: {full}"
            )
            yield Verdict(claim, f"{name}, {train}", rate > best["full"] and at_its_best.above(full), numbers)


def _within_a_point(results: Results):
    claim = "a task with a shared trunk and its own patch is within 1 point of its separate model"
    for name, rows in _of(results, "multitask"):
        for task in dict.fromkeys(row["task"] for row in rows):
            samples = by_row(rows, task=task)
            if {"trunk", "nothing"} <= samples.keys():
                numbers = f"`trunk` {samples['trunk']}, `nothing` {samples['nothing']}"
                holds = samples["trunk"].mean >= samples["nothing"].mean - POINT
                yield Verdict(claim, f"{name}, {task}", holds, numbers)


_SHARED = ("trunk", "trunk+patch")

CLAIMS = (
    *(
        _beats("transfer", patch, "last", f"`{patch}` beats `last` by more than the spread")
        for patch in ("scale_bias+last", "depthwise+last")
    ),
    _patch_alone,
    _rates,
    _beats(
        *("random", "scale_bias+last", "last"),
        f"on a random trunk `scale_bias+last` beats `last` by at least {100 * FAR:.0f} points",
        least=FAR,
    ),
    _beats(
        *("statistics", "scale_bias+last", "statistics+last"),
        "training scale and bias beats re-estimating statistics alone, by more than the spread",
    ),
    *(
        _beats("ssd", patch, "last", f"on a detector's trunk `{patch}` beats `last` by more than the spread")
        for patch in ("scale_bias+last", "depthwise+last")
    ),
    _within_a_point,
    _beats(
        *("multitask", *_SHARED),
        "private patches beat shared ones by more than the spread, averaged over tasks",
        samples=by_share,
    ),
    _beats(
        *("resolutions", *_SHARED),
        "a patch per resolution beats one model for all, by more than the spread",
        samples=by_share,
    ),
)
"""Every claim: from the results to its verdicts."""
