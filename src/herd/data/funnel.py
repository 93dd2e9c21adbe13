"""The books of curation: what went into each step, what it dropped by which rule, and what was kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from herd.data.documents import Writer

_RECORD = ("id", "source", "path")


class Funnel:
    """Counts documents and bytes step by step, and writes a row for every document dropped.

    Bytes are those of the raw content in the step `extract`, of UTF-8 text after it.
    """

    def __init__(self, steps: tuple[str, ...], drops: Writer) -> None:
        self._drops = drops
        self._steps = {step: Counter[str]() for step in steps}
        self._rules: dict[str, dict[str, Counter[str]]] = {step: defaultdict(Counter) for step in steps}
        self._notes: dict[str, Counter[str]] = defaultdict(Counter)
        self._kept: dict[str, dict[str, Counter[str]]] = {
            by: defaultdict(Counter) for by in ("kind", "language", "source")
        }
        self._licences: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.bytes_kept = 0

    def enter(self, step: str, documents: int, size: int) -> None:
        """Documents that a step is given, and their bytes."""
        self._steps[step].update(documents_in=documents, bytes_in=size)

    def drop(self, row: Mapping[str, Any], step: str, rule: str, score: float, threshold: float, size: int) -> None:
        """Record that `rule` dropped a document, with what it measured and its limit."""
        record = {name: row[name] for name in _RECORD}
        self._drops.write({**record, "step": step, "rule": rule, "score": score, "threshold": threshold, "bytes": size})
        self._steps[step].update(documents_dropped=1, bytes_dropped=size)
        self._rules[step][rule].update(documents=1, bytes=size)

    def trim(self, step: str, rule: str, lines: int, size: int) -> None:
        """Record that `rule` took lines out of a document that goes on."""
        self._steps[step].update(bytes_dropped=size)
        self._rules[step][rule].update(documents_trimmed=1, lines=lines, bytes=size)

    def note(self, name: str, value: str, count: int = 1) -> None:
        """Count something worth knowing that drops nothing, such as encodings and masked addresses."""
        self._notes[name][value] += count

    def keep(self, row: Mapping[str, Any]) -> None:
        for by, counts in self._kept.items():
            counts[row[by]].update(documents=1, bytes=row["bytes"])
        self._licences[row["licence"]] += 1
        self.splits[row["split"]] += 1
        self.bytes_kept += row["bytes"]

    def exhausted(self) -> list[str]:
        """Steps that dropped every document they were given."""
        return [step for step, c in self._steps.items() if 0 < c["documents_in"] == c["documents_dropped"]]

    def idle(self, steps: tuple[str, ...], documents: int) -> list[str]:
        """Those of `steps` that were given at least so many documents and dropped none."""
        counts = [(step, self._steps[step]) for step in steps]
        return [step for step, c in counts if c["documents_in"] >= documents and not c["documents_dropped"]]

    def worst_rules(self, count: int) -> list[tuple[str, int]]:
        """The rules that dropped the most documents."""
        totals = Counter(
            {f"{step}.{rule}": c["documents"] for step, rules in self._rules.items() for rule, c in rules.items()}
        )
        return [(rule, dropped) for rule, dropped in totals.most_common(count) if dropped]

    def summary(self) -> dict[str, Any]:
        """What `funnel.json` holds."""
        names = ("documents_in", "bytes_in", "documents_dropped", "bytes_dropped")
        steps = [
            {
                "step": step,
                **{name: counts[name] for name in names},
                "rules": {
                    rule: {"documents": c["documents"], "bytes": c["bytes"]}
                    | {name: c[name] for name in ("documents_trimmed", "lines") if c[name]}
                    for rule, c in sorted(self._rules[step].items())
                },
            }
            for step, counts in self._steps.items()
        ]
        kept = {f"by_{by}": {key: dict(c) for key, c in sorted(counts.items())} for by, counts in self._kept.items()}
        return {
            "steps": steps,
            "kept": {"documents": self.splits.total(), "bytes": self.bytes_kept, "splits": dict(self.splits), **kept},
            "licences": dict(self._licences),
            **{name: dict(counts) for name, counts in sorted(self._notes.items())},
        }
