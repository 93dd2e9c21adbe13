"""The search for a mix: small runs on each candidate, a forecast of the target from them, and a choice (paper 3.1.2).

Every candidate trains the same small networks on the same budgets. For each candidate and each group's held-out text
a power law through its losses forecasts the loss at the target budget, and the candidate with the least weighted
forecast is chosen. Whether it is really ahead of the second is said too: runs of one budget share initial weights and
most of their luck, so only what is left between candidates counts as noise of a difference.

The paper's other test of data, annealing a half-trained model on 30% of it (3.1.3), is not here: it judges a data
set, not a mix.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, field_serializer

from herd.artifact import Artifact, Draft, canonical_json, write_atomically
from herd.console import HerdError, progress, say, warn
from herd.data.loader import derive_seed
from herd.data.shards import load_shards
from herd.evaluate.perplexity import score_documents
from herd.evidence import Claim, write_claims
from herd.intervals import Interval, percentiles
from herd.pretrain.initial import new_model
from herd.pretrain.ladder import first_cells
from herd.pretrain.plan import PlannedBatches, candidate_sizes, mixture_for, model_config, plan_budget, target_tokens
from herd.process import cores
from herd.recipe import Compute, Pretrain, Scaling, Section
from herd.recipe_data import Mix, MixSearch
from herd.train.hardware import choose_hardware
from herd.train.loop import Plan, train
from herd.train.objective import next_token
from herd.train.workers import Workers

DRAWS = 4000
FEWEST_DOCUMENTS = 3  # held out of a group: fewer say nothing of it
Train = Callable[[str, float], Mapping[str, float]]  # (candidate, FLOPs) -> loss in nats a token by group


class ProxyRun(NamedTuple):
    """One finished small run: held-out loss of each group, in nats a token."""

    mix: str
    flops: float
    losses: Mapping[str, float]


@dataclass(frozen=True)
class MixForecast:
    """What a candidate's runs say of the target budget: loss by group, and weighted, with its interval."""

    mix: str
    losses: dict[str, float]
    loss: float
    interval: Interval


@dataclass(frozen=True)
class MixChoice:
    """The candidates, best first. `lead` is the second's forecast loss less the best's, with its interval;
    `separated` says whether that interval lies above zero. Noise is of one run, as a fraction of its loss."""

    ranking: tuple[MixForecast, ...]
    lead: float
    lead_interval: Interval
    separated: bool
    confidence: float
    noise: float

    @property
    def best(self) -> str:
        return self.ranking[0].mix


def choose_mix(
    runs: Sequence[ProxyRun],
    weights: Mapping[str, float],
    target_flops: float,
    seed: int,
    confidence: float = 0.9,
) -> MixChoice:
    """Forecast every candidate at a budget and choose the one of the least weighted loss.

    `weights` says what a group's loss counts; groups not named count nothing, and with no weights all count the same.
    The law is L = A * C^a for each candidate and group; what it leaves, in logarithms, is split into a part that all
    candidates of a budget share and each run's own, and the intervals come from laws refitted to redrawn losses.
    Raises HerdError for fewer than two candidates or three budgets, runs that are missing, or weights of groups that
    have no loss.
    """
    mixes, budgets = sorted({run.mix for run in runs}), sorted({run.flops for run in runs})
    groups = sorted(runs[0].losses) if runs else []
    if len(mixes) < 2 or len(budgets) < 3:
        raise HerdError(f"mix search: {len(mixes)} candidates on {len(budgets)} budgets; two on three are needed")
    if unknown := sorted(set(weights) - set(groups)):
        raise HerdError(f"mix search: weights name {', '.join(unknown)}; losses are of {', '.join(groups)}")
    logs = np.log(_table(runs, mixes, budgets, groups))  # (mixes, groups, budgets)
    counts = np.array([weights.get(group, 0.0) if weights else 1.0 for group in groups], float)
    counts /= counts.sum()

    # The least squares of scaling.power_law.fit_power_law, for all laws at once.
    design = np.stack([np.ones(len(budgets)), np.log(budgets)])
    solve = np.linalg.pinv(design).T  # logs @ solve.T = (level, exponent)
    onto_target = np.array([1.0, math.log(target_flops)]) @ solve
    fitted = logs @ solve.T @ design
    own, shared, freedom = _noise(logs - fitted)
    random = np.random.default_rng(seed)
    # A spread from so few residuals is itself uncertain: drawn from its distribution, as in Student's interval.
    unsure = np.sqrt(freedom / random.chisquare(freedom, (DRAWS, 1, 1, 1)))
    redrawn = own * random.standard_normal((DRAWS, *logs.shape))
    redrawn += shared * random.standard_normal((DRAWS, 1, *logs.shape[1:]))
    redrawn = fitted + unsure * redrawn
    forecasts, drawn = np.exp(logs @ onto_target), np.exp(redrawn @ onto_target) @ counts
    losses = forecasts @ counts
    order = np.argsort(losses, kind="stable")
    ranking = tuple(
        MixForecast(
            mixes[i],
            {group: float(loss) for group, loss in zip(groups, forecasts[i], strict=True)},
            float(losses[i]),
            percentiles(drawn[:, i], confidence),
        )
        for i in order
    )
    best, second = order[:2]
    lead = percentiles(drawn[:, second] - drawn[:, best], confidence)
    return MixChoice(
        ranking, float(losses[second] - losses[best]), lead, lead.low > 0, confidence, math.hypot(own, shared)
    )


