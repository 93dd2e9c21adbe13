"""The IsoFLOP ladder: sizes around each budget's expected optimum, and more until each minimum is bracketed."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from pydantic import Field, field_serializer

from herd.artifact import Artifact, Draft, canonical_json, write_atomically
from herd.console import HerdError, progress, say
from herd.data.loader import derive_seed
from herd.data.shards import load_shards
from herd.evaluate.perplexity import score_documents
from herd.evidence import Claim, write_claims
from herd.pretrain.initial import new_model
from herd.pretrain.plan import (
    PlannedBatches,
    TrainingPlan,
    candidate_sizes,
    mixture_for,
    model_config,
    plan_budget,
    target_tokens,
    training_mix,
)
from herd.process import cores
from herd.recipe import Compute, Pretrain, Scaling, Section, Size
from herd.recipe_data import Mix
from herd.scaling.isoflop import Cell, is_bracketed, lowest
from herd.train.hardware import choose_hardware
from herd.train.loop import Plan, train
from herd.train.objective import next_token
from herd.train.workers import Workers


class LadderSettings(Section):
    """`compute.threads` does not count here: ladder cells always use one thread."""

    seed: int
    mix: Mix = Mix()
    scaling: Scaling
    pretrain: Pretrain
    max_documents: int
    hardware: dict[str, str]
    compute: Compute = Field(exclude=True)

    @field_serializer("scaling")
    def _only_what_counts(self, scaling: Scaling) -> dict[str, Any]:
        target = set() if self.mix.shares else {"forecast_flops"}  # with shares, caps are set at the target's tokens
        return scaling.model_dump(exclude={"confidence"} | target)


def ladder(settings: LadderSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: train the cells; writes `cells.json` (a row a cell) and `curves.json` (their training losses).

    Finished cells are kept in the draft's work folder, so a stopped ladder goes on where it was.
    """
    shards = load_shards(inputs["shards"].path)
    sizes = candidate_sizes(settings.scaling)
    counts = [model_config(s, settings.pretrain, shards.vocab_size).matmul_parameters for s in sizes]
    if counts != sorted(counts):
        raise HerdError("scaling.grid: sizes must go from small to large")
    settings = settings.model_copy(update={"mix": training_mix(settings.mix, inputs)})
    rows = _Rows(out.work)
    processes = settings.compute.processes or cores()
    with Workers(processes) as workers, progress("ladder: cells") as bar:
        pending: dict[Future[Any], None] = {}
        asked: dict[float, set[int]] = {b: set() for b in settings.scaling.budgets_flops}

        def ask(budget: float, index: int) -> None:
            asked[budget].add(index)
            if not rows.has(budget, sizes[index]):
                pending[
                    workers.submit(
                        train_cell,
                        settings,
                        inputs["shards"].path,
                        sizes[index],
                        budget,
                        rows.path(budget, sizes[index]),
                    )
                ] = None

        for budget in sorted(asked, reverse=True):  # the longest first, so that no worker idles at the end
            for index in first_cells(counts, settings.scaling, budget):
                ask(budget, index)
        while pending or any(_widen(settings.scaling, asked, counts, rows, sizes, ask)):
            done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                del pending[future]
            bar.total = sum(map(len, asked.values()))
            bar.update(bar.total - len(pending), f"{bar.total - len(pending)} of {bar.total:.0f}")
    cells = [rows.read(b, sizes[i]) for b in sorted(asked) for i in sorted(asked[b])]
    _publish(out, cells)


def _publish(out: Draft, cells: list[dict[str, Any]]) -> None:
    out.write_json("cells.json", [{k: v for k, v in c.items() if k not in ("curve", "seconds")} for c in cells])
    out.write_json(
        "curves.json",
        [{"budget_flops": c["budget_flops"], "parameters": c["parameters"], "curve": c["curve"]} for c in cells],
    )
    (out.recorded / "seconds.json").write_text(canonical_json([c["seconds"] for c in cells]))
    write_claims(
        out.folder / "claims.json",
        [
            Claim(
                f"ladder.{c['budget_flops']:g}.{c['parameters']}.loss",
                f"held-out loss of {c['parameters']:,} parameters trained with {c['budget_flops']:.3g} FLOPs",
                c["loss"],
                "nats/token",
                c["documents"],
                "held-out documents",
            )
            for c in cells
        ],
    )


