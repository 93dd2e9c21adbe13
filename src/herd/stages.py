"""The stages of a recipe in their order: what each is called, what it needs, and what its key hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.artifact import Artifact, stage_key
from herd.console import HerdError
from herd.recipe import Pretrain, Recipe, Section


@dataclass(frozen=True)
class Stage:
    """One stage of a plan. `inputs` maps the names its function knows to the stages that make them.

    function: "module:name" of a function (settings, inputs, out), imported only when it runs. facts: what else the
    artifact depends on (installed packages, files of a folder). alone: runs in this process, with nothing beside it.
    """

    name: str
    function: str
    version: int
    settings: Section
    inputs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    member: str | None = None
    alone: bool = True

    @property
    def kind(self) -> str:
        return self.name.removesuffix(f"-{self.member}") if self.member else self.name

    def key(self, inputs: Mapping[str, Artifact]) -> str:
        """Key of the artifact that it makes of these inputs."""
        asked = self.asked(inputs)
        return stage_key(self.kind, self.version, asked["settings"], asked["inputs"])

    def asked(self, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
        """What the key hashes."""
        settings = self.settings.model_dump(mode="json") | ({"facts": self.facts} if self.facts else {})
        return {
            "version": self.version,
            "settings": settings,
            "inputs": {name: a.content for name, a in inputs.items()},
        }


def stages(recipe: Recipe, base: Path) -> list[Stage]:
    """The stages of a recipe in order; `base` is the folder that its relative paths start from."""
    from herd.data.curate import CurateSettings
    from herd.data.shards import ShardSettings
    from herd.data.sources import CollectSettings, fingerprint
    from herd.data.vocabulary import VocabularySettings
    from herd.pretrain.forecast import ForecastSettings
    from herd.pretrain.ladder import LadderSettings
    from herd.train.hardware import choose_hardware

    seed, compute = recipe.family.seed, recipe.compute
    hardware = choose_hardware(compute).describe()
    collect = CollectSettings(sources=recipe.data.source, base=base)
    climbing = LadderSettings(
        seed=seed,
        scaling=recipe.scaling,
        pretrain=initial_part(recipe.pretrain),
        max_documents=recipe.evaluate.max_documents,
        hardware=hardware,
        compute=compute,
    )
    curation = CurateSettings(data=recipe.data, seed=seed)
    vocabulary = VocabularySettings(seed=seed, tokenizer=recipe.tokenizer)
    forecasting = ForecastSettings(
        seed=seed, scaling=recipe.scaling, pretrain=initial_part(recipe.pretrain), member=recipe.member
    )
    plan = [
        Stage("sources", "herd.data.sources:collect", 1, collect, facts=fingerprint(collect)),
        Stage("curate", "herd.data.curate:curate", 1, curation, _same("sources")),
        Stage("tokenizer", "herd.data.vocabulary:learn", 1, vocabulary, _same("curate")),
        Stage("shards", "herd.data.shards:shard", 1, ShardSettings(seed=seed), _same("curate", "tokenizer")),
        Stage("ladder", "herd.pretrain.ladder:ladder", 1, climbing, _same("shards")),
        Stage("forecast", "herd.pretrain.forecast:write_forecast", 1, forecasting, _same("ladder", "shards")),
    ]
    for member in recipe.member:
        plan += _member_stages(recipe, member.name, hardware)
    return plan


def _same(*names: str) -> dict[str, str]:
    """Inputs that a stage's function knows by the names of the stages that make them."""
    return {name: name for name in names}


def _member_stages(recipe: Recipe, name: str, hardware: dict[str, str]) -> Iterator[Stage]:
    from herd.deploy.export import ExportSettings
    from herd.evaluate.member import MemberEvaluation
    from herd.pretrain.initial import InitialSettings, StepSettings

    member = recipe.find_member(name)
    if member.from_ != "scratch":
        raise HerdError(f"member {name}: from = '{member.from_}' is not supported by this version; allowed: 'scratch'")
    common: dict[str, Any] = {
        "seed": recipe.family.seed,
        "max_documents": recipe.evaluate.max_documents,
        "hardware": hardware,
        "threads": recipe.compute.threads,
        "compute": recipe.compute,
    }

    def stage(step: str, function: str, settings: Section, inputs: dict[str, str]) -> Stage:
        return Stage(f"{step}-{name}", function, 1, settings, _same("shards") | inputs, member=name, alone=False)

    first = InitialSettings(member=member, scaling=recipe.scaling, pretrain=initial_part(recipe.pretrain), **common)
    yield stage("pretrain", "herd.pretrain.initial:initial", first, _same("forecast"))
    last = f"pretrain-{name}"
    if recipe.pretrain.long_context:
        longer = StepSettings(member=name, pretrain=without(recipe.pretrain, "anneal"), **common)
        yield stage("long-context", "herd.pretrain.long_context:long_context", longer, {"pretrain": last})
        last = f"long-context-{name}"
    if recipe.pretrain.anneal:
        cooling = StepSettings(member=name, pretrain=without(recipe.pretrain, "long_context"), **common)
        inputs = {"pretrain": f"pretrain-{name}", "model": last}
        yield stage("anneal", "herd.pretrain.anneal:anneal", cooling, inputs)
        last = f"anneal-{name}"
    finished = {"model": last, "tokenizer": "tokenizer"}
    measuring = MemberEvaluation(
        seed=recipe.family.seed,
        member=name,
        evaluate=recipe.evaluate,
        hardware=hardware,
        context_tokens=recipe.pretrain.context_tokens,
        compute=recipe.compute,
    )
    yield stage("evaluate", "herd.evaluate.member:evaluate_member", measuring, finished)
    export = ExportSettings(member=name, formats=tuple(recipe.deploy.formats))
    yield stage("export", "herd.deploy.export:export", export, finished)


def initial_part(pretrain: Pretrain) -> Pretrain:
    """What initial pre-training and the ladder depend on, so that a change of later steps does not repeat them."""
    return without(pretrain, "long_context", "anneal")


def without(pretrain: Pretrain, *steps: str) -> Pretrain:
    """The section with some of its later steps left out."""
    return pretrain.model_copy(update=dict.fromkeys(steps))


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
