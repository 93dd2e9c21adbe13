"""The stages of a recipe in their order, and the choice of which to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from herd.console import HerdError
from herd.recipe import Recipe
from herd.stage import Stage
from herd.stages_adopted import adopted_stages
from herd.stages_scratch import scratch_stages


def stages(recipe: Recipe, base: Path) -> list[Stage]:
    """The stages of a recipe in order; `base` is the folder that its relative paths start from."""
    return [*scratch_stages(recipe, base), *adopted_stages(recipe, base)]


@dataclass(frozen=True)
class Choice:
    """What of the plan to run: up to a stage, only some, made anew, for one member. Stages by name or by kind."""

    until: str | None = None
    only: str | None = None
    force: tuple[str, ...] = ()
    member: str | None = None

    def check(self, plan: list[Stage], recipe: Recipe) -> None:
        """Raises HerdError for names that the plan does not have."""
        known = {name for stage in plan for name in (stage.name, stage.kind)}
        for option, names in (("--until", [self.until]), ("--only", [self.only]), ("--force", self.force)):
            for name in names:
                if name is not None and name not in known:
                    raise HerdError(
                        f"{option} {name}: no such stage; stages are {', '.join(dict.fromkeys(s.kind for s in plan))}"
                    )
        if self.member is not None:
            recipe.find_member(self.member)

    def wanted(self, plan: list[Stage]) -> list[Stage]:
        """The stages to bring about, in order."""
        mine = [s for s in plan if s.member is None or self.member in (None, s.member)]
        if self.only is not None:
            return [s for s in mine if self.only in (s.name, s.kind)]
        if self.until is not None:
            kinds = list(dict.fromkeys(s.kind for s in plan))
            last = next(s for s in plan if self.until in (s.name, s.kind))
            of_one = self.until != last.kind  # a stage of one member: what other members need besides is left out
            return [
                s
                for s in mine
                if kinds.index(s.kind) <= kinds.index(last.kind) and (not of_one or s.member in (None, last.member))
            ]
        return mine

    def forces(self, stage: Stage) -> bool:
        return bool({stage.name, stage.kind} & set(self.force)) and self.member in (None, stage.member)
