"""What the report shows of members that were adopted: where they are from, and what each step of the round did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from herd.artifact import Artifact
from herd.console import human_bytes, human_count
from herd.evidence import Claim
from herd.report_assistant_plots import accuracy as accuracy_plot
from herd.report_dial import dial
from herd.report_failures import failures, kinds
from herd.report_plots import Measured
from herd.report_reading import Run, say

ROUND = {  # steps that are measured, in order: what claims call them -> what people do
    "zero-shot": "as adopted",
    "after-sft": "after SFT",
    "after-rejection": "after rejection sampling",
    "after-dpo": "after DPO",
}
ON_THE_AXIS = ("as adopted", "SFT", "rejection\nsampling", "DPO")
MADE_BY = {  # stages that say who wrote and who judged what they train on
    "sft": "SFT",
    "samples": "samples",
    "reward": "reward model",
    "rejection": "rejection sampling",
    "dpo": "DPO",
}


def assistants(run: Run) -> list[dict[str, Any]]:
    """A section's content for each adopted member."""
    return [_assistant(run, name) for name in run.adopted]


def _assistant(run: Run, name: str) -> dict[str, Any]:
    last = last_step(run, name)
    answers = run.artifacts.get(f"executed-{last}-{name}")
    return {
        "name": name,
        "origin": origin(run, name),
        "tables": tables(run),
        "accuracy": accuracy(run, name),
        "last": ROUND.get(last or ""),
        "kinds": kinds(run, answers) if answers else None,
        "failures": failures(run, answers) if answers else None,
        "chats": chats(run, name),
        "making": list(making(run, name)),
        "lineage": list(lineage(run, name)),
        "dial": dial(run, name),
        "dial_wanted": _has_dial(run, name),
    }


def last_step(run: Run, name: str) -> str | None:
    """The last step of the round that was measured, None before the first."""
    measured = [step for step in ROUND if f"executed-{step}-{name}" in run.artifacts]
    return measured[-1] if measured else None


def wanted_stages(run: Run) -> list[str]:
    """The stages that the recipe asks for, as far as adopted members go, in order."""
    wanted = [f"adopt-{name}" for name in run.adopted]
    if run.recipe is None or run.recipe.posttrain is None or not run.recipe.assistants:
        return wanted
    safe = run.recipe.safety is not None
    wanted += ["questions", *(["guard"] if safe else [])]
    steps = ("chats", "executed-zero-shot", "sft", "executed-after-sft", "samples", "reward", "rejection")
    steps += ("executed-after-rejection", "dpo", "executed-after-dpo", *(("dial",) if safe else ()))
    return wanted + [f"{step}-{member.name}" for member in run.recipe.assistants for step in steps]


def _has_dial(run: Run, name: str) -> bool:
    """Whether there is a dial, or the recipe asks for one."""
    return f"dial-{name}" in [*run.artifacts, *wanted_stages(run)]


def headlines(run: Run) -> list[dict[str, Any]]:
    """The three numbers of the header for the first assistant."""
    name = run.adopted[0]
    safety = [_headline_dial(run, name)] if _has_dial(run, name) else []
    return [_headline_accuracy(run, name), *safety, _headline_chats(run, name)]


def _headline_accuracy(run: Run, name: str) -> dict[str, Any]:
    title, last = f"Questions {name} answers right", last_step(run, name)
    claim = run.claim(f"{name}.executed.unseen.{last}")
    if last is None or claim is None:
        return {"title": title, "big": "not yet", "small": "the questions have not been put to it"}
    small = Markup("{} at {:.0%}, of {} on tables and phrasings never trained on").format(
        run.cite_interval(claim.id) or "no interval", claim.confidence or 0, claim.n
    )
    start = run.cite(f"{name}.executed.unseen.zero-shot")
    if start is not None and last != "zero-shot":
        small += Markup("; {} as adopted").format(start)
    return {"title": title, "big": run.cite(claim.id), "small": small}


