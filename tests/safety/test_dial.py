from __future__ import annotations

import json

import pytest

from herd.intervals import wilson
from herd.safety.dial import Outcome, curve, measure, rate
from herd.safety.refusal import Verdict


def outcome(number: int, harmful: bool, score: float, verdict: Verdict, source: str = "s") -> Outcome:
    return Outcome(f"{source}/{number}", source, harmful, score, verdict)


TOY = [
    outcome(1, True, 0.9, "compliance"),  # prevented
    outcome(2, True, 0.9, "refusal"),
    outcome(3, True, 0.1, "partial"),  # let through, a violation
    outcome(4, True, 0.1, "degenerate"),
    outcome(5, False, 0.9, "compliance", "t"),  # refused by the guard alone
    outcome(6, False, 0.9, "refusal", "t"),  # refused by both: no cost of the guard
    outcome(7, False, 0.5, "degenerate", "t"),  # at the threshold: blocked
    outcome(8, False, 0.1, "partial", "t"),
    outcome(9, False, 0.1, "compliance", "t"),
]


def test_rates_by_hand() -> None:
    dial = measure(TOY, 0.5)
    found = dial.overall

    def counts(pair) -> list[tuple[int, int]]:
        return [(r.count, r.n) for r in (pair.violation, pair.false_refusal)]

    assert counts(found.model) == [(2, 4), (2, 5)]
    assert counts(found.guard) == [(2, 4), (3, 5)]
    assert counts(found.guarded) == [(1, 4), (4, 5)]
    cost = dial.cost
    assert cost.prevented and cost.added_refusals
    assert (cost.prevented.count, cost.added_refusals.count) == (1, 2)
    assert {side: r and (r.count, r.n) for side, r in dial.degenerate.items()} == {"harmful": (1, 4), "benign": (1, 5)}


def test_a_source_of_one_label_has_one_rate_only() -> None:
    sources = measure(TOY, 0.5).sources
    assert list(sources) == ["s", "t"]
    assert sources["s"].model.false_refusal is None and sources["t"].model.violation is None


def test_what_the_guard_changes_adds_up_at_every_threshold() -> None:
    for point in curve(TOY):
        dial = measure(TOY, point.threshold)
        model, both, cost = dial.overall.model, dial.overall.guarded, dial.cost
        assert model.violation and model.false_refusal and both.violation and both.false_refusal
        assert cost.prevented and cost.added_refusals
        assert both.violation.count == model.violation.count - cost.prevented.count
        assert both.false_refusal.count == model.false_refusal.count + cost.added_refusals.count


def test_the_curve_runs_from_the_model_alone_to_a_wall() -> None:
    many = [outcome(i, i % 2 == 0, i / 1000, "compliance") for i in range(1000)]
    points = curve(many)
    rates = [(p.guarded.violation.value, p.guarded.false_refusal.value) for p in points]  # type: ignore[union-attr]
    assert rates[0] == (1.0, 0.0) and rates[-1] == (0.0, 1.0)
    assert [v for v, _ in rates] == sorted((v for v, _ in rates), reverse=True)
    assert [f for _, f in rates] == sorted(f for _, f in rates)
    assert 40 < len(points) <= 61


def test_intervals_are_wilsons_and_the_whole_is_json() -> None:
    found = rate(3, 59)
    assert (found.low, found.high) == wilson(3, 59)
    value = json.loads(json.dumps(measure(TOY, 0.5).to_json(), allow_nan=False))
    assert value["overall"]["guarded"]["violation"]["n"] == 4
    assert value["curve"][0]["guarded"]["false_refusal"].keys() == {"count", "n", "value", "low", "high"}


def test_no_outcomes_are_an_error() -> None:
    with pytest.raises(ValueError, match="needs outcomes"):
        measure([], 0.5)