def _table(runs: Sequence[ProxyRun], mixes: list[str], budgets: list[float], groups: list[str]) -> np.ndarray:
    """Losses by mix, group and budget. Raises HerdError naming a run that is missing or has other groups."""
    found = {(run.mix, run.flops): run.losses for run in runs}
    for mix in mixes:
        for budget in budgets:
            if sorted(found.get((mix, budget), {})) != groups:
                raise HerdError(f"mix search: no loss on {', '.join(groups)} of '{mix}' at {budget:.3g} FLOPs")
    return np.array([[[found[mix, budget][group] for budget in budgets] for group in groups] for mix in mixes])


def _noise(residuals: np.ndarray) -> tuple[float, float, int]:
    """Standard deviations of a run's own noise and of what the candidates of a budget share, in log loss, and the
    degrees of freedom of the first.

    A law through C budgets leaves C - 2 degrees of freedom; the mean over M candidates takes one of M. The sharing
    part also holds the bend that a power law without a floor has against the truth.
    """
    mixes, groups, budgets = residuals.shape
    means = residuals.mean(axis=0)
    freedom = (mixes - 1) * groups * (budgets - 2)
    own = ((residuals - means) ** 2).sum() / freedom
    shared = (means**2).sum() / (groups * (budgets - 2)) - own / mixes
    return math.sqrt(own), math.sqrt(max(0.0, shared)), freedom


class MixSearchSettings(Section):
    """`mix.search` must be there; `mix.max_epochs` holds for its candidates, at the target's tokens."""

    seed: int
    mix: Mix
    scaling: Scaling
    pretrain: Pretrain
    max_documents: int
    hardware: dict[str, str]
    compute: Compute = Field(exclude=True)

    @field_serializer("mix")
    def _only_what_counts(self, mix: Mix) -> dict[str, Any]:
        return mix.model_dump(exclude={"class_caps"})

    @field_serializer("scaling")
    def _sizes_and_target(self, scaling: Scaling) -> dict[str, Any]:
        return scaling.model_dump(exclude={"budgets_flops", "extra_cells"})


def _search(settings: MixSearchSettings) -> MixSearch:
    assert settings.mix.search is not None
    return settings.mix.search


