"""What the report shows of the members: their training, how they compare, and their exports."""

from __future__ import annotations

import itertools
import re
from typing import Any

from markupsafe import Markup

from herd.artifact import Artifact
from herd.console import human_bytes, human_count
from herd.deploy.export import SCHEMA as PARITY_SCHEMA
from herd.deploy.quantize import SCHEMA as QUALITY_SCHEMA
from herd.evidence import Claim
from herd.infer.quantize import SCHEMES
from herd.report_plots import Curve, Measured, dots, loss_curves, scientific, smooth
from herd.report_reading import Run, metrics


def training(run: Run) -> dict[str, Any] | None:
    """Loss curves of the members, and what the steps after initial pre-training changed."""
    trained = [m for m in run.members if f"pretrain-{m}" in run.artifacts]
    if not trained:
        return None
    changes = [row for m in trained for row in _changes(run, m)]
    averaged = [row for row in changes if row["step"] == "averaging"]
    return {
        "curves": loss_curves([_curve(run, m) for m in trained]),
        "changes": changes,
        "better": sum(row["verdict"] == "better" for row in changes),
        "averaged": len(averaged),
        "averaging_helped": sum(row["verdict"] == "better" for row in averaged),
    }


def _curve(run: Run, member: str) -> Curve:
    tokens: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    breaks, seen = [], 0
    for step, artifact in run.steps(member):
        rows = metrics(artifact)
        x, y = smooth([seen + r["tokens"] for r in rows], [r["loss"] for r in rows], 70 if step == "pretrain" else 4)
        if seen and x:
            breaks.append((step, x[0]))
        tokens, losses, seen = tokens + x, losses + y, seen + (rows[-1]["tokens"] if rows else 0)
    return Curve(member, tokens, losses, tuple(breaks))


def _changes(run: Run, member: str) -> list[dict[str, Any]]:
    """Before and after of each later step, in windows of equal length, so that the two can be compared."""
    long, last, mean = f"{member}.long-context.loss", f"{member}.anneal.loss-last", f"{member}.anneal.loss-average"
    before_anneal = long if f"long-context-{member}" in run.artifacts else f"{member}.pretrain.loss"
    rows = []
    for step, before, after, id in (
        ("long context", f"{long}-before", long, f"{member}.long-context.change"),
        ("annealing", before_anneal, last, f"{member}.anneal.change"),
        ("averaging", last, mean, f"{member}.anneal.averaging-change"),
    ):
        first, second, difference = run.claim(before), run.claim(after), run.claim(id)
        artifact = run.artifacts.get(f"{'long-context' if step == 'long context' else 'anneal'}-{member}")
        if first is None or second is None or artifact is None:
            continue
        change = second.value / first.value - 1
        rows.append(
            {
                "member": member,
                "step": step,
                "windows": artifact.json("config.json")["context"],
                "before": run.cite(before),
                "after": run.cite(after),
                "change": change,
                "difference": run.cite(id, f"{difference.value:+.4f}") if difference else None,
                "interval": run.cite_interval(id),
                "verdict": _verdict(difference) if difference else ("better" if change < 0 else "worse"),
            }
        )
    return rows


def _verdict(difference: Claim) -> str:
    """Better or worse where the interval of the difference leaves out zero, else unclear."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "unclear"
    return "better" if difference.value < 0 else "worse"


def herd(run: Run) -> dict[str, Any] | None:
    """The members side by side."""
    rows = [_member(run, m) for m in run.members]
    measured = [m for m in run.members if run.claim(f"{m}.bits-per-byte")]
    if not any(row["trained"] for row in rows):
        return None
    slices, hidden = _slices(run, measured)
    unit = "bits per byte (lower is better)"
    return {
        "rows": rows,
        "plot": dots(slices, measured, unit) if measured else None,
        "slices": len(slices),
        "hidden": hidden,
        "count": len(measured),
    }


def _member(run: Run, name: str) -> dict[str, Any]:
    role = next((m.role for m in run.recipe.member if m.name == name), "not in the recipe now") if run.recipe else ""
    row: dict[str, Any] = {"name": name, "role": role, "trained": f"pretrain-{name}" in run.artifacts}
    if not row["trained"]:
        return row
    facts = [a.json("training.json") for _, a in run.steps(name)]
    newest, artifact = list(run.steps(name))[-1]
    config = artifact.json("config.json")
    bits = f"{name}.bits-per-byte"
    return row | {
        "parameters": run.from_file(f"{newest}-{name}", "training.json", human_count(facts[0]["parameters"])),
        "shape": f"{config['layers']} layers of {config['dim']}",
        "context": config["context"],
        "tokens": run.from_file(f"pretrain-{name}", "training.json", human_count(sum(f["tokens"] for f in facts))),
        "epochs": f"{sum(f['epochs'] for f in facts):.2g}",
        "flops": run.from_file(f"pretrain-{name}", "training.json", scientific(sum(f["flops"] for f in facts))),
        "bits": run.cite(bits),
        "bits_interval": run.cite_interval(bits),
        "speed": run.cite(f"{name}.decode.tokens-per-second"),
        "memory": run.cite(f"{name}.memory.bytes"),
    }


def _slices(run: Run, members: list[str]) -> tuple[list[tuple[str, dict[str, Measured]]], list[str]]:
    """Rows of the plot, overall first; slices that are the whole held-out set again are named, not drawn."""
    rows: dict[str, dict[str, Measured]] = {"overall": {}}
    hidden: list[str] = []
    for name in members:
        whole = run.entries[f"{name}.bits-per-byte"].claim
        rows["overall"][name] = Measured(whole.value, whole.low, whole.high)
        for id, entry in run.entries.items():
            if not id.startswith(f"{name}.bits-per-byte."):
                continue
            label = id.removeprefix(f"{name}.bits-per-byte.").replace(".", " ")
            if entry.claim.n == whole.n:
                hidden.append(label)
            else:
                rows.setdefault(label, {})[name] = Measured(entry.claim.value, entry.claim.low, entry.claim.high)
    ordered = sorted(rows.items(), key=lambda r: (r[0] != "overall", r[0]))
    return [(_with_count(run, label, members), values) for label, values in ordered], list(dict.fromkeys(hidden))


def _with_count(run: Run, label: str, members: list[str]) -> str:
    """A slice's label with its number of documents."""
    suffix = "" if label == "overall" else "." + label.replace(" ", ".", 1)
    count = next((c.n for m in members if (c := run.claim(f"{m}.bits-per-byte{suffix}"))), 0)
    return f"{label.removeprefix('kind ').removeprefix('language ')} ({count})"


