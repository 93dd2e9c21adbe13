"""What each section of the report shows. A section that the run has nothing for yet is None."""

from __future__ import annotations

import datetime
from typing import Any

from markupsafe import Markup

from herd.console import duration, human_bytes, human_count
from herd.report_assistant import assistants, wanted_stages
from herd.report_assistant import headlines as assistant_headlines
from herd.report_diet import diet
from herd.report_members import exports, herd, quantized, training
from herd.report_plots import (
    Measured,
    descent,
    isoflop,
    optimum_law,
    scientific,
    verdict,
)
from herd.report_reading import STEPS, Run, anchor, exact, finished, moment, resume_command, started
from herd.scaling.forecast import Forecast
from herd.scaling.isoflop import Cell, by_budget

FLAGSHIP_MARK = ".forecast.loss"


def sections(run: Run) -> dict[str, Any]:
    """Everything the template needs."""
    return {
        "family": run.recipe.family.name if run.recipe else run.path.resolve().name,
        "description": run.recipe.family.description if run.recipe else "",
        "has_recipe": run.recipe is not None,
        "made": made(run),
        "headlines": headlines(run),
        "not_yet": not_yet(run),
        "stale": run.stale(),
        "resume": resume_command(run),
        "scratch": run.has_scratch,
        "assistants": assistants(run),
        "diet": diet(run),
        "scaling": scaling(run),
        "forecasts": forecasts(run),
        "training": training(run),
        "herd": herd(run),
        "exports": exports(run),
        "quantized": quantized(run),
        "ledger": ledger(run),
    }


def made(run: Run) -> dict[str, Any]:
    """When, how long and on what machines."""
    begins = [t for a in run.artifacts.values() if (t := started(a))]
    ends = [t for a in run.artifacts.values() if (t := finished(a))]
    machines, versions = [], []
    for artifact in run.artifacts.values():
        facts = artifact.manifest["recorded"]
        if machine := facts.get("machine"):
            parts = [
                machine.get("cpu"),
                f"{machine['cores']} cores" if "cores" in machine else None,
                machine.get("accelerator"),
                machine.get("system"),
            ]
            machines.append(", ".join(str(p) for p in parts if p))
            versions.append(
                f"herd {facts.get('herd', '?')}, torch {machine.get('torch', '?')}, Python {machine.get('python', '?')}"
            )
    return {
        "span": _span(min(begins), max(ends)) if begins and ends else "",
        "machines": list(dict.fromkeys(machines)),
        "versions": list(dict.fromkeys(versions)),
    }


def _span(first: datetime.datetime, last: datetime.datetime) -> str:
    """From when to when, the date said once where it is one, and how long that is."""
    begin, end = moment(first), moment(last)
    if first.date() == last.date():
        begin, end = begin.removesuffix(" UTC"), end.split(", ")[1]
    return f"{begin} to {end} ({duration((last - first).total_seconds())})"


def headlines(run: Run) -> list[dict[str, Any]]:
    """The numbers of the header, three for each half of the run; each says so where it is not there yet."""
    scratch = [_headline_forecast(run), _headline_best(run), _headline_bytes(run)] if run.has_scratch else []
    return scratch + (assistant_headlines(run) if run.adopted else [])


def _headline_forecast(run: Run) -> dict[str, Any]:
    found = forecasts(run, drawn=False)
    if not found:
        return {"title": "Forecast and measured", "big": "not yet", "small": "the forecast has not been written"}
    one = found[0]
    interval = Markup("{} {} at {}").format(one["forecast"], one["interval"], one["confidence"])
    if one["measured"] is None:
        return {
            "title": f"Forecast loss of {one['name']}",
            "big": one["forecast"],
            "small": Markup("nats a token, {}; not measured yet").format(interval),
        }
    verdict = "inside the interval" if one["inside"] else "outside the interval"
    sound = one["registered"] and not one["planned"] and not one["told"]
    return {
        "title": f"Measured loss of {one['name']}",
        "big": one["measured"],
        "small": Markup("nats a token; forecast before training: {}: {}.").format(
            interval, verdict if sound else "not comparable, see below"
        ),
    }


