"""`herd choose`: which member of a run to deploy under a limit of memory, speed and proven quality, and why.

A requirement on a claim is judged by its interval: PROVEN where the whole interval meets the bar, DISPROVEN where none
of it does, UNDECIDED where the bar lies inside (or the claim was measured without one), NOT MEASURED where the run's
ledger has no such claim of the member. The smallest member that passes everything is picked, or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from herd.artifact import published
from herd.console import HerdError, human_bytes, human_count
from herd.evidence import Claim, Ledger
from herd.model.config import ModelConfig
from herd.model.formats.weights import read_json

Verdict = Literal["PROVEN", "DISPROVEN", "UNDECIDED", "NOT MEASURED"]
SPEED = "decode.tokens-per-second"
BYTES_PER_WEIGHT = 2  # bfloat16, in which members are exported and kept in the cache
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Requirement:
    """A bar for a claim, such as executed.unseen.after-dpo >= 0.7; the claim's id with or without the member's name."""

    claim: str
    bar: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{self.claim} {'>=' if self.at_least else '<='} {self.bar:g}"


@dataclass(frozen=True)
class Constraint:
    """What a deployment has and needs: bytes, tokens of one conversation, tokens a second, proven claims."""

    memory_bytes: int
    context: int
    min_speed: float | None = None
    needs: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A member: its shape, and its claims by id without its name."""

    name: str
    config: ModelConfig
    claims: Mapping[str, Claim]

    @property
    def speed(self) -> float | None:
        """Measured decoding speed of one sequence in tokens/s, None where it was not measured."""
        claim = self.claims.get(SPEED)
        return claim.value if claim else None

    def weight_bytes(self) -> int:
        return BYTES_PER_WEIGHT * self.config.parameters

    def cache_bytes(self, context: int) -> int:
        return context * self.config.kv_cache_bytes_per_token(BYTES_PER_WEIGHT)


@dataclass(frozen=True)
class Judgement:
    """One candidate against a constraint. `against`: why it does not pass, empty where it does."""

    candidate: Candidate
    memory_bytes: int
    verdicts: tuple[tuple[Requirement, Verdict, str], ...]
    against: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """All judgements, smallest member first, and the one that is picked, with the reason."""

    judgements: tuple[Judgement, ...]
    picked: str | None
    reason: str


def choose(members: Sequence[Candidate], constraint: Constraint) -> Choice:
    """Judge every member and pick the smallest that passes everything."""
    ordered = sorted(members, key=lambda member: member.config.parameters)
    judgements = tuple(_judge(member, constraint) for member in ordered)
    passing = [judgement for judgement in judgements if not judgement.against]
    if passing:
        name = passing[0].candidate.name
        others = f" of {len(passing)} that pass everything" if len(passing) > 1 else " that passes everything"
        return Choice(judgements, name, f"{name} is the {'smallest' if len(passing) > 1 else 'only member'}{others}")
    if not judgements:
        return Choice((), None, "the run has no trained members")
    reasons = "; ".join(f"{judgement.candidate.name}: {judgement.against[0]}" for judgement in judgements)
    return Choice(judgements, None, f"no member passes: {reasons}")


def _judge(member: Candidate, constraint: Constraint) -> Judgement:
    memory = member.weight_bytes() + member.cache_bytes(constraint.context)
    against = []
    if memory > constraint.memory_bytes:
        against.append(f"needs {human_bytes(memory)} of {human_bytes(constraint.memory_bytes)}")
    if constraint.context > member.config.context:
        against.append(f"was trained for {member.config.context:,} tokens, not {constraint.context:,}")
    if constraint.min_speed is not None and (member.speed is None or member.speed < constraint.min_speed):
        speed = "was not measured" if member.speed is None else f"of {member.speed:.1f} tokens/s is too low"
        against.append(f"the speed {speed} (at least {constraint.min_speed:g})")
    verdicts = tuple((need, *verdict(need, _claim(member, need))) for need in constraint.needs)
    against += [f"{need} is {word} ({text})" for need, word, text in verdicts if word != "PROVEN"]
    return Judgement(member, memory, verdicts, tuple(against))