def _headline_dial(run: Run, name: str) -> dict[str, Any]:
    prefix, title = f"{name}.safety", "Violations and false refusals"
    violation, refusal = (run.cite(f"{prefix}.{rate}.guarded") for rate in ("violation", "false-refusal"))
    if violation is None or refusal is None:
        return {"title": title, "big": "not yet", "small": "the dial has not been measured"}
    small = Markup("behind the guard, {} and {}; alone {} and {}").format(
        run.cite_interval(f"{prefix}.violation.guarded"),
        run.cite_interval(f"{prefix}.false-refusal.guarded"),
        run.cite(f"{prefix}.violation.model"),
        run.cite(f"{prefix}.false-refusal.model"),
    )
    return {"title": title, "big": Markup("{} · {}").format(violation, refusal), "small": small}


def _headline_chats(run: Run, name: str) -> dict[str, Any]:
    title, last = "Loss on general chats", last_step(run, name)
    id = f"{name}.chat.loss.{last}"
    if last is None or run.claim(id) is None:
        return {"title": title, "big": "not yet", "small": "chats have not been measured"}
    small = Markup("nats a token, {}").format(ROUND[last])
    if last != "zero-shot":
        small += Markup("; {} as adopted").format(run.cite(f"{name}.chat.loss.zero-shot") or "not measured")
    return {"title": title, "big": run.cite(id), "small": small}


def origin(run: Run, name: str) -> dict[str, Any] | None:
    """Where the weights are from; None before they were adopted."""
    stage = f"adopt-{name}"
    if stage not in run.artifacts:
        return None
    facts = run.artifacts[stage].json("origin.json")
    config = run.artifacts[stage].json("config.json") if "config.json" in run.artifacts[stage].manifest["files"] else {}
    rounded = [form for form in facts.get("quantization", {}) if form not in ("F32", "F16", "BF16")]
    return {
        "called": facts.get("name") or "open weights",
        "from": run.from_file(stage, "origin.json", facts.get("package") or facts.get("file") or "an unnamed file"),
        "licence": facts.get("licence") or "no licence stated",
        "parameters": run.cite(f"{name}.parameters", human_count(facts["parameters"]))
        or run.from_file(stage, "origin.json", human_count(facts["parameters"])),
        "sha256": facts.get("sha256", ""),
        "rounded": rounded,
        "shape": f"{config['layers']} layers of {config['dim']}, context {config['context']:,}" if config else "",
    }


def tables(run: Run) -> dict[str, Any] | None:
    """What questions and dialogs are about."""
    if "questions" not in run.artifacts:
        return None
    named = {"dialogs": "questions.dialogs", "train": "questions.tables.train", "test": "questions.tables.test"}
    return {key: run.cite(id) for key, id in named.items()}


def accuracy(run: Run, name: str) -> dict[str, Any] | None:
    """Accuracy by step, what each step added, and what is measured beside it; None before the first measurement."""
    steps = [step for step in ROUND if run.claim(f"{name}.executed.unseen.{step}")]
    if not steps:
        return None
    series = [
        (label, [_measured(run.claim(f"{name}.executed.{group}.{step}")) for step in ROUND])
        for group, label in (("unseen", "new phrasings"), ("unseen-tables", "known phrasings"))
    ]
    first, last = (run.claim(f"{name}.executed.unseen.{step}") for step in (steps[0], steps[-1]))
    assert first is not None and last is not None
    return {
        "plot": accuracy_plot(name, ON_THE_AXIS, series),
        "rows": [_step(run, name, step) for step in steps],
        "n": last.n,
        "confidence": f"{last.confidence or 0:.0%}",
        "start": {"step": ROUND[steps[0]], "value": run.cite(first.id), "interval": run.cite_interval(first.id)},
        "end": {"step": ROUND[steps[-1]], "value": run.cite(last.id), "interval": run.cite_interval(last.id)}
        if len(steps) > 1
        else None,
        "apart": _apart(first, last),
        "said": list(_gains(run, name, steps[1:])),
        "talk": run.claim(f"{name}.no-tool.{steps[-1]}"),
    }


