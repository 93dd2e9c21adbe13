"""The stages of members that are trained from scratch: from text to evaluated, exported members."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.console import HerdError
from herd.recipe import Data, Pretrain, Recipe, Scaling, Size, Tokenizer
from herd.recipe_data import Mix
from herd.recipe_section import Section
from herd.stage import Stage, same


def scratch_stages(recipe: Recipe, base: Path) -> list[Stage]:
    """The stages in order; none where every member is adopted."""
    members = [member.name for member in recipe.member if not member.adopted]
    if not members:
        return []
    data, scaling, pretrain = _needed(recipe)
    from herd.pretrain.forecast import ForecastSettings
    from herd.pretrain.ladder import LadderSettings
    from herd.pretrain.mix_search import MixSearchSettings
    from herd.train.hardware import choose_hardware

    seed, compute = recipe.family.seed, recipe.compute
    hardware = choose_hardware(compute).describe()
    mix, searched = training_part(data.mix), same("mix") if data.mix.search else {}
    climbing = LadderSettings(
        seed=seed,
        mix=mix,
        scaling=scaling,
        pretrain=initial_part(pretrain),
        max_documents=recipe.evaluate.max_documents,
        hardware=hardware,
        compute=compute,
    )
    forecasting = ForecastSettings(
        seed=seed,
        scaling=scaling,
        pretrain=initial_part(pretrain),
        member=[member for member in recipe.member if not member.adopted],
    )
    plan = data_stages(data, recipe.tokenizer, seed, base)
    if data.mix.search:
        searching = MixSearchSettings(
            seed=seed,
            mix=data.mix,
            scaling=scaling,
            pretrain=initial_part(pretrain),
            max_documents=recipe.evaluate.max_documents,
            hardware=hardware,
            compute=compute,
        )
        plan += [Stage("mix", "herd.pretrain.mix_search:search_mix", 1, searching, same("shards"))]
    plan += [
        Stage("ladder", "herd.pretrain.ladder:ladder", 2, climbing, same("shards") | searched),
        Stage("forecast", "herd.pretrain.forecast:write_forecast", 1, forecasting, same("ladder", "shards")),
    ]
    for name in members:
        plan += _member_stages(recipe, data, scaling, pretrain, name, hardware)
    return plan


def data_stages(data: Data, tokenizer: Tokenizer, seed: int, base: Path) -> list[Stage]:
    """From text to token shards: sources, curate, tokenizer, shards. `base`: where relative paths start from."""
    from herd.data import curate, sources
    from herd.data.engine import Engine
    from herd.data.shards import ShardSettings
    from herd.data.vocabulary import VocabularySettings

    engine = Engine(data.engine, data.workers)
    curator = "herd.pretrain.judged:curate_judged" if data.quality.judge else "herd.data.curate:curate"
    reading = sources.CollectSettings(sources=data.source, base=base, part_bytes=data.part_bytes, engine=engine)
    curation = curate.CurateSettings(data=data, seed=seed, base=base)
    vocabulary = VocabularySettings(seed=seed, tokenizer=tokenizer)
    return [
        Stage("sources", "herd.data.sources:collect", 2, reading, facts=sources.fingerprint(reading)),
        Stage("curate", curator, 2, curation, same("sources"), facts=curate.fingerprint(curation)),
        Stage("tokenizer", "herd.data.vocabulary:learn", 1, vocabulary, same("curate")),
        Stage("shards", "herd.data.shards:shard", 2, ShardSettings(seed=seed), same("curate", "tokenizer")),
    ]


def _needed(recipe: Recipe) -> tuple[Data, Scaling, Pretrain]:
    """What the recipe's validation promises where a member is trained from scratch."""
    assert recipe.data is not None and recipe.scaling is not None and recipe.pretrain is not None
    return recipe.data, recipe.scaling, recipe.pretrain


def _member_stages(
    recipe: Recipe, data: Data, scaling: Scaling, pretrain: Pretrain, name: str, hardware: dict[str, str]
) -> Iterator[Stage]:
    from herd.deploy.export import ExportSettings
    from herd.evaluate.member import MemberEvaluation
    from herd.pretrain.initial import InitialSettings, StepSettings
    from herd.pretrain.plan import model_config
    from herd.train.launch import describe

    member = recipe.find_member(name)
    if isinstance(member.size, Size):
        config = model_config(member.size, pretrain, recipe.tokenizer.vocab_size)
        if config.dim % config.heads:  # said before anything is trained: transformers would not load the export
            problem = f"{config.heads} heads do not divide the width {config.dim}"
            raise HerdError(f"member {name}: size: {problem}; give heads, or another dim or head_dim")
    common: dict[str, Any] = {
        "seed": recipe.family.seed,
        "mix": training_part(data.mix),
        "max_documents": recipe.evaluate.max_documents,
        "hardware": hardware | describe(recipe.compute),
        "threads": recipe.compute.threads,
        "compute": recipe.compute,
    }

    spread = recipe.compute.mesh.size > 1

    def stage(step: str, function: str, settings: Section, inputs: dict[str, str]) -> Stage:
        trains = spread and step != "evaluate"
        inputs = same("shards") | inputs
        return Stage(f"{step}-{name}", function, 1, settings, inputs, member=name, alone=False, parallel=trains)

    searched = same("mix") if data.mix.search else {}

    first = InitialSettings(member=member, scaling=scaling, pretrain=initial_part(pretrain), **common)
    yield stage("pretrain", "herd.pretrain.initial:initial", first, same("forecast") | searched)
    last = f"pretrain-{name}"
    if pretrain.long_context:
        longer = StepSettings(member=name, pretrain=without(pretrain, "anneal"), **common)
        yield stage("long-context", "herd.pretrain.long_context:long_context", longer, {"pretrain": last} | searched)
        last = f"long-context-{name}"
    if pretrain.anneal:
        cooling = StepSettings(member=name, pretrain=without(pretrain, "long_context"), **common)
        inputs = {"pretrain": f"pretrain-{name}", "model": last} | searched
        yield stage("anneal", "herd.pretrain.anneal:anneal", cooling, inputs)
        last = f"anneal-{name}"
    finished = {"model": last, "tokenizer": "tokenizer"}
    measuring = MemberEvaluation(
        seed=recipe.family.seed,
        member=name,
        evaluate=recipe.evaluate,
        hardware=hardware,
        context_tokens=pretrain.context_tokens,
        compute=recipe.compute,
    )
    yield stage("evaluate", "herd.evaluate.member:evaluate_member", measuring, finished)
    export = ExportSettings(member=name, formats=tuple(recipe.deploy.formats))
    inputs = same("shards") | finished
    yield Stage(f"export-{name}", "herd.deploy.export:export", 2, export, inputs, member=name, alone=False)


def initial_part(pretrain: Pretrain) -> Pretrain:
    """What initial pre-training and the ladder depend on, so that a change of later steps does not repeat them."""
    return without(pretrain, "long_context", "anneal")


def without(pretrain: Pretrain, *steps: str) -> Pretrain:
    """The section with some of its later steps left out."""
    return pretrain.model_copy(update=dict.fromkeys(steps))


def training_part(mix: Mix) -> Mix:
    """What training depends on, so that a change of curation or of a search does not repeat it by itself."""
    return mix.model_copy(update={"class_caps": {}, "search": None})
