"""Whether training on a mesh gives the numbers of one process: the proof behind every parallel run.

Small networks train two steps on packed documents, on one process and on meshes of up to 16 ranks, forked on this
machine. Compared are what a run logs (loss, gradient norm), every parameter's gradient before and after clipping, and
the loss of the step after the optimizer's: the paper found its bugs by such comparisons (3.3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from herd.data.loader import Loader
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, init_weights
from herd.recipe import Optimizer
from herd.recipe_compute import Compute, Mesh, Pipeline, ScheduleName
from herd.train.adapters import add_adapters
from herd.train.hardware import Hardware
from herd.train.network import Network, Whole
from herd.train.objective import next_token
from herd.train.optim import adamw
from herd.train.parallel.network import Sharded
from herd.train.parallel.norm import local
from herd.train.parallel.ranks import run_ranks
from herd.train.parallel.tensor import same_part
from herd.train.parallel.world import world_of

LIMITS = {"float64": 1e-12, "float32": 1e-5}
CLIP_NORM = 0.3  # below the gradients' norm of these networks, so that clipping does something
RATE = 1e-2
CONTEXT, VOCAB, SEED = 16, 64, 1


@dataclass(frozen=True)
class Case:
    """One mesh and what is special about it. `micros` micro-batches of two sequences for each data-parallel rank."""

    name: str
    mesh: Mesh
    pipeline: Pipeline = field(default_factory=Pipeline)
    micros: int = 4
    layers: int = 4
    tied: bool = False
    packed: bool = True
    recompute: str = "none"
    reshard: bool = False
    adapters: bool = False
    dtype: str = "float64"

    @property
    def compute(self) -> Compute:
        return Compute.model_validate(
            {
                "mesh": self.mesh,
                "pipeline": self.pipeline,
                "micro_sequences": 2,
                "recompute": self.recompute,
                "reshard_after_forward": self.reshard,
            }
        )


class Numbers(NamedTuple):
    """What two steps gave: logged loss and norm of the first, gradients before and after clipping, second loss."""

    loss: float
    norm: float
    gradients: dict[str, Tensor]
    clipped: dict[str, Tensor]
    next_loss: float


class Errors(NamedTuple):
    """Largest relative differences from one process; a gradient's is over its parameter's largest entry."""

    loss: float = 0.0
    norm: float = 0.0
    gradient: float = 0.0
    clipped: float = 0.0
    next_loss: float = 0.0


@dataclass
class Result:
    case: Case
    errors: Errors
    parameter: str = field(default="")  # whose gradient is the worst

    @property
    def limit(self) -> float:
        return LIMITS[self.case.dtype]

    @property
    def passed(self) -> bool:
        return all(error <= self.limit for error in self.errors)  # a NaN is not


def cases() -> list[Case]:
    """The matrix: each dimension alone, pairs, triples and all four; schedules; what else could break equality."""
    found = [Case(_named(mesh), mesh) for mesh in map(_mesh, _degrees())]
    found.append(Case("all four, uneven layers", _mesh({"tp": 2, "cp": 2, "pp": 2, "dp": 2}), layers=5, tied=True))
    two = _mesh({"pp": 2})
    found += [Case(f"{name}, V {v}", two, _pipe(name, v), 4) for name, v in _schedules()]
    ragged = [(2, 2, 3, 2), (2, 2, 5, 3), (2, 3, 7, 4), (4, 1, 3, 1), (4, 2, 5, 3)]  # PP, V, M, N
    for pp, v, micros, group in ragged:
        name = f"ragged: PP {pp}, V {v}, M {micros}, N {group}"
        found.append(Case(name, _mesh({"pp": pp}), _pipe("interleaved", v, group), micros, layers=pp * v + 1))
    apart = Pipeline(stages_per_rank=2, ends_apart=True)
    found += [
        Case("embedding and head apart, tied", two, apart, 3, 3, tied=True),
        Case("tied head across stages, dp", _mesh({"pp": 2, "dp": 2}), tied=True),
        Case("tied head, V-shape", two, _pipe("zbv-zero-bubble", 2), 4, tied=True),
        Case("one rank, tied head", Mesh(), tied=True),
        Case("tied head, tp", _mesh({"tp": 2}), tied=True),
        Case("one document a row, cp tp", _mesh({"cp": 2, "tp": 2}), packed=False),
        Case("cp 4", _mesh({"cp": 4})),
        Case("dp 3", _mesh({"dp": 3})),
        Case("adapters, cp pp dp", _mesh({"cp": 2, "pp": 2, "dp": 2}), adapters=True),
        Case("weights resharded, dp", _mesh({"dp": 2}), reshard=True),
        Case("zero bubble, dp", _mesh({"pp": 2, "dp": 2}), _pipe("interleaved-zero-bubble", 2), 4),
        Case("recompute all, tp pp dp", _mesh({"tp": 2, "pp": 2, "dp": 2}), recompute="full"),
        Case("recompute some, cp dp", _mesh({"cp": 2, "dp": 2}), recompute="selective"),
    ]
    single = [{"tp": 2}, {"cp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2, "cp": 2, "pp": 2}, {"cp": 2, "pp": 2, "dp": 2}]
    return found + [Case(_named(mesh), mesh, dtype="float32") for mesh in map(_mesh, single)]


def _degrees() -> Iterator[dict[str, int]]:
    """Each dimension, pairs, triples and all four, two ranks each."""
    for kinds in range(1, 16):
        yield {name: 2 for bit, name in enumerate(("tp", "cp", "pp", "dp")) if kinds >> bit & 1}


def _schedules() -> Iterator[tuple[ScheduleName, int]]:
    """Each schedule, with its stages a rank."""
    one: tuple[ScheduleName, ...] = ("interleaved", "gpipe", "1f1b")
    two: tuple[ScheduleName, ...] = ("interleaved", "looped-bfs", "torch-interleaved", "interleaved-zero-bubble")
    v_shaped: tuple[ScheduleName, ...] = ("zbv-zero-bubble", "dualpipe-v")
    for name in one:
        yield name, 1
    for name in two + v_shaped:
        yield name, 2


def _mesh(degrees: dict[str, int]) -> Mesh:
    return Mesh(**degrees)


def _pipe(name: ScheduleName, stages_per_rank: int, group: int | None = None) -> Pipeline:
    return Pipeline(schedule=name, stages_per_rank=stages_per_rank, group=group)


def _named(mesh: Mesh) -> str:
    return " ".join(f"{name} {degree}" for name, degree in mesh if degree > 1)


def check(chosen: Sequence[Case], report: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """Run cases one after the other. Call it before this process has used more than one thread: it forks."""
    alone: dict[tuple[Any, ...], Numbers] = {}
    results = []
    for case in chosen:
        key = (case.layers, case.tied, case.packed, case.adapters, case.dtype, case.micros * case.mesh.dp)
        if key not in alone:
            (alone[key],) = run_ranks(1, _alone, case)
        result = compare(case, alone[key])
        report(result)
        results.append(result)
    return results


def compare(case: Case, expected: Numbers) -> Result:
    """A case's largest errors over its ranks."""
    found: list[tuple[Errors, str]] = run_ranks(case.mesh.size, _on_mesh, case, expected)
    worst = max(found, key=lambda one: one[0].gradient)
    columns = zip(*(errors for errors, _ in found), strict=True)
    return Result(case, Errors(*map(max, columns)), worst[1])