def first_cells(counts: list[int], scaling: Scaling, budget: float) -> list[int]:
    """Indices of the sizes a budget starts with: the nearest ones around its expected optimum."""
    width = min(scaling.cells_per_budget, len(counts))
    expected = scaling.expected_optimum
    if expected is None:
        centre = (len(counts) - 1) * sorted(scaling.budgets_flops).index(budget) / (len(scaling.budgets_flops) - 1)
    else:
        target = math.log(expected.parameters * (budget / expected.flops) ** expected.exponent)
        centre = min(range(len(counts)), key=lambda i: abs(math.log(counts[i]) - target))
    start = min(max(0, round(centre) - width // 2), len(counts) - width)
    return list(range(start, start + width))


def _widen(
    scaling: Scaling, asked: dict[float, set[int]], counts: list[int], rows: _Rows, sizes: list[Size], ask: Any
) -> list[bool]:
    """Ask for one more size at each budget whose lowest loss lies at the edge; says so. True for each asked."""
    more = []
    for budget, indices in asked.items():
        ordered = sorted(indices)
        cells = [Cell(budget, counts[i], 0, rows.read(budget, sizes[i])["loss"]) for i in ordered]
        extra = len(ordered) - scaling.cells_per_budget
        if is_bracketed(cells) or extra >= scaling.extra_cells:
            continue
        index = ordered[0] - 1 if lowest(cells) == 0 else ordered[-1] + 1
        if 0 <= index < len(counts):
            say(f"ladder: {budget:.3g} FLOPs have their lowest loss at an edge; adding {counts[index]:,} parameters")
            ask(budget, index)
            more.append(True)
    return more


class _Rows:
    """Results of finished cells, a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, budget: float, size: Size) -> Path:
        name = hashlib.sha256(canonical_json([budget, size.model_dump()]).encode()).hexdigest()[:16]
        return self._folder / f"cell-{name}.json"

    def has(self, budget: float, size: Size) -> bool:
        return self.path(budget, size).exists()

    def read(self, budget: float, size: Size) -> dict[str, Any]:
        return json.loads(self.path(budget, size).read_text())


def train_cell(settings: LadderSettings, shards_path: Path, size: Size, budget: float, result: Path) -> None:
    """Train and score one cell (in a worker); writes its row to `result`.

    All cells start from one seed and see the same windows in the same order, so that sizes differ by size alone.
    """
    shards = load_shards(shards_path)
    config = model_config(size, settings.pretrain, shards.vocab_size)
    plan = plan_budget(config, settings.pretrain, budget)
    hardware = choose_hardware(settings.compute)
    model = new_model(config, derive_seed(settings.seed, "init"), hardware)
    # The mix is the flagship's, whose text may run out where a cell's would not.
    mixture, _ = mixture_for(shards, settings.mix, target_tokens(plan, settings.scaling.forecast_flops))
    batches = PlannedBatches(shards, plan.stretches, derive_seed(settings.seed, "order"), mixture=mixture)
    title = f"  {config.matmul_parameters / 1e6:.3f}M at {budget:.2g} FLOPs"
    steps = Plan(plan.steps, plan.schedule, settings.pretrain.optimizer)
    checkpoints = result.with_suffix(".work")
    state = train(model, next_token, batches, steps, hardware, title, checkpoints)
    losses = score_documents(model, shards.heldout, config.context, hardware.dtype, settings.max_documents)
    row = _row(size, plan, budget) | {
        "loss": losses.nats_per_token,
        "bits_per_byte": losses.bits_per_byte,
        "documents": len(losses.ids),
        "curve": [[m["step"], m["loss"]] for m in state.metrics],
        "seconds": state.seconds,
    }
    write_atomically(result, canonical_json(row))
    shutil.rmtree(checkpoints, ignore_errors=True)


def _row(size: Size, plan: TrainingPlan, budget: float) -> dict[str, Any]:
    return {
        "budget_flops": budget,
        "layers": size.layers,
        "dim": size.dim,
        "parameters": plan.config.matmul_parameters,
        "tokens": plan.tokens,
        "steps": plan.steps,
        "batch_tokens": plan.stretches[0].sequences * plan.stretches[0].context,
        "learning_rate": plan.schedule.peak,
        "spent_flops": plan.flops,
    }
