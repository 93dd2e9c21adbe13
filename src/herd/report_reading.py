"""A run as the report reads it: its artifacts and claims, and numbers that say by a link where they come from."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from herd.artifact import CURRENT, Artifact, published
from herd.console import HerdError, human_bytes
from herd.evidence import Claim, Entry, Ledger
from herd.recipe import Recipe, load_recipe

STEPS = ("pretrain", "long-context", "anneal")  # a member's training, in order


@dataclass(frozen=True)
class Run:
    """What a run holds now, artifacts in the order they were made. `recipe`: None where there is none we can read."""

    path: Path
    artifacts: dict[str, Artifact]
    entries: dict[str, Entry]
    recipe: Recipe | None

    def claim(self, id: str) -> Claim | None:
        entry = self.entries.get(id)
        return entry.claim if entry else None

    def cite(self, id: str, text: str | None = None) -> Markup | None:
        """A claim's value (or `text` made from it), linked to the claim's row; None where there is no such claim."""
        claim = self.claim(id)
        return None if claim is None else link(text or say(claim.value, claim.unit), f"#{anchor(id)}")

    def cite_interval(self, id: str) -> Markup | None:
        """A claim's interval as [low, high], linked; None where it has none."""
        claim = self.claim(id)
        if claim is None or claim.low is None or claim.high is None:
            return None
        return link(f"[{say(claim.low, claim.unit)}, {say(claim.high, claim.unit)}]", f"#{anchor(id)}")

    def from_file(self, stage: str, file: str, text: str) -> Markup:
        """`text`, linked to the file of an artifact that it was read from."""
        return link(text, f"{self.artifacts[stage].path.name}/{file}")

    @property
    def members(self) -> list[str]:
        """Members from scratch: of the recipe, then trained ones that the recipe no longer names."""
        named = [m.name for m in self.recipe.member if not m.adopted] if self.recipe else []
        return list(dict.fromkeys(named + self._made("pretrain-")))

    @property
    def adopted(self) -> list[str]:
        """Members of somebody else's weights: of the recipe, then those that the recipe no longer names."""
        named = [m.name for m in self.recipe.member if m.adopted] if self.recipe else []
        return list(dict.fromkeys(named + self._made("adopt-")))

    @property
    def has_scratch(self) -> bool:
        """Whether the run trains members from scratch; one that has nothing yet is taken for such a run."""
        return bool(self.members or {"sources", "ladder"} & set(self.artifacts) or not self.adopted)

    def _made(self, prefix: str) -> list[str]:
        return [stage.removeprefix(prefix) for stage in self.artifacts if stage.startswith(prefix)]

    def steps(self, member: str) -> Iterator[tuple[str, Artifact]]:
        """The steps of a member's training that are done, in order."""
        for step in STEPS:
            if (artifact := self.artifacts.get(f"{step}-{member}")) is not None:
                yield step, artifact

    def stale(self) -> list[str]:
        """Stages made from inputs that have been made anew since, or that stand on such a stage's output."""
        contents = {a.content for a in self.artifacts.values()}
        return [
            s for s, a in self.artifacts.items() if not set(a.manifest["asked"].get("inputs", {}).values()) <= contents
        ]


def read_run(path: Path) -> Run:
    """Read a run's folder. Raises HerdError where it is no run, or an artifact it names is damaged."""
    if not (path / CURRENT).exists():
        raise HerdError(f"{path}: no run of herd here ({CURRENT} is missing)")
    try:
        recipe = load_recipe(path / "recipe.toml")
    except HerdError:
        recipe = None
    in_order = sorted(published(path).items(), key=lambda one: (one[1].manifest["recorded"].get("started", ""), one[0]))
    return Run(path, dict(in_order), Ledger(path).latest(), recipe)


def link(text: str, target: str) -> Markup:
    return Markup('<a class="n" href="{}">{}</a>').format(target, text)


def anchor(id: str) -> str:
    """The id of a claim's row on the page."""
    return "claim-" + re.sub(r"[^A-Za-z0-9._+-]", "-", id)


def say(value: float, unit: str) -> str:
    """A value of a claim as prose says it; the unit itself stands beside it where it isn't part of the number."""
    if unit == "fraction":
        return f"{value:.1%}"
    if unit == "bytes":
        return human_bytes(value)
    if unit in ("nats/token", "bits/byte"):
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def exact(value: float) -> str:
    """A value as the ledger's table shows it: six significant digits, no exponent below a million million."""
    text = f"{value:.6g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e12 else text


def started(artifact: Artifact) -> datetime.datetime | None:
    """When the stage began, by the clock of the machine that ran it."""
    text = artifact.manifest["recorded"].get("started")
    return datetime.datetime.fromisoformat(text) if text else None


def finished(artifact: Artifact) -> datetime.datetime | None:
    begin = started(artifact)
    return begin and begin + datetime.timedelta(seconds=artifact.manifest["recorded"].get("seconds", 0))


def moment(time: datetime.datetime | None) -> str:
    """A time as a person says it, to the second."""
    return f"{time.day} {time:%B %Y, %H:%M:%S} UTC" if time else "a time that was not recorded"


def resume_command(run: Run) -> str:
    """The command that goes on with this run, from what its newest stage recorded."""
    commands = [a.manifest["recorded"].get("command", "") for a in run.artifacts.values()]
    return re.sub(r" --(only|member|force) \S+", "", commands[-1]) if commands else ""


def json_lines(artifact: Artifact, file: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; texts may hold characters that str.splitlines takes for line ends."""
    return [json.loads(line) for line in artifact.file(file).read_text(encoding="utf-8").split("\n") if line]


def metrics(artifact: Artifact) -> list[dict[str, Any]]:
    """The rows of a training's metrics."""
    return json_lines(artifact, "metrics.jsonl")
