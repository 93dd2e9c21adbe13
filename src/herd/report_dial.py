"""What the report shows of safety: violation rate and false refusal rate, never one without the other."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from herd.report_assistant_plots import dial as dial_plot
from herd.report_plots import Measured
from herd.report_reading import Run

SYSTEMS = {"model": "the model alone", "guard": "the guard alone", "guarded": "model and guard"}

Rate = dict[str, Any]


def dial(run: Run, name: str) -> dict[str, Any] | None:
    """The dial of a member; None before it was measured."""
    stage = f"dial-{name}"
    if stage not in run.artifacts:
        return None
    found = run.artifacts[stage].json("dial.json")
    overall = found["overall"]
    budget = run.recipe.safety.false_refusal_budget if run.recipe and run.recipe.safety else None
    return {
        "plot": _plot(name, found),
        "overall": [_row(run, name, "", system, label, overall[system]) for system, label in SYSTEMS.items()],
        "sources": [_source(run, name, source, systems) for source, systems in found["sources"].items()],
        "harmful": _n(overall["model"]["violation"]),
        "benign": _n(overall["model"]["false_refusal"]),
        "threshold": run.from_file(stage, "dial.json", f"{found['threshold']:.3f}"),
        "budget": f"{budget:.0%}" if budget is not None else None,
        "means": _meaning(run, name),
        "changes": _changes(run, name, found["cost"]),
        "degenerate": _degenerate(run, stage, found["degenerate"]),
        "auroc": run.cite("guard.auroc"),
        "responses": f"{run.artifacts[stage].path.name}/responses.jsonl",
    }


def _row(run: Run, name: str, source: str, system: str, label: str, pair: dict[str, Rate | None]) -> dict[str, Any]:
    return {
        "label": label,
        "violation": _cell(run, name, "violation", system, source, pair["violation"]),
        "refusal": _cell(run, name, "false-refusal", system, source, pair["false_refusal"]),
    }


def _source(run: Run, name: str, source: str, systems: dict[str, Any]) -> dict[str, Any]:
    rows = [_row(run, name, source, system, label, systems[system]) for system, label in SYSTEMS.items()]
    return {
        "name": source,
        "harmful": _n(systems["model"]["violation"]),
        "benign": _n(systems["model"]["false_refusal"]),
        "rows": rows,
    }


def _cell(run: Run, name: str, rate: str, system: str, source: str, found: Rate | None) -> dict[str, Any] | None:
    """A rate with its interval, linked to its claim; those of the guard alone have none and go to the file."""
    if found is None:
        return None
    id = f"{name}.safety.{rate}.{system}" + (f".{source}" if source else "")
    low, high = f"{found['low']:.0%}", f"{found['high']:.0%}"
    text = f"{found['value']:.1%}"
    return {
        "value": run.cite(id, text) or run.from_file(f"dial-{name}", "dial.json", text),
        "interval": f"[{low}, {high}]",
        "count": f"{found['count']} of {found['n']}",
    }


def _n(rate: Rate | None) -> int:
    return rate["n"] if rate else 0


def _meaning(run: Run, name: str) -> dict[str, Any]:
    """What the two rates count, in the words of their claims."""
    ids = {"violation": f"{name}.safety.violation.model", "refusal": f"{name}.safety.false-refusal.model"}
    found = {key: run.claim(id) for key, id in ids.items()}
    return {key: claim.what if claim else None for key, claim in found.items()}


def _changes(run: Run, name: str, cost: dict[str, Rate | None]) -> Markup | None:
    """What the guard does to this model, both ways in one sentence."""
    prevented, added = (_changed(run, f"{name}.safety.guard.{id}") for id in ("prevented", "added-refusals"))
    if prevented is None or added is None or not all(cost.values()):
        return None
    return Markup(
        "The guard prevents a violation on {} of the harmful prompts and adds a refusal on {} of the benign ones."
    ).format(prevented, added)


def _changed(run: Run, id: str) -> Markup | None:
    value = run.cite(id)
    return None if value is None else Markup("{} {}").format(value, run.cite_interval(id) or "")


def _degenerate(run: Run, stage: str, found: dict[str, Rate | None]) -> list[Markup]:
    """How many answers were empty or a loop, of each kind of prompts that there is."""
    parts = []
    for side in ("harmful", "benign"):
        if (rate := found.get(side)) is not None:
            count = run.from_file(stage, "dial.json", f"{rate['count']}")
            parts.append(Markup("{} of {} answers to {} prompts").format(count, rate["n"], side))
    return parts


def _plot(name: str, found: dict[str, Any]) -> Markup | None:
    """None where one of the two rates has no prompts."""
    pairs = {system: found["overall"][system] for system in SYSTEMS}
    if any(rate is None for pair in pairs.values() for rate in pair.values()):
        return None
    curve = [(p["guarded"]["false_refusal"]["value"], p["guarded"]["violation"]["value"]) for p in found["curve"]]
    systems = [
        (SYSTEMS[system], _as_measured(pair["false_refusal"]), _as_measured(pair["violation"]))
        for system, pair in pairs.items()
    ]
    return dial_plot(name, curve, systems)


def _as_measured(rate: Rate) -> Measured:
    return Measured(rate["value"], rate["low"], rate["high"])