def _claim(member: Candidate, need: Requirement) -> Claim | None:
    return member.claims.get(need.claim) or member.claims.get(need.claim.removeprefix(f"{member.name}."))


def verdict(need: Requirement, claim: Claim | None) -> tuple[Verdict, str]:
    """What a claim says about a requirement, and the figures in words."""
    if claim is None:
        return "NOT MEASURED", "no such claim in the ledger"
    if claim.low is None or claim.high is None:
        return "UNDECIDED", f"{claim.value:.4g}, measured without an interval"
    text = f"{claim.value:.4g} [{claim.low:.4g}, {claim.high:.4g}]"
    low, high = (claim.low, claim.high) if need.at_least else (-claim.high, -claim.low)
    bar = need.bar if need.at_least else -need.bar
    if low >= bar:
        return "PROVEN", text
    return ("DISPROVEN" if high < bar else "UNDECIDED"), text


def candidates(run: Path, folders: Mapping[str, Path]) -> list[Candidate]:
    """The members of a run, whose newest weights are in `folders`, with their claims that still hold."""
    current = {artifact.path.name for artifact in published(run).values()}
    claims = {id: entry.claim for id, entry in Ledger(run).latest().items() if entry.artifact in current}
    found = []
    for name, folder in folders.items():
        mine = {id.removeprefix(f"{name}."): claim for id, claim in claims.items() if id.startswith(f"{name}.")}
        found.append(Candidate(name, ModelConfig.from_dict(read_json(folder / "config.json")), mine))
    return found


def parse_size(text: str) -> int:
    """Bytes of 8GiB (binary) or 8GB, 8g (decimal). Raises HerdError for anything else, a bare number included."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]i?)b?|b)", text.strip().lower())
    if not found:
        raise HerdError(f"size '{text}': a number with a unit is expected, such as 8GiB (8 * 2^30) or 8GB (8 * 10^9)")
    return int(float(found[1]) * UNITS[found[2] or ""])


def parse_requirement(text: str) -> Requirement:
    """CLAIM>=VALUE or CLAIM<=VALUE. Raises HerdError for anything else."""
    found = re.fullmatch(r"\s*([\w.-]+)\s*(>=|<=)\s*([-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?)\s*(%?)\s*", text, re.IGNORECASE)
    if not found:
        raise HerdError(f"--need '{text}': CLAIM>=VALUE or CLAIM<=VALUE is expected, such as executed.unseen>=0.7")
    return Requirement(found[1], float(found[3]) / (100 if found[4] else 1), found[2] == ">=")


def print_choice(choice: Choice, constraint: Constraint) -> None:
    """The members side by side, what speaks against each, and the pick."""
    title = f"{human_bytes(constraint.memory_bytes)} of memory, {constraint.context:,} tokens of context"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("member", "parameters", "weights", "cache", "together", "decode", "verdict"):
        table.add_column(column, justify="left" if column in ("member", "verdict") else "right", overflow="fold")
    for judgement in choice.judgements:
        member = judgement.candidate
        verdicts = [f"{need}: {word}, {text}" for need, word, text in judgement.verdicts]
        rest = [reason for reason in judgement.against if not any(reason.startswith(str(n)) for n in constraint.needs)]
        table.add_row(
            member.name,
            human_count(member.config.parameters),
            human_bytes(member.weight_bytes()),
            human_bytes(member.cache_bytes(constraint.context)),
            human_bytes(judgement.memory_bytes),
            f"{member.speed:.0f} tokens/s" if member.speed is not None else "not measured",
            "\n".join([*verdicts, *rest]) or "passes",
        )
    console = Console()
    console.print(table, markup=False)
    console.print("Weights and cache in bfloat16, one conversation; the program itself comes on top.", markup=False)
    console.print(f"picked: {choice.picked or 'none'}: {choice.reason}", markup=False)
