"""What the report shows of the data: sources, the funnel of curation with examples of drops, and what is left."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.artifact import Artifact
from herd.console import human_bytes, human_count
from herd.report_reading import Run

STEPS = {
    "extract": "text extracted",
    "pii": "personal data masked",
    "language": "other languages dropped",
    "exact": "equal texts dropped",
    "near": "near-duplicates dropped",
    "lines": "repeated lines taken out",
    "heuristics": "rules of quality applied",
}
EXAMPLES = 3
SHOWN_SHARES = 8  # kinds, languages or licences named; the rest is summed up


def diet(run: Run) -> dict[str, Any] | None:
    """The section, as far as the run has come; None without sources."""
    if "sources" not in run.artifacts:
        return None
    shown: dict[str, Any] = {"sources": sources(run), "funnel": None, "tokens": tokens(run)}
    if (artifact := run.artifacts.get("curate")) is None:
        return shown
    books = artifact.json("funnel.json")
    kept = books["kept"]
    return shown | {
        "funnel": funnel(books),
        "funnel_file": f"{artifact.path.name}/funnel.json",
        "drops_file": f"{artifact.path.name}/drops.parquet",
        "examples": examples(artifact, books),
        "kept": {
            "documents": run.from_file("curate", "funnel.json", f"{kept['documents']:,}"),
            "bytes": run.from_file("curate", "funnel.json", human_bytes(kept["bytes"])),
            "heldout": run.from_file("curate", "funnel.json", f"{kept['splits'].get('heldout', 0):,}"),
        },
        "shares": [
            {"title": "kind", "rows": shares({k: (c["documents"], c["bytes"]) for k, c in kept["by_kind"].items()})},
            {
                "title": "language",
                "rows": shares({k: (c["documents"], c["bytes"]) for k, c in kept["by_language"].items()}),
            },
            {"title": "licence", "rows": shares({k: (n, None) for k, n in books["licences"].items()})},
        ],
        "masked": [f"{n:,} {_MASKED.get(name, name)}" for name, n in books.get("masked", {}).items()],
    }


_MASKED = {"email": "email addresses", "ip": "IP addresses", "phone": "telephone numbers"}


def sources(run: Run) -> list[dict[str, Any]]:
    """A row a source: what it gave, under which licences, when, and why something was left out."""
    artifact = run.artifacts["sources"]
    name = "recorded/retrieved.json"
    dates = artifact.json(name) if name in artifact.manifest["files"] else {}
    return [
        {
            "name": source,
            "kind": facts["kind"],
            "documents": run.from_file("sources", "sources.json", f"{facts['documents']:,}"),
            "bytes": run.from_file("sources", "sources.json", human_bytes(facts["bytes"])),
            "licences": sorted(facts["licences"].items(), key=lambda x: -x[1]),
            "retrieved": _dates(dates.get(source)),
            "skipped": facts["skipped"],
            "left_out": ", ".join(f"{count:,} {why}" for why, count in facts["skipped_files"].items()),
        }
        for source, facts in artifact.json("sources.json").items()
    ]


def _dates(span: dict[str, str] | None) -> str:
    if span is None:
        return ""
    return span["first"] if span["first"] == span["last"] else f"{span['first']} to {span['last']}"


def funnel(books: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a step: what is left after it, as shares of what was read, and what each rule dropped."""
    steps = books["steps"]
    if not steps:
        return []
    documents, size = max(1, steps[0]["documents_in"]), max(1, steps[0]["bytes_in"])
    rows = [_left("", "as read", documents, size, documents, size, [])]
    after = [*(s["bytes_in"] for s in steps[1:]), books["kept"]["bytes"]]
    for step, left in zip(steps, after, strict=True):
        name: str = step["step"]
        rules = sorted(step["rules"].items(), key=lambda r: (-r[1]["documents"], r[0]))
        rows.append(
            _left(
                name,
                STEPS.get(name, name.replace("_", " ")),
                step["documents_in"] - step["documents_dropped"],
                left,
                documents,
                size,
                [_rule(rule, counts) for rule, counts in rules],
            )
        )
    return rows


def _left(
    step: str, what: str, documents: int, size: int, all_documents: int, all_bytes: int, rules: list[str]
) -> dict[str, Any]:
    return {
        "step": step,
        "what": what,
        "documents": f"{documents:,}",
        "bytes": human_bytes(size),
        "document_share": round(100 * documents / all_documents, 2),
        "byte_share": round(min(100.0, 100 * size / all_bytes), 2),
        "rules": rules,
    }


def _rule(name: str, counts: dict[str, int]) -> str:
    said = name.replace("_", " ")
    if trimmed := counts.get("documents_trimmed"):
        return f"{said}: {counts.get('lines', 0):,} lines out of {trimmed:,} documents, {human_bytes(counts['bytes'])}"
    documents = "1 document" if counts["documents"] == 1 else f"{counts['documents']:,} documents"
    return f"{said}: {documents}, {human_bytes(counts['bytes'])}"


def examples(artifact: Artifact, books: dict[str, Any]) -> list[dict[str, Any]]:
    """The first few documents that each rule dropped: path, and score against threshold."""
    columns = ["source", "path", "step", "rule", "score", "threshold"]
    table = pq.read_table(artifact.file("drops.parquet"), columns=columns)
    found = []
    for step in books["steps"]:
        for rule in step["rules"]:
            hit = pc.and_(pc.equal(table["step"], step["step"]), pc.equal(table["rule"], rule))  # type: ignore[attr-defined]
            rows = table.filter(hit).slice(0, EXAMPLES).to_pylist()
            if rows:
                found.append(
                    {"step": step["step"], "rule": rule.replace("_", " "), "rows": [_example(row) for row in rows]}
                )
    return found


def _example(row: dict[str, Any]) -> dict[str, str]:
    score, threshold = row["score"], row["threshold"]
    relation = "<" if score < threshold else ">" if score > threshold else "="
    return {"source": row["source"], "path": row["path"], "score": f"{score:.4g} {relation} {threshold:.4g}"}


def shares(counts: dict[str, tuple[int, int | None]]) -> list[dict[str, Any]]:
    """The largest of a division with their shares, by bytes where they are known, else by documents."""
    ordered = sorted(counts.items(), key=lambda x: (-_weight(x[1]), x[0]))
    rest = ordered[SHOWN_SHARES:]
    if len(rest) > 1:
        sizes = [size for _, (_, size) in rest if size is not None]
        ordered = [
            *ordered[:SHOWN_SHARES],
            (f"{len(rest)} others", (sum(n for _, (n, _) in rest), sum(sizes) if sizes else None)),
        ]
    total = max(1, sum(_weight(c) for _, c in ordered))
    return [
        {
            "name": name,
            "documents": f"{documents:,}",
            "bytes": human_bytes(size) if size is not None else "",
            "share": round(100 * _weight((documents, size)) / total, 2),
        }
        for name, (documents, size) in ordered
    ]


def _weight(count: tuple[int, int | None]) -> int:
    return count[0] if count[1] is None else count[1]


def tokens(run: Run) -> dict[str, Any] | None:
    """What the text became: tokens, and how much text a token holds."""
    if (artifact := run.artifacts.get("shards")) is None:
        return None
    facts = artifact.json("shards.json")
    return {
        "train": run.from_file("shards", "shards.json", human_count(sum(facts["train_tokens"].values()))),
        "heldout": run.from_file("shards", "shards.json", human_count(facts["heldout_tokens"])),
        "vocabulary": run.from_file("shards", "shards.json", f"{facts['vocab_size']:,}"),
        "compression": run.cite("tokenizer.bytes-per-token"),
    }
