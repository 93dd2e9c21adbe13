"""`herd plan`: the best meshes for a recipe's members on so many cards, and why the others lose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from herd.console import HerdError, human_bytes, human_count
from herd.model.config import ModelConfig
from herd.pretrain.plan import Stretch, TrainingPlan, member_plan
from herd.recipe import Member, Recipe, load_recipe
from herd.show_plan_picture import draw_plan
from herd.train.gpus import Card, find_card
from herd.train.parallel.schedule import Slot, interleaved, simulate
from herd.train.planner import Found, StepPlan, differences, plan_step, recipe_setting, search

TIGHT = 0.9  # of the memory: published runs of torch's pipelines took up to a quarter more than planned
LABELS = {
    "matrix": "matrix products",
    "attention": "attention",
    "memory": "element-wise work",
    "tp": "TP, not hidden",
    "cp": "CP, not hidden",
    "pp": "PP, not hidden",
    "dp": "DP, not hidden",
    "bubble": "pipeline bubble",
    "jitter": "waiting for the slowest node",
}
WIDTH = 134  # of the tables, which a narrower terminal breaks rather than cuts
MOST_CELLS = 110  # of a schedule drawn in the terminal
SECONDS_A_DAY = 86_400


def print_plan(path: Path, member: str | None, gpus: int | None, gpu: str, picture: Path | None) -> None:
    """Print the best meshes of each member, or of one, on `gpus` cards (absent: as many as the recipe's mesh has).

    Raises HerdError for a member that isn't in the recipe, an unknown card, and where nothing fits.
    """
    recipe, card = load_recipe(path), find_card(gpu)
    if gpus is not None and gpus < 1:
        raise HerdError(f"--gpus {gpus}: expected at least 1")
    chosen = [one for one in recipe.member if member in (None, one.name)]
    if not chosen:
        raise HerdError(f"--member {member}: not in {path}; members: {', '.join(m.name for m in recipe.member)}")
    console = Console()
    console.width = max(console.width, WIDTH)
    for one in chosen:
        file = picture.with_stem(f"{picture.stem}-{one.name}") if picture and len(chosen) > 1 else picture
        _print_member(console, recipe, one, gpus or recipe.compute.mesh.size, card, file)


def _print_member(
    console: Console, recipe: Recipe, member: Member, gpus: int, card: Card, picture: Path | None
) -> None:
    if member.adopted or recipe.scaling is None or recipe.pretrain is None:
        _line(console, f"{member.name}: adopted, so nothing of it is pre-trained here\n")
        return
    training = member_plan(recipe.scaling, recipe.pretrain, member, recipe.tokenizer.vocab_size, None)
    if training is None:
        _line(console, f"{member.name}: its size or tokens wait for the ladder's forecast; give both to plan it now\n")
        return
    last, config = training.stretches[-1], training.config
    found = search(config, last.context, last.sequences, gpus, card)
    _line(
        console,
        f"{member.name}: {human_count(config.parameters)} parameters, {human_count(training.tokens)} tokens; "
        f"{human_count(last.sequences * last.context)} a step in sequences of {last.context:,}; "
        f"{gpus:,} {card.name} of {human_bytes(card.memory_bytes)}",
    )
    if not found.best:
        _line(console, _nothing_fits(found, card, gpus) + "\n")
        return
    plans = [(str(number), plan) for number, plan in enumerate(found.best, 1)]
    unfit = ""
    if gpus == recipe.compute.mesh.size:
        try:
            own = recipe_setting(config, recipe.compute, last.context, last.sequences)
            plans.append(("recipe", plan_step(own, card)))
        except HerdError as error:  # one [compute] serves all members, and not every cut suits each
            unfit = f"recipe  {error}"
    console.print(_table(plans, training))
    for name, plan in plans[1:]:
        _line(console, f"{name:>6}  {_why(plan, found.best[0])}")
    if unfit:
        _line(console, unfit)
    if found.too_big is not None:
        _line(console, _too_big(found.too_big, card))
    _line(console, f"        {found.tried:,} ways judged; {100 * TIGHT:.0f}% of the memory and more is marked tight\n")
    console.print(_parts(found.best[0]))
    _print_compute(console, found.best[0])
    if drawn := schedule_lines(found.best[0]):
        for line in drawn:
            console.print(line)
        console.print()
    _print_long_context(console, recipe, config, last, training, gpus, card)
    if picture is not None:
        draw_plan(found.best[0], timeline(found.best[0]), f"{member.name} on {gpus:,} {card.name}", picture)
        _line(console, f"drawn: {picture}\n")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(plans: list[tuple[str, StepPlan]], training: TrainingPlan) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("", "TP", "CP", "PP", "DP", "V", "M", "micro", "recompute", "weights", "step", "TFLOP/s", "MFU")
    for column in (*columns, "memory", "", "bubble", "tokens/s", "days"):
        table.add_column(
            column, justify="left" if column in ("", "computed again", "weights") else "right", no_wrap=True
        )
    for name, plan in plans:
        setting, mesh = plan.setting, plan.setting.mesh
        filled = plan.memory.total / plan.card.memory_bytes
        table.add_row(
            name,
            *(str(degree) for degree in (mesh.tp, mesh.cp, mesh.pp, mesh.dp, setting.stages_per_rank)),
            str(setting.micro_batches),
            str(setting.micro_sequences),
            setting.recompute,
            "regathered" if setting.reshard else "kept",
            _seconds(plan.seconds.total),
            f"{plan.flops_per_gpu / 1e12:.0f}",
            f"{plan.mfu:.1%}",
            human_bytes(plan.memory.total),
            "too big" if filled > 1 else "tight" if filled > TIGHT else "",
            f"{plan.bubble:.1%}",
            human_count(plan.tokens_per_second),
            f"{days(plan, training):,.1f}",
        )
    return table


def days(plan: StepPlan, training: TrainingPlan) -> float:
    """Days of training without interruptions: each stretch of the batch ramp at the speed of its own batch.

    A stretch whose batch the mesh does not divide counts at the speed of the last one.
    """
    seconds = 0.0
    for stretch in training.stretches:
        setting = plan.setting
        own, left = divmod(stretch.sequences, setting.mesh.dp)
        if not left and own % setting.micro_sequences == 0:
            setting = replace(setting, context=stretch.context, group_sequences=own)
        speed = plan_step(setting, plan.card).tokens_per_second if setting != plan.setting else plan.tokens_per_second
        seconds += stretch.tokens / speed
    return seconds / SECONDS_A_DAY


def _why(plan: StepPlan, best: StepPlan) -> str:
    share = plan.seconds.total / best.seconds.total - 1
    if abs(share) < 0.0005:
        return f"as fast, with {human_bytes(plan.memory.total)} instead of {human_bytes(best.memory.total)} on a rank"
    signs = {True: "+", False: "-"}
    parts = [f"{LABELS[name]} {signs[more > 0]}{_seconds(abs(more))}" for name, more in differences(plan, best)[:4]]
    slower = f"{abs(share):.1%} {'slower' if share > 0 else 'faster'}"
    if share > 1:
        slower = f"{share + 1:.1f} times as long"
    return f"{slower}: {', '.join(parts)}"


def _too_big(plan: StepPlan, card: Card) -> str:
    filled = {name: size for name, size in plan.memory._asdict().items() if name != "reserved"}
    most = sorted(filled, key=lambda name: -filled[name])[:2]
    need = " and ".join(f"{human_bytes(filled[name])} of {name}" for name in most)
    return (
        f"        fastest without its {human_bytes(card.memory_bytes)}: {_mesh(plan)}, {_seconds(plan.seconds.total)}, "
        f"but {human_bytes(plan.memory.total)} a rank ({need})"
    )


def _nothing_fits(found: Found, card: Card, gpus: int) -> str:
    if found.too_big is None:
        return f"no mesh of {gpus:,} ranks cuts this network and its batch evenly"
    least = human_bytes(found.too_big.memory.total)
    return f"nothing fits {human_bytes(card.memory_bytes)}: {_mesh(found.too_big)} is fastest and takes {least} a rank"


def _mesh(plan: StepPlan) -> str:
    mesh = plan.setting.mesh
    return f"TP {mesh.tp} CP {mesh.cp} PP {mesh.pp} DP {mesh.dp}"


def _seconds(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _parts(plan: StepPlan) -> Table:
    """Where the seconds and the bytes of a plan go, side by side."""
    table = Table(box=None, pad_edge=False)
    for column in ("where plan 1's step goes", "", "", "and the fullest rank's memory", ""):
        table.add_column(column, justify="left" if column else "right")
    seconds = [(LABELS[name], value) for name, value in plan.seconds._asdict().items()]
    sizes = [(name, human_bytes(value)) for name, value in plan.memory._asdict().items()]
    for index, (name, value) in enumerate(seconds):
        size = sizes[index] if index < len(sizes) else ("", "")
        table.add_row(name, _seconds(value), f"{value / plan.seconds.total:.1%}", *size)
    return table


def _print_compute(console: Console, plan: StepPlan) -> None:
    """Plan 1 as lines for the recipe."""
    setting, mesh = plan.setting, plan.setting.mesh
    lines = [
        "\n[compute]",
        f"mesh = {{ tp = {mesh.tp}, cp = {mesh.cp}, pp = {mesh.pp}, dp = {mesh.dp} }}",
        f"micro_sequences = {setting.micro_sequences}",
        f'recompute = "{setting.recompute}"',
        "compile = true",
    ]
    if setting.reshard:
        lines.append("reshard_after_forward = true")
    if mesh.pp > 1:
        apart = ", ends_apart = true" if setting.ends_apart else ""
        lines.append(f"pipeline = {{ stages_per_rank = {setting.stages_per_rank}{apart} }}")
    _line(console, "\n".join(lines) + "\n")


def _print_long_context(
    console: Console,
    recipe: Recipe,
    config: ModelConfig,
    last: Stretch,
    training: TrainingPlan,
    gpus: int,
    card: Card,
) -> None:
    """The best mesh of the long-context step, which has the same tokens a batch in longer sequences."""
    long = recipe.pretrain.long_context if recipe.pretrain else None
    if long is None:
        return
    sequences = max(1, round(last.sequences * last.context / long.context_tokens))
    found = search(config, long.context_tokens, sequences, gpus, card, keep=1)
    _line(console, f"long-context step, {long.context_tokens:,} tokens a sequence:")
    if not found.best:
        _line(console, _nothing_fits(found, card, gpus) + "\n")
        return
    tokens = long.share * training.tokens
    steps = Stretch(round(tokens / (sequences * long.context_tokens)), sequences, long.context_tokens)
    console.print(_table([("1", found.best[0])], replace(training, stretches=(steps,))))
    console.print()


def timeline(plan: StepPlan) -> list[list[Slot]]:
    """When each rank runs which micro-batch, in seconds, drawn with at most 2 PP micro-batches. Empty without PP."""
    setting, mesh = plan.setting, plan.setting.mesh
    if mesh.pp == 1:
        return []
    micros = min(setting.micro_batches, 2 * mesh.pp)
    forward, backward, hop = plan.stage_seconds()
    order = interleaved(mesh.pp, setting.stages_per_rank, micros, min(micros, setting.group or mesh.pp))
    return simulate(order, forward, backward, hop)


def schedule_lines(plan: StepPlan) -> list[Text]:
    """The schedule as text, a line a rank, where it is short enough: forwards a cell wide, backwards two."""
    setting, mesh = plan.setting, plan.setting.mesh
    if not 1 < mesh.pp <= 8:
        return []
    stages, most = mesh.pp * setting.stages_per_rank, setting.micro_batches
    for micros in range(min(most, 2 * mesh.pp, MOST_CELLS // (3 * setting.stages_per_rank)), 0, -1):
        order = interleaved(mesh.pp, setting.stages_per_rank, micros, min(micros, setting.group or mesh.pp))
        slots = simulate(order, [1.0] * stages, [2.0] * stages)
        cells = round(max(rank[-1].end for rank in slots))
        if cells <= MOST_CELLS:
            break
    else:
        return []
    shown = "" if micros == most else f", drawn with {micros} instead of {most}"
    lines = [
        Text(f"which micro-batch runs on which rank when{shown}: forward 0 (blue), backward 0< (orange), idle ·"),
    ]
    for rank, row in enumerate(slots):
        cell = [("·", "dim")] * cells
        for slot in row:
            shade = slot.action.stage // mesh.pp / max(1, setting.stages_per_rank - 1)
            colour = _shade((90, 160, 230), shade) if slot.action.kind == "F" else _shade((240, 160, 70), shade)
            for at in range(round(slot.start), round(slot.end)):
                mark = f"{slot.action.micro % 10}" if at == round(slot.start) else "<"
                cell[at] = (mark, f"black on {colour}")
        lines.append(Text.assemble(f"{rank:>2} ", *cell))
    return lines


def _shade(colour: tuple[int, int, int], depth: float) -> str:
    red, green, blue = (round(part * (1 - 0.4 * depth)) for part in colour)
    return f"rgb({red},{green},{blue})"