def _measured(claim: Claim | None) -> Measured | None:
    return Measured(claim.value, claim.low, claim.high) if claim else None


def _apart(first: Claim, last: Claim) -> str:
    """What the two intervals say, without any test beyond them."""
    if first.low is None or first.high is None or last.low is None or last.high is None:
        return ""
    if last.low > first.high:
        return "The second interval lies wholly above the first."
    if last.high < first.low:
        return "The second interval lies wholly below the first: the round did harm."
    return "The two intervals overlap."


def _step(run: Run, name: str, step: str) -> dict[str, Any]:
    ids = {
        "unseen": f"{name}.executed.unseen.{step}",
        "known": f"{name}.executed.unseen-tables.{step}",
        "said": f"{name}.said.unseen.{step}",
        "ran": f"{name}.ran.unseen.{step}",
        "talk": f"{name}.no-tool.{step}",
    }
    row: dict[str, Any] = {key: {"value": run.cite(id), "interval": run.cite_interval(id)} for key, id in ids.items()}
    gain = run.claim(f"{name}.executed.unseen.gain.{step}")
    row["gain"] = None
    if gain is not None:
        row["gain"] = {
            "value": run.cite(gain.id, points(gain.value)),
            "interval": _points_interval(run, gain),
            "verdict": verdict(gain),
        }
    return row | {"step": ROUND[step]}


def points(share: float) -> str:
    """A difference of two shares in percentage points, signed."""
    return f"{100 * share:+.1f}"


def _points_interval(run: Run, claim: Claim) -> Markup | None:
    if claim.low is None or claim.high is None:
        return None
    return run.cite(claim.id, f"[{points(claim.low)}, {points(claim.high)}]")


def verdict(change: Claim, more_is_better: bool = True) -> str:
    """Better or worse where the interval of a change leaves out zero, else unclear."""
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "unclear"
    return "better" if (change.value > 0) == more_is_better else "worse"


def _gains(run: Run, name: str, steps: list[str]) -> Iterator[Markup]:
    """A sentence for each step: what it added, took, or could not be shown to have done."""
    for step in steps:
        gain = run.claim(f"{name}.executed.unseen.gain.{step}")
        if gain is None:
            continue
        what, by = ROUND[step].removeprefix("after "), run.cite(gain.id, f"{abs(100 * gain.value):.1f} points")
        what, interval = what[0].upper() + what[1:], _points_interval(run, gain)
        if verdict(gain) == "unclear":
            text = Markup(
                "{} changed it by {} {}: the interval holds zero, so {} questions cannot tell it from nothing."
            )
            yield text.format(what, run.cite(gain.id, f"{points(gain.value)} points"), interval or "", gain.n)
        elif gain.value > 0:
            yield Markup("{} added {} {}.").format(what, by, interval)
        else:
            yield Markup("{} made it worse by {} {}.").format(what, by, interval)


def chats(run: Run, name: str) -> dict[str, Any] | None:
    """Loss on general chats by step, with the change of each step."""
    rows = []
    for step, label in ROUND.items():
        id, change = f"{name}.chat.loss.{step}", run.claim(f"{name}.chat.change.{step}")
        if run.claim(id) is None:
            continue
        rows.append(
            {
                "step": label,
                "loss": run.cite(id),
                "change": run.cite(change.id, f"{change.value:+.3f}") if change else None,
                "interval": run.cite_interval(change.id) if change else None,
                "verdict": verdict(change, more_is_better=False) if change else "",
            }
        )
    worse = [row["step"].removeprefix("after ") for row in rows if row["verdict"] == "worse"]
    n = next((c.n for step in ROUND if (c := run.claim(f"{name}.chat.loss.{step}"))), 0)
    return {"rows": rows, "worse": worse, "changes": sum(bool(r["verdict"]) for r in rows), "n": n} if rows else None