def _headline_best(run: Run) -> dict[str, Any]:
    found = [(c.value, m) for m in run.members if (c := run.claim(f"{m}.bits-per-byte"))]
    if not found:
        return {"title": "Best bits per byte", "big": "not yet", "small": "no member has been evaluated"}
    _, best = min(found)
    id = f"{best}.bits-per-byte"
    claim = run.entries[id].claim
    return {
        "title": "Best bits per byte",
        "big": run.cite(id),
        "small": Markup("{}, {} at {:.0%}, on {:,} held-out documents").format(
            best, run.cite_interval(id) or "no interval", claim.confidence or 0, claim.n
        ),
    }


def _headline_bytes(run: Run) -> dict[str, Any]:
    if "curate" not in run.artifacts:
        return {"title": "Text curated", "big": "not yet", "small": "curation has not been run"}
    funnel = run.artifacts["curate"].json("funnel.json")
    kept, steps = funnel["kept"], funnel["steps"]
    read = f" of {steps[0]['documents_in']:,} read" if steps else ""
    return {
        "title": "Text curated",
        "big": run.from_file("curate", "funnel.json", human_bytes(kept["bytes"])),
        "small": f"in {kept['documents']:,} documents{read}",
    }


def not_yet(run: Run) -> list[str]:
    """Stages that the recipe asks for and the run doesn't have."""
    wanted = [*(_wanted_from_scratch(run) if run.has_scratch else []), *wanted_stages(run)]
    return [stage for stage in wanted if stage not in run.artifacts]


def _wanted_from_scratch(run: Run) -> list[str]:
    pretrain = run.recipe.pretrain if run.recipe else None
    steps = [s for s in STEPS if s == "pretrain" or (pretrain and getattr(pretrain, s.replace("-", "_")))]
    wanted = ["sources", "curate", "tokenizer", "shards", "ladder", "forecast"]
    wanted += [f"{step}-{m}" for m in run.members for step in (*steps, "evaluate", "export")]
    return wanted if run.members else [*wanted, "the members"]


def scaling(run: Run) -> dict[str, Any] | None:
    """IsoFLOP bowls and the power law of their bottoms."""
    if "ladder" not in run.artifacts:
        return None
    rows = run.artifacts["ladder"].json("cells.json")
    groups = by_budget([Cell(c["budget_flops"], c["parameters"], c["tokens"], c["loss"]) for c in rows])
    found = _forecast(run)
    cells = [
        [{"cell": c, "loss": run.cite(f"ladder.{c.budget_flops:g}.{c.parameters}.loss")} for c in group]
        for group in groups
    ]
    table = [{"budget": scientific(g[0]["cell"].budget_flops), "cells": [_cell(c) for c in g]} for g in cells]
    shown: dict[str, Any] = {
        "count": run.from_file("ladder", "cells.json", str(len(rows))),
        "budgets": len(groups),
        "table": table,
        "bowls": isoflop(groups, found.bowls if found else ()),
        "law": None,
    }
    if found is None:
        return shown
    built = next((p for m in run.members if (p := _built(run, m)) and run.claim(m + FLAGSHIP_MARK)), None)
    low, high = found.parameters_interval
    return shown | {
        "law": optimum_law(found.bowls, found.size_law, found.budget_flops, found.parameters, low, high, built),
        "exponent": run.cite("forecast.size-exponent"),
        "exponent_interval": run.cite_interval("forecast.size-exponent"),
        "optimum": run.from_file("forecast", "forecast.json", human_count(found.parameters)),
        "optimum_interval": run.from_file("forecast", "forecast.json", f"{human_count(low)} to {human_count(high)}"),
        "noise": run.from_file("forecast", "forecast.json", f"{found.noise:.3f}"),
        "confidence": f"{found.confidence:.0%}",
        "flops": scientific(found.budget_flops),
        "largest": f"{found.budget_flops / groups[-1][0].budget_flops:.3g}",
        "unbracketed": sum(not b.bracketed for b in found.bowls),
    }


def _cell(shown: dict[str, Any]) -> dict[str, Any]:
    cell = shown["cell"]
    return {
        "parameters": human_count(cell.parameters),
        "tokens": human_count(cell.tokens),
        "loss": shown["loss"] or f"{cell.loss:.3f}",
    }


def _forecast(run: Run) -> Forecast | None:
    return Forecast.from_dict(run.artifacts["forecast"].json("forecast.json")) if "forecast" in run.artifacts else None


def _built(run: Run, member: str) -> float | None:
    artifact = run.artifacts.get(f"pretrain-{member}")
    return artifact.json("training.json")["matmul_parameters"] if artifact else None