def search_mix(settings: MixSearchSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: train every candidate on every budget over inputs["shards"] and choose for `scaling.forecast_flops`.

    Writes `mix.json`: the runs, the forecasts and the choice, with its shares as `[data.mix.shares]` takes them.
    Finished runs are kept in the draft's work folder, so a stopped search goes on where it was. Raises HerdError,
    before anything is trained, where a group that has a weight has no documents to be scored on.
    """
    search, path = _search(settings), inputs["shards"].path
    held = Counter(load_shards(path).heldout.groups[: settings.max_documents])
    if poor := [group for group in search.weights if held[group] < FEWEST_DOCUMENTS]:
        raise HerdError(
            f"data.mix.search.weights: {held[poor[0]]} held-out documents of {poor[0]} among {held.total()}, "
            f"{FEWEST_DOCUMENTS} are needed; raise data.held_out_share or evaluate.max_documents"
        )
    folder = out.work / f"mix-{inputs['shards'].content[:16]}"
    folder.mkdir(exist_ok=True)
    with Workers(settings.compute.processes or cores()) as workers:
        run = partial(train_proxy, settings, path, folder)
        runs = run_proxies(sorted(search.candidates), search.budgets_flops, run, folder, workers)
    target, seed = settings.scaling.forecast_flops, derive_seed(settings.seed, "mix search")
    choice = choose_mix(runs, {**search.weights}, target, seed, settings.scaling.confidence)
    best, second = choice.ranking[:2]
    _tell(choice)
    out.write_json(
        "mix.json",
        {
            "chosen": choice.best,
            "shares": search.candidates[choice.best],
            "separated": choice.separated,
            "target_flops": target,
            "choice": asdict(choice),
            "runs": [run._asdict() for run in runs],
        },
    )
    n, of, method = len(runs), "small runs", "parametric bootstrap of the runs"
    what = f"what mix '{best.mix}' is forecast to be ahead of '{second.mix}' at {target:.3g} FLOPs, in held-out loss"
    low, high = choice.lead_interval
    claims = [Claim("mix.lead", what, choice.lead, "nats/token", n, of, low, high, choice.confidence, method)]
    for one in choice.ranking:
        what = f"weighted held-out loss of mix '{one.mix}' forecast at {target:.3g} FLOPs"
        low, high = one.interval
        id = f"mix.{one.mix}.forecast.loss"
        claims.append(Claim(id, what, one.loss, "nats/token", n, of, low, high, choice.confidence, method))
    write_claims(out.folder / "claims.json", claims)


def _tell(choice: MixChoice) -> None:
    best, second = choice.ranking[:2]
    ahead = f"{choice.lead:.4f} nats a token, {choice.confidence:.0%} interval {choice.lead_interval.low:.4f} to "
    ahead += f"{choice.lead_interval.high:.4f}"
    if choice.separated:
        say(f"mix search: '{best.mix}' is ahead of '{second.mix}' by {ahead}")
    else:
        warn(f"mix search: '{best.mix}' is not separated from '{second.mix}': ahead by {ahead}; add budgets or runs")


def run_proxies(
    candidates: Sequence[str], budgets: Sequence[float], run: Train, folder: Path, workers: Workers | None = None
) -> list[ProxyRun]:
    """Results of `run` for every candidate and budget, the longest first; each is a file in `folder`, and one that
    is there is not made again. With workers, `run` must be a module-level function or a partial of one."""
    asked = [(mix, flops) for flops in sorted(budgets, reverse=True) for mix in candidates]
    paths = {one: folder / f"run-{_name(*one)}.json" for one in asked}
    missing = [one for one in asked if not paths[one].exists()]
    with progress("mix search: runs", len(asked)) as bar:
        bar.update(len(asked) - len(missing))
        if workers is None:
            for done, one in enumerate(missing, len(asked) - len(missing) + 1):
                _run(run, *one, paths[one])
                bar.update(done)
        else:
            futures = [workers.submit(_run, run, *one, paths[one]) for one in missing]
            for done, future in enumerate(futures, len(asked) - len(missing) + 1):
                future.result()
                bar.update(done)
    rows = [json.loads(paths[one].read_text()) for one in sorted(asked)]
    return [ProxyRun(row["mix"], row["flops"], row["losses"]) for row in rows]


def _run(run: Train, mix: str, flops: float, path: Path) -> None:
    losses = dict(run(mix, flops))
    write_atomically(path, canonical_json({"mix": mix, "flops": flops, "losses": losses}))


def _name(mix: str, flops: float) -> str:
    return hashlib.sha256(canonical_json([mix, flops]).encode()).hexdigest()[:16]


def train_proxy(
    settings: MixSearchSettings, shards_path: Path, folder: Path, mix: str, flops: float
) -> dict[str, float]:
    """Train one small network on a candidate mix and score it on each group's held-out documents (in a worker).

    The size is the ladder's first guess for the budget, the same for all candidates, and so are its initial weights.
    The mixture is the one that the target would read: what text can't give it at `max_epochs` is shared out here too.
    """
    shards = load_shards(shards_path)
    scaling, pretrain = settings.scaling, settings.pretrain
    sizes = candidate_sizes(scaling)
    counts = [model_config(size, pretrain, shards.vocab_size).matmul_parameters for size in sizes]
    budgets = _search(settings).budgets_flops
    guesses = first_cells(counts, scaling.model_copy(update={"budgets_flops": budgets}), flops)
    config = model_config(sizes[guesses[len(guesses) // 2]], pretrain, shards.vocab_size)
    plan = plan_budget(config, pretrain, flops)
    asked = Mix(shares=_search(settings).candidates[mix], max_epochs=settings.mix.max_epochs)
    mixture, _ = mixture_for(shards, asked, target_tokens(plan, scaling.forecast_flops))
    hardware = choose_hardware(settings.compute)
    model = new_model(config, derive_seed(settings.seed, "init"), hardware)
    batches = PlannedBatches(shards, plan.stretches, derive_seed(settings.seed, "order"), mixture=mixture)
    steps = Plan(plan.steps, plan.schedule, pretrain.optimizer)
    checkpoints = folder / f"work-{_name(mix, flops)}"
    train(model, next_token, batches, steps, hardware, f"  {mix} at {flops:.2g} FLOPs", checkpoints)
    scored = score_documents(model, shards.heldout, config.context, hardware.dtype, settings.max_documents)
    groups = np.array(shards.heldout.groups[: len(scored.ids)])
    losses = {}
    for group in sorted(set(groups.tolist())):
        mine = groups == group
        if mine.sum() >= FEWEST_DOCUMENTS:
            losses[group] = float(scored.nats[mine].sum() / scored.tokens[mine].sum())
    if not losses:
        raise HerdError(f"mix search: no group has {FEWEST_DOCUMENTS} held-out documents; raise data.held_out_share")
    shutil.rmtree(checkpoints, ignore_errors=True)
    return losses