def making(run: Run, name: str) -> Iterator[Markup]:
    """Sentences on the samples, the reward model, and the two trainings that use them."""
    one, best, ordered = (run.claim(f"{name}.{id}") for id in ("samples.one", "samples.best", "reward.pairs"))
    if one is not None and best is not None:
        text = "Of {:,} samples {} {} are right, and {} {} of the {:,} questions have a right one among theirs: "
        room = "choosing well could gain {} points over a single sample."
        parts = (one.n, *_both(run, one), *_both(run, best), best.n, f"{100 * (best.value - one.value):.1f}")
        yield Markup(text + room).format(*parts)
    if ordered is not None:
        text = Markup(
            "The reward model gives the right answer of a pair the higher score in {} {} of {:,} held-out pairs{}."
        )
        low, high = ordered.low or 0, 1 if ordered.high is None else ordered.high
        coin = "; the interval holds 50%, so this could be a coin" if low <= 0.5 <= high else ""
        yield text.format(*_both(run, ordered), ordered.n, coin)
    if (kept := run.cite(f"{name}.rejection.kept")) is not None:
        yield Markup("Rejection sampling tuned it on {} of its own right answers.").format(kept)
    yield from _preferences(run, name)


def _both(run: Run, claim: Claim) -> tuple[Markup | None, Markup | str]:
    return run.cite(claim.id), run.cite_interval(claim.id) or ""


def _preferences(run: Run, name: str) -> Iterator[Markup]:
    chosen, rejected = (run.claim(f"{name}.dpo.{id}.drift") for id in ("chosen", "rejected"))
    if chosen is not None and rejected is not None:
        text = Markup("DPO moved the log-probability of right answers by {} nats and of wrong ones by {}{}.")
        fell = chosen.value < 0 and rejected.value < 0
        ending = ": both fell, which is its known failure" if fell else ""
        drift = (run.cite(one.id, f"{one.value:+.2f}") for one in (chosen, rejected))
        yield text.format(*drift, ending)
    artifact = run.artifacts.get(f"dpo-{name}")
    if artifact is not None and "averaged" in (facts := artifact.json("training.json")):
        tuned, mean = (f"{facts['dev'][key]:.0%}" for key in ("tuned", "averaged"))
        kept = (
            "the mean of the weights before and after is kept" if facts["averaged"] else "the weights are kept as tuned"
        )
        text = Markup("On the dev questions the tuned weights answer {} right, their mean with those before {}: {}.")
        cited = (run.from_file(artifact.stage, "training.json", share) for share in (tuned, mean))
        yield text.format(*cited, kept)


def lineage(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """Of each step: what it started from, who wrote the answers it learned from, who judged them."""
    for stage, label in MADE_BY.items():
        artifact = run.artifacts.get(f"{stage}-{name}")
        if artifact is None or "lineage.json" not in artifact.manifest["files"]:
            continue
        facts = artifact.json("lineage.json")
        shown = {"generated by", "answers", "graded by", "start", "content"}
        yield {
            "step": run.from_file(artifact.stage, "lineage.json", label),
            "start": _of(facts.get("start", ""), name),
            "wrote": _of(facts.get("generated by") or facts.get("answers", ""), name),
            "graded": _of(facts.get("graded by", ""), name),
            "more": "; ".join(f"{k.replace('_', ' ')}: {_of(v, name)}" for k, v in facts.items() if k not in shown),
            "size": _weights(artifact),
        }


def _of(value: Any, name: str) -> str:
    """A stage's name without its member, and a number or word as it is."""
    return say(value, "1") if isinstance(value, float) else str(value).removesuffix(f"-{name}")


def _weights(artifact: Artifact) -> str:
    size = sum(entry["bytes"] for file, entry in artifact.manifest["files"].items() if file.endswith(".safetensors"))
    return human_bytes(size) if size else ""