def forecasts(run: Run, drawn: bool = True) -> list[dict[str, Any]]:
    """Each forecast loss beside what was measured, with the evidence that it was written first."""
    found = _forecast(run)
    if found is None:
        return []
    result = []
    for name in run.members:
        claim, measured = run.claim(name + FLAGSHIP_MARK), run.claim(f"{name}.pretrain.loss")
        if claim is None or claim.low is None or claim.high is None:
            continue
        one: dict[str, Any] = {
            "name": name,
            "forecast": run.cite(claim.id),
            "interval": run.cite_interval(claim.id),
            "confidence": f"{claim.confidence or 0:.0%}",
            "measured": None,
        }
        if measured is not None:
            one |= _comparison(run, name, claim.value, claim.low, claim.high, measured.value)
        if drawn:
            bar = Measured(claim.value, claim.low, claim.high)
            loss = measured.value if measured else None
            one |= {"verdict": verdict(name, bar, loss), "descent": descent(found.bowls, found.budget_flops, bar, loss)}
        result.append(one)
    return result


def _comparison(run: Run, name: str, forecast: float, low: float, high: float, measured: float) -> dict[str, Any]:
    training, written = run.artifacts.get(f"pretrain-{name}"), run.artifacts["forecast"]
    error, told = measured / forecast - 1, run.claim(f"{name}.forecast.error")
    agrees = told is not None and abs(told.value - error) < 1e-6
    end = high if measured > high else low
    ends, begins = finished(written), started(training) if training else None
    return {
        "measured": run.cite(f"{name}.pretrain.loss"),
        "inside": low <= measured <= high,
        "error": run.cite(f"{name}.forecast.error" if agrees else name + FLAGSHIP_MARK, f"{abs(error):.1%}"),
        "told": None if agrees or told is None else run.cite(told.id, f"{told.value:+.1%}"),
        **_as_planned(run, name),
        "direction": "above" if error > 0 else "below",
        "beyond": run.cite(name + FLAGSHIP_MARK, f"{abs(measured / end - 1):.1%}"),
        "registered": training is not None and training.manifest["asked"]["inputs"].get("forecast") == written.content,
        "content": written.content,
        "forecast_manifest": f"{written.path.name}/manifest.json",
        "training_manifest": f"{training.path.name}/manifest.json" if training else "",
        "written_at": moment(ends),
        "training_at": moment(begins),
        "in_order": bool(ends and begins and ends.replace(microsecond=0) <= begins),
    }


def _as_planned(run: Run, name: str) -> dict[str, Any]:
    """Whether the member was built as the forecast planned it; a loss forecast for one size says little of another."""
    plans = run.artifacts["forecast"].json("recorded/members.json")
    if f"pretrain-{name}" not in run.artifacts or name not in plans:
        return {"planned": None, "built": None}
    facts = run.artifacts[f"pretrain-{name}"].json("training.json")
    planned, built = ({k: f[k] for k in ("parameters", "tokens")} for f in (plans[name], facts))
    said = [f"{f['parameters']:,} parameters on {human_count(f['tokens'])} tokens" for f in (planned, built)]
    if planned == built:
        return {"planned": None, "built": None}
    return {
        "planned": run.from_file("forecast", "recorded/members.json", said[0]),
        "built": run.from_file(f"pretrain-{name}", "training.json", said[1]),
    }


def ledger(run: Run) -> list[dict[str, Any]]:
    """Every claim, in the order the stages of this run made them; claims of artifacts since replaced come last."""
    order = {a.path.name: i for i, a in enumerate(run.artifacts.values())}
    rows = []
    for id, entry in run.entries.items():
        claim = entry.claim
        interval = (
            f"{exact(claim.low)} to {exact(claim.high)}" if claim.low is not None and claim.high is not None else ""
        )
        when = entry.recorded.get("started")
        rows.append(
            {
                "anchor": anchor(id),
                "id": id,
                "what": claim.what,
                "value": exact(claim.value),
                "unit": {"1": "", "fraction": "(fraction)"}.get(claim.unit, claim.unit),
                "interval": interval,
                "confidence": f"{claim.confidence:.0%}" if claim.confidence and interval else "",
                "method": claim.method,
                "n": f"{claim.n:,}",
                "of": claim.of,
                "artifact": entry.artifact,
                "there": (run.path / entry.artifact).is_dir(),
                "current": entry.artifact in order,
                "command": entry.command,
                "when": moment(datetime.datetime.fromisoformat(when)) if when else "",
            }
        )
    return sorted(rows, key=lambda r: order.get(r["artifact"], len(order)))
