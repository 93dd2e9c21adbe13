"""Tables in the terminal: a recipe with every value and its rule, the stages of a run, its members."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from herd.artifact import Artifact, published, verify
from herd.console import HerdError, duration, human_bytes, human_count
from herd.data.mix import asked_lines
from herd.evidence import Claim, Ledger
from herd.model.config import ModelConfig
from herd.pretrain.plan import TrainingPlan, member_plan, model_config
from herd.recipe import Member, Recipe, Section, Size, load_recipe
from herd.run import member_artifact
from herd.stages_adopted import STEPS
from herd.train.planner import recipe_setting
from herd.train.planner_memory import STATE_BYTES_PER_PARAMETER
from herd.train.planner_setting import rounds


def print_recipe(path: Path) -> None:
    """Validate a recipe and print each value with where it comes from, then what follows from them for each member."""
    recipe = load_recipe(path)
    console = Console()
    table = Table(
        title=f"{path}: family {recipe.family.name}", title_justify="left", show_lines=False, box=None, pad_edge=False
    )
    for column in ("key", "value", "from"):
        table.add_column(column, overflow="fold")
    for key, value, given in leaves(recipe):
        table.add_row(key, _plain(value), origin(recipe, key, given))
    console.print(table)
    if recipe.data is not None:
        console.print()
        for line in asked_lines(recipe.data.mix):
            console.print(line, highlight=False)
    for member in recipe.member:
        console.print()
        console.print(_derived(recipe, member))


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every value of a recipe: dotted key, value, whether the file gives it. Tables in a list go by name or number."""
    for name, field in type(section).model_fields.items():
        if name == "provenance" and not prefix:
            continue
        value, key = getattr(section, name), prefix + (field.alias or name)
        given = name in section.model_fields_set
        if isinstance(value, Section):
            yield from leaves(value, f"{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            for index, item in enumerate(value):
                yield from leaves(item, f"{key}.{getattr(item, 'name', index)}.")
        else:
            yield key, value, given


def origin(recipe: Recipe, key: str, given: bool) -> str:
    """Where a value comes from: its mark in [provenance] (its own or a surrounding table's), the recipe, a default."""
    if not given:
        return recipe.provenance.get(key, "default (ours)")
    parts = key.split(".")
    marks = (recipe.provenance.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((mark for mark in marks if mark), "recipe")


def _derived(recipe: Recipe, member: Member) -> Table:
    table = Table(title=f"member {member.name} ({member.role})", title_justify="left", box=None, pad_edge=False)
    for column in ("derived", "value", "rule"):
        table.add_column(column, overflow="fold")
    if member.adopted or recipe.scaling is None or recipe.pretrain is None:
        for row in _adopted_rows(recipe, member):
            table.add_row(*row)
        return table
    plan = member_plan(recipe.scaling, recipe.pretrain, member, recipe.tokenizer.vocab_size, None)
    if isinstance(member.size, Size):
        config = model_config(member.size, recipe.pretrain, recipe.tokenizer.vocab_size)
        for row in _size_rows(config):
            table.add_row(*row)
    else:
        table.add_row(
            "size",
            "after the ladder",
            f"compute-optimal for {recipe.scaling.forecast_flops:.3g} FLOPs, by the power law of the bowls",
        )
    if plan is None:
        table.add_row("tokens", "after the ladder", "optimal tokens of the size by the power law, times member.tokens")
    else:
        for row in _plan_rows(recipe, plan):
            table.add_row(*row)
    return table


def _adopted_rows(recipe: Recipe, member: Member) -> Iterator[tuple[str, str, str]]:
    """What a recipe settles about a member of open weights; the rest is read from the weights."""
    yield "weights", member.from_, "member.from; size and licence are read from them"
    if member not in recipe.assistants or recipe.posttrain is None:
        yield "post-training", "none", "no [posttrain], or its members leave this one out"
        return
    posttrain, sizes = recipe.posttrain, recipe.posttrain.synthesis
    most = f"{sizes.dialogs:,} dialogs of up to {sizes.turns} questions, {sizes.chats:,} chats"
    yield "SFT", most, "posttrain.synthesis, and own chats of posttrain.source"
    drawn = f"up to {posttrain.samples_per_prompt * sizes.sample_questions:,}"
    yield "samples", drawn, "samples_per_prompt * sample_questions that one call answers"
    asked = sizes.test_questions + sizes.known_phrasing_questions
    yield "test questions", f"{asked:,}", "test_questions on phrasings never trained on, half as many on others"


def _size_rows(config: ModelConfig) -> Iterator[tuple[str, str, str]]:
    yield (
        "parameters",
        f"{config.parameters:,}",
        "embeddings + layers * block + norm" + (" (tied head counted once)" if config.tied_embeddings else " + head"),
    )
    yield "parameters without embeddings", f"{config.body_parameters:,}", "layers * block + norm"
    yield (
        "heads",
        f"{config.heads} of {config.head_dim}, {config.kv_heads} for keys and values",
        "dim / head_dim, where not given",
    )
    yield "ffn_dim", f"{config.ffn_dim:,}", "ffn_ratio * dim up to a multiple of ffn_multiple_of, where not given"
    yield (
        "KV cache a token",
        human_bytes(config.kv_cache_bytes_per_token()),
        "2 * layers * kv_heads * head_dim * 2 bytes (bf16)",
    )


def _plan_rows(recipe: Recipe, plan: TrainingPlan) -> Iterator[tuple[str, str, str]]:
    config, last = plan.config, plan.stretches[-1]
    yield "tokens", human_count(plan.tokens), "member.tokens, in whole batches"
    yield (
        "train FLOPs",
        f"{plan.flops:.4g}",
        "tokens * (6 * matmul parameters + 6 * layers * context * heads * head_dim)",
    )
    yield "6ND", f"{6 * config.parameters * plan.tokens:.4g}", "6 * parameters * tokens, the paper's convention"
    yield (
        "steps",
        f"{plan.steps:,}",
        "tokens / batch"
        + ("".join(f"; {s.steps:,} of {human_count(s.sequences * s.context)} tokens" for s in plan.stretches)),
    )
    rule = "member.peak_learning_rate, or peak * sqrt(reference_dim / dim)"
    yield (
        "learning rate",
        f"{plan.schedule.peak:.3g} to {plan.schedule(plan.steps - 1):.3g}",
        f"{rule}; warm-up {plan.schedule.warmup:,} steps",
    )
    mesh = recipe.compute.mesh
    yield "ranks", f"{mesh.size:,}", "tp * cp * pp * dp"
    yield (
        "training state a rank",
        human_bytes(STATE_BYTES_PER_PARAMETER * config.parameters / mesh.size),
        "16 bytes a parameter (fp32 weights, gradients, two moments), all sharded; `herd plan` counts the rest",
    )
    if mesh.pp > 1:
        setting = recipe_setting(config, recipe.compute, last.context, last.sequences)
        v, m = setting.stages_per_rank, setting.micro_batches
        try:
            yield "pipeline bubble", f"{rounds(setting) / m - 1:.1%}", f"(PP - 1) / (V * M) at N = PP; V = {v}, M = {m}"
        except HerdError as error:
            yield "pipeline bubble", "not known", str(error)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return "-" if value is None else str(value)


def print_status(run: Path, check_files: bool) -> int:
    """Stages that are done; with `check_files`, whether every file still has its checksum: status 1 where not."""
    table = Table(title=str(run), title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "artifact", "content", "took", "size"):
        table.add_column(column)
    damaged: list[str] = []
    for stage, artifact in published(run).items():
        facts = artifact.manifest
        size = sum(entry["bytes"] for entry in facts["files"].values())
        table.add_row(
            stage, artifact.path.name, artifact.content[:12], duration(facts["recorded"]["seconds"]), human_bytes(size)
        )
        if check_files:
            damaged += [str(artifact.path / name) for name in verify(artifact)]
    console = Console()
    console.print(table)
    for name in damaged:
        console.print(f"damaged: {name}", markup=False)
    if check_files and not damaged:
        console.print("every file matches its checksum")
    return 1 if damaged else 0


def print_members(run: Path) -> None:
    """The members that are there, from the ledger: those from scratch by their loss, adopted ones by their answers."""
    recipe = load_recipe(run / "recipe.toml")
    done = published(run)
    current = {artifact.path.name for artifact in done.values()}
    claims = {id: entry.claim for id, entry in Ledger(run).latest().items() if entry.artifact in current}
    title = f"{recipe.family.name} ({run})"
    scratch = [member for member in recipe.member if not member.adopted]
    adopted = [member for member in recipe.member if member.adopted]
    for members, columns, row in (
        (scratch, ("parameters", "context", "trained on", "bits per byte", "decode", "memory"), _scratch_row),
        (adopted, ("parameters", "context", "licence", "right on unseen questions", "step", "memory"), _adopted_row),
    ):
        if members:
            table = Table(title=title, title_justify="left", box=None, pad_edge=False)
            for column in ("member", "role", *columns):
                table.add_column(column)
            for member in members:
                table.add_row(member.name, member.role, *row(run, member.name, done, claims))
            Console().print(table)


def _scratch_row(run: Path, name: str, done: dict[str, Artifact], claims: dict[str, Claim]) -> tuple[str, ...]:
    if f"pretrain-{name}" not in done:
        return ("not trained yet",)
    config = ModelConfig.from_dict(member_artifact(run, name).json("config.json"))
    tokens = done[f"pretrain-{name}"].json("training.json")["tokens"]
    speed, memory = (claims.get(f"{name}.{claim}") for claim in ("decode.tokens-per-second", "memory.bytes"))
    return (
        human_count(config.parameters),
        str(config.context),
        f"{human_count(tokens)} tokens",
        _with_interval(claims.get(f"{name}.bits-per-byte"), "{:.3f}"),
        f"{speed.value:.0f} tokens/s" if speed else "-",
        human_bytes(memory.value) if memory else "-",
    )


def _adopted_row(run: Path, name: str, done: dict[str, Artifact], claims: dict[str, Claim]) -> tuple[str, ...]:
    """Accuracy after the last step that was measured; memory of weights in bf16 and the cache of one full context."""
    if f"adopt-{name}" not in done:
        return ("not adopted yet",)
    config = ModelConfig.from_dict(member_artifact(run, name).json("config.json"))
    measured = [step for step in ("zero-shot", *STEPS.values()) if f"{name}.executed.unseen.{step}" in claims]
    accuracy = claims[f"{name}.executed.unseen.{measured[-1]}"] if measured else None
    return (
        human_count(config.parameters),
        str(config.context),
        done[f"adopt-{name}"].json("origin.json").get("licence") or "not stated",
        _with_interval(accuracy, "{:.1%}"),
        measured[-1] if measured else "-",
        human_bytes(2 * config.parameters + config.context * config.kv_cache_bytes_per_token()),
    )


def _with_interval(claim: Claim | None, form: str) -> str:
    if claim is None:
        return "-"
    ends = [form.format(end) for end in (claim.low, claim.high) if end is not None]
    return form.format(claim.value) + (f" [{', '.join(ends)}]" if ends else "")