def exports(run: Run) -> list[dict[str, Any]]:
    """Each member's exported formats with how far they are from the weights they came from."""
    rows = []
    members = [*run.members, *run.adopted]
    for member, (stage, artifact) in itertools.product(members, run.artifacts.items()):
        if stage != f"export-{member}" and not re.fullmatch(rf"export-(huggingface|meta|gguf)\S*-{member}", stage):
            continue
        report = artifact.json("parity.json")
        if report["schema"] != PARITY_SCHEMA:  # of an older version, which the next run makes anew
            continue
        for form, figures in report["formats"].items():
            size = sum(e["bytes"] for f, e in artifact.manifest["files"].items() if f.startswith(f"{form}/"))
            rows.append(_export(run, member, form, figures, size, artifact))
    return rows


def quantized(run: Run) -> list[dict[str, Any]]:
    """Each member's quantized weights: what they cost, and whether what they write passed the gate."""
    rows = []
    for member, scheme in itertools.product([*run.members, *run.adopted], SCHEMES):
        artifact = run.artifacts.get(f"quantize-{scheme}-{member}")
        if artifact is None or (quality := artifact.json("quality.json"))["schema"] != QUALITY_SCHEMA:
            continue
        cost, floor, gate = quality["against_exact"], quality["unquantized_against_exact"], quality["gate"]

        def cite(claim: str, text: str, stem: str = f"{member}.quantized.{scheme}", of: str = artifact.stage) -> Markup:
            return run.cite(f"{stem}.{claim}", text) or run.from_file(of, "quality.json", text)

        rows.append(
            {
                "member": member,
                "scheme": scheme,
                "folder": f"{artifact.path.name}/",
                "size": human_bytes(artifact.manifest["files"]["model.safetensors"]["bytes"]),
                "kl": cite("kl", f"{cost['kl_nats']:.1e}"),
                "floor": f"{floor['kl_nats']:.1e}",
                "top1": cite("top1-agreement", f"{cost['top1_agreement']:.2%}"),
                "tokens": f"{cost['tokens']:,}",
                "passed": gate["passed"],
                "distance": cite("gate.distance", f"{gate['distance']:.3f}"),
                "p": cite("gate.p", f"{gate['p']:.2g}"),
                "corrupt": cite("gate.corrupt", f"{gate['corrupt_after']}"),
                "corrupt_before": gate["corrupt_before"],
                "answers": gate["answers"],
            }
        )
    return rows


def _export(run: Run, name: str, form: str, figures: Any, size: int, artifact: Artifact) -> dict[str, Any]:
    cost = figures["against_source"]

    def from_parity(text: str) -> Markup:
        return run.from_file(artifact.stage, "parity.json", text)

    def cite(claim: str, text: str) -> Markup:
        return run.cite(f"{name}.export.{form}.{claim}", text) or from_parity(text)

    return {
        "member": name,
        "form": form,
        "folder": f"{artifact.path.name}/{form}/",
        "size": human_bytes(size),
        "exact": figures["exact_after_rounding"],
        "change": from_parity(f"{figures['largest_change']:.2%}"),
        "kl": cite("kl", f"{cost['kl_nats']:.1e}"),
        "top1": cite("top1-agreement", f"{cost['top1_agreement']:.2%}"),
        "tokens": f"{cost['tokens']:,}",
    }
