"""What the report shows of the data: sources, the funnel of curation with examples of drops, and what is left."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.artifact import Artifact
from herd.console import human_bytes, human_count
from herd.report_funnel import count, deed, levels, warnings
from herd.report_reading import Run

EXAMPLES = 3
SHOWN_LANGUAGES = 12
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
        "warnings": warnings(books),
        "languages": languages(books),
        "clusters": clusters(artifact, books),
        "shares": [
            *(
                {"title": by, "rows": shares({k: (c["documents"], c["bytes"]) for k, c in counts.items()})}
                for by in ("group", "kind", "language", "topic")
                if set(counts := kept.get(f"by_{by}", {})) - {""}
            ),
            {"title": "licence", "rows": shares({k: (n, None) for k, n in books["licences"].items()})},
        ],
        "masked": [f"{n:,} {_MASKED.get(name, name.replace('_', ' '))}" for name, n in books.get("masked", {}).items()],
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
    found = levels(books)
    if not found:
        return []
    documents, size = max(1, found[0].documents), max(1, found[0].bytes)
    return [
        {
            "step": level.step,
            "what": level.said,
            "documents": f"{level.documents:,}",
            "bytes": human_bytes(level.bytes),
            "document_share": round(100 * level.documents / documents, 2),
            "byte_share": round(min(100.0, 100 * level.bytes / size), 2),
            "rules": [f"{rule.said}: {deed(rule)}" for rule in level.rules],
        }
        for level in found
    ]


def languages(books: dict[str, Any]) -> list[dict[str, Any]]:
    """Declared language against the one identified, where labels are wrong or there is more than one language."""
    rows = [row for row in books.get("languages", ()) if row["declared"]]
    rows.sort(key=lambda row: (-row["documents"], row["declared"], row["identified"]))
    if len({row["identified"] for row in rows} | {row["declared"] for row in rows}) < 2:
        return []
    return [
        {
            "source": row["source"],
            "declared": row["declared"],
            "identified": row["identified"],
            "documents": f"{row['documents']:,}",
            "bytes": human_bytes(row["bytes"]),
            "confidence": f"{row['confidence']:.2f}",
            "lies": row["declared"] != row["identified"],
        }
        for row in rows[:SHOWN_LANGUAGES]
    ]


def clusters(artifact: Artifact, books: dict[str, Any]) -> dict[str, Any] | None:
    """How many clusters of copies there are, and the largest."""
    found = books.get("clusters") or {}
    if not found.get("count") or not found.get("largest"):
        return None
    largest = found["largest"][0]
    path = ""
    for name in ("documents.parquet", "drops.parquet"):  # what stands for a cluster may have gone itself, later
        rows = pq.read_table(artifact.file(name), columns=["path"], filters=[("id", "=", largest["kept"])])
        path = path or next(iter(rows["path"].to_pylist()), "")
    return {"count": count(found["count"], "cluster"), "size": f"{largest['documents']:,}", "path": path}


def examples(artifact: Artifact, books: dict[str, Any]) -> list[dict[str, Any]]:
    """The first few documents that each rule dropped: path, and score against threshold."""
    columns = ["source", "path", "step", "rule", "score", "threshold", "kept"]
    table = pq.read_table(artifact.file("drops.parquet"), columns=columns)
    found = []
    for step in books["steps"]:
        for rule in step["rules"]:
            hit = (pc.field("step") == step["step"]) & (pc.field("rule") == rule)
            rows = table.filter(hit).slice(0, EXAMPLES).to_pylist()
            if rows:
                found.append(
                    {"step": step["step"], "rule": rule.replace("_", " "), "rows": [_example(row) for row in rows]}
                )
    return found


def _example(row: dict[str, Any]) -> dict[str, str]:
    score, threshold = row["score"] or 0.0, row["threshold"] or 0.0
    relation = "<" if score < threshold else ">" if score > threshold else "="
    measured = f"{score:.4g} {relation} {threshold:.4g}"
    return {"source": row["source"], "path": row["path"], "score": measured, "kept": row["kept"] or ""}


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
            "name": name or "none",
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
