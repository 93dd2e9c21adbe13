"""The ledger: every measured number that a report may show, append-only, one JSON object a line.

A stage that measures writes its claims into its artifact (`claims.json`, or `recorded/claims.json` for timings, which
differ between equal runs). Whoever runs the stages copies them into `evidence.jsonl` with the date, the machine and
the command that measures the number again. Copying twice adds nothing, so a run killed in between loses nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from herd.artifact import RECORDED, Artifact, canonical_json
from herd.console import HerdError, warn

SCHEMA = 1
LEDGER = "evidence.jsonl"
CLAIMS = "claims.json"


@dataclass(frozen=True)
class Claim:
    """One measured (or, for a forecast, pre-registered) number.

    id: dotted and stable, such as `flagship.anneal.bits-per-byte`. value: shares are fractions from 0 to 1. n: how
    many things were measured, `of` says which things. interval: low and high at `confidence`, by `method`.
    """

    id: str
    what: str
    value: float
    unit: str
    n: int = 1
    of: str = ""
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    method: str = ""


@dataclass(frozen=True)
class Entry:
    """A claim in the ledger: with the artifact that holds it, what that was made from, and how to measure again."""

    claim: Claim
    artifact: str
    content: str
    inputs: dict[str, str]
    command: str
    recorded: dict[str, Any]


def write_claims(path: Path, claims: Iterable[Claim]) -> None:
    """Write a stage's claims as JSON. Raises ValueError where two have one id or a value is not finite."""
    rows = [asdict(claim) for claim in claims]
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claim ids used twice: {sorted({i for i in ids if ids.count(i) > 1})}")
    path.write_text(canonical_json(rows, indent=1) + "\n", encoding="utf-8")


def claims_of(artifact: Artifact) -> list[Claim]:
    """The claims that an artifact holds, timings included."""
    names = [name for name in (CLAIMS, f"{RECORDED}/{CLAIMS}") if name in artifact.manifest["files"]]
    return [Claim(**row) for name in names for row in artifact.json(name)]


class Ledger:
    """The ledger of one run. Appending is a single write, flushed to disk; a torn last line is cut off and said."""

    def __init__(self, run: Path) -> None:
        self.path = run / LEDGER

    def entries(self) -> list[Entry]:
        """All entries in the order they were added."""
        return [_parse(line, self.path, number) for number, line in enumerate(self._lines(), 1)]

    def latest(self) -> dict[str, Entry]:
        """The newest entry of each claim id."""
        return {entry.claim.id: entry for entry in self.entries()}

    def add(self, artifact: Artifact, command: str) -> int:
        """Copy an artifact's claims; those whose newest entry says just this are left alone. Returns how many."""
        newest = {(e.claim, e.artifact, e.content) for e in self.latest().values()}
        fresh = [
            Entry(
                claim,
                artifact.path.name,
                artifact.content,
                artifact.manifest["asked"]["inputs"],
                command,
                artifact.manifest["recorded"],
            )
            for claim in claims_of(artifact)
            if (claim, artifact.path.name, artifact.content) not in newest
        ]
        if fresh:
            text = "".join(canonical_json({"schema": SCHEMA, **asdict(entry)}) + "\n" for entry in fresh)
            with self.path.open("ab") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        return len(fresh)

    def repair(self) -> None:
        """Cut off a line that a killed process left unfinished. Only for the holder of the run's lock."""
        if self.path.exists():
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                warn(f"{self.path}: the last line was cut short by a killed process; dropped, it will be written again")
                os.truncate(self.path, len(whole))

    def _lines(self) -> list[bytes]:
        """Whole lines; texts may hold characters that str.splitlines takes for line ends."""
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []


def _parse(line: bytes, path: Path, number: int) -> Entry:
    try:
        row = json.loads(line)
        if row.pop("schema") != SCHEMA:
            raise KeyError("schema")
        return replace(Entry(**row), claim=Claim(**row["claim"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HerdError(f"{path}:{number}: not a ledger entry of schema {SCHEMA} ({error})") from None