def _alone(case: Case) -> Numbers:
    """One process, the whole batch at once: so micro-batches are compared too."""
    return _two_steps(Whole(_model(case), _hardware(case), Compute()), case, lambda p: p.grad)


def _on_mesh(case: Case, expected: Numbers) -> tuple[Errors, str]:
    hardware = _hardware(case)
    weights = _model(case).state_dict()
    world = world_of(case.mesh, hardware.device)
    prepare = _adapt if case.adapters else _leave
    network = Sharded(_config(case), weights.__getitem__, world, case.compute, hardware, prepare)
    found = _two_steps(network, case, lambda p: None if p.grad is None else local(p.grad))

    def worst(gradients: dict[str, Tensor], right: dict[str, Tensor]) -> tuple[float, str]:
        errors = [
            (relative(gradients[name], same_part(p, right[name]), right[name]), name)
            for name, p in network.parameters.items()
            if name in right
        ]
        return max(errors, default=(0.0, ""))

    gradient, name = worst(found.gradients, expected.gradients)
    clipped, _ = worst(found.clipped, expected.clipped)
    logged = [abs(getattr(found, what) / getattr(expected, what) - 1) for what in ("loss", "norm", "next_loss")]
    return Errors(logged[0], logged[1], gradient, clipped, logged[2]), name


def relative(found: Tensor, right: Tensor, whole: Tensor) -> float:
    """Largest difference of a part, over the largest entry of the whole tensor; infinite for another shape or NaN."""
    if found.shape != right.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - right).abs().max() / whole.abs().max()) if found.numel() else 0.0


def _two_steps(network: Network, case: Case, gradient: Callable[[nn.Parameter], Tensor | None]) -> Numbers:
    def gradients() -> dict[str, Tensor]:
        found = {name: gradient(p) for name, p in network.parameters.items()}
        return {name: value.detach().clone() for name, value in found.items() if value is not None}

    batches = _batches(case)
    optimizer = adamw(network.trained.values(), Optimizer())
    loss, _ = network.accumulate(next_token, network.read(batches, 0))
    before = gradients()
    norm = network.clip(CLIP_NORM)
    after = gradients()
    for group in optimizer.param_groups:
        group["lr"] = RATE
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    next_loss, _ = network.accumulate(next_token, network.read(batches, 1))
    return Numbers(float(loss), float(norm), before, after, float(next_loss))


def _config(case: Case) -> ModelConfig:
    return ModelConfig(case.layers, 32, 4, 2, 48, VOCAB, 8, CONTEXT, tied_embeddings=case.tied)


def _model(case: Case) -> Transformer:
    model = Transformer(_config(case))
    init_weights(model, SEED)
    model.to(getattr(torch, case.dtype))
    if case.adapters:
        _adapt(model)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad and not p.any():
                    p.fill_(0.01)  # adapters begin at nothing, where half of their gradients is zero
    return model


def _adapt(model: Transformer) -> None:
    add_adapters(model, 4, 8.0, torch.Generator().manual_seed(SEED))


def _leave(model: Transformer) -> None:
    """Nothing to prepare."""


def _hardware(case: Case) -> Hardware:
    return Hardware(torch.device("cpu"), getattr(torch, case.dtype))


def _batches(case: Case) -> Loader:
    """Random tokens; token 0 begins a document, every tenth on average, so that rows hold some."""
    stream = np.random.default_rng(0).integers(1, VOCAB, 4000).astype(np.uint16)
    if case.packed:
        stream[np.random.default_rng(1).random(len(stream)) < 0.1] = 0
    return Loader({"text": stream}, CONTEXT, 2 * case.micros * case.mesh.dp, 2, 1, 0)
