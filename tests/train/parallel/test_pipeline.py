"""Pipelines on gloo: whatever the schedule, counts and placement, losses and gradients are those of one process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from herd.console import HerdError
from herd.recipe_compute import Pipeline as Settings
from herd.train.parallel import torch_private
from herd.train.parallel.pipeline import Pipeline, order_of, stage_homes, stage_indices
from herd.train.parallel.ranks import run_ranks
from herd.train.parallel.schedule import bubble, simulate, split_layers

VOCABULARY, DIM, TOKENS, ROWS = 11, 8, 5, 2
Result = tuple[list[Tensor], dict[str, Tensor]]  # of a rank: losses by micro-batch, gradients by name
SCHEDULES = [
    ("interleaved", 1),
    ("interleaved", 2),
    ("gpipe", 1),
    ("1f1b", 1),
    ("looped-bfs", 2),
    ("torch-interleaved", 2),
    ("interleaved-zero-bubble", 2),
    ("zbv-zero-bubble", 2),
    ("dualpipe-v", 2),
]


class Block(nn.Module):
    """A residual block whose result depends on the micro-batch that it is told, as a mask would make it."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(DIM), nn.Linear(DIM, 12), nn.Linear(12, DIM, bias=False)
        self.recompute = recompute

    def inner(self, x: Tensor, micro: int) -> Tensor:
        return self.down(F.silu(self.up(self.norm(x)) * (1 + 0.1 * micro)))

    def forward(self, x: Tensor, micro: int) -> Tensor:
        if self.recompute:
            return x + checkpoint(self.inner, x, micro, use_reentrant=False)
        return x + self.inner(x, micro)


class Chunk(nn.Module):
    """Some layers of the toy network, with the embedding before the first and the head after the last stage."""

    def __init__(self, network: Network, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        self.embedding = network.embedding if first else None
        self.layers = nn.ModuleDict({str(layer): network.layers[layer] for layer in layers})
        self.head = network.head if last else None
        self.micro = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.layers.values():
            x = block(x, self.micro)
        return x if self.head is None else self.head(x)


class Network(nn.Module):
    def __init__(self, layers: int, dtype: torch.dtype = torch.float64, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleList(Block(recompute) for _ in range(layers))
        self.head = nn.Linear(DIM, VOCABULARY, bias=False)
        self.to(dtype)

    def chunks(self, settings: Settings, rank: int, pp: int) -> dict[int, nn.Module]:
        stages = pp * settings.stages_per_rank
        split = split_layers(len(self.layers), stages, settings.ends_apart)
        here = stage_indices(settings.schedule, rank, pp, settings.stages_per_rank)
        return {s: Chunk(self, split[s], s == 0, s == stages - 1) for s in here}


def pipeline_of(
    chunks: dict[int, nn.Module], settings: Settings, micros: int, group: ProcessGroup | None = None
) -> Pipeline:
    group = group or distributed.group.WORLD
    assert group is not None
    stages = group.size() * settings.stages_per_rank
    return Pipeline(chunks, stages, settings, group, torch.device("cpu"), micros)


def batch(micros: int, tokens: int = TOKENS, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randint(VOCABULARY, (2, micros * ROWS, tokens), generator=generator)
    return inputs, targets


def summed_loss(targets: Tensor, micros: int, count: int = 0) -> Callable[[Tensor, int], Tensor]:
    parts, count = targets.chunk(micros), count or targets.numel()

    def loss(logits: Tensor, micro: int) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), parts[micro].flatten(), reduction="sum") / count

    return loss


def gradients(module: nn.Module) -> dict[str, Tensor]:
    def whole(gradient: Any) -> Tensor:
        return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).clone()

    return {name: whole(p.grad) for name, p in module.named_parameters() if p.grad is not None}


def alone(network: Network, micros: int, tokens: int = TOKENS, seed: int = 1) -> Result:
    """One process, one micro-batch after another."""
    inputs, targets = batch(micros, tokens, seed)
    loss = summed_loss(targets, micros)
    whole = Chunk(network, range(len(network.layers)), True, True)
    losses = []
    for micro, part in enumerate(inputs.chunk(micros)):
        whole.micro = micro
        value = loss(whole(part), micro)
        value.backward()
        losses.append(value.detach())
    return losses, gradients(network)


def piped(settings: Settings, layers: int, micros: int, recompute: bool = False) -> Result:
    network = Network(layers, recompute=recompute)
    chunks = network.chunks(settings, distributed.get_rank(), distributed.get_world_size())
    pipeline = pipeline_of(chunks, settings, micros)
    inputs, targets = batch(micros)
    return pipeline.step(inputs, summed_loss(targets, micros)), gradients(network)


def assert_equal(results: list[Result], expected: Result):
    losses, wanted = expected
    [given] = [rank_losses for rank_losses, _ in results if rank_losses]
    torch.testing.assert_close(given, losses, rtol=1e-12, atol=0)
    found = {name: gradient for _, part in results for name, gradient in part.items()}
    assert sum(len(part) for _, part in results) == len(wanted)  # each parameter's gradient on one rank
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


@pytest.mark.parametrize(("schedule", "stages_per_rank"), SCHEDULES)
def test_every_schedule_gives_the_gradients_of_one_process(schedule, stages_per_rank):
    settings = Settings(schedule=schedule, stages_per_rank=stages_per_rank)
    assert_equal(run_ranks(2, piped, settings, 4, 4), alone(Network(4), 4))


@pytest.mark.parametrize(
    ("pp", "stages_per_rank", "layers", "micros", "group", "apart"),
    [
        (2, 1, 3, 1, None, False),  # fewer micro-batches than ranks, uneven layers
        (2, 2, 5, 3, None, False),
        (2, 2, 5, 5, 1, False),  # groups smaller than the number of ranks
        (3, 2, 7, 4, 3, False),  # a short last group
        (2, 3, 6, 5, 5, False),  # breadth first
        (2, 2, 3, 3, 2, True),  # the embedding alone, the head alone
        (3, 1, 1, 4, None, True),
    ],
)
def test_any_counts_groups_and_layers_run_on_our_schedule(pp, stages_per_rank, layers, micros, group, apart):
    settings = Settings(stages_per_rank=stages_per_rank, group=group, ends_apart=apart)
    assert_equal(run_ranks(pp, piped, settings, layers, micros), alone(Network(layers), micros))


def shapes_change() -> list[Any]:
    settings = Settings(stages_per_rank=2)
    network, found = Network(4), []
    pipeline = pipeline_of(network.chunks(settings, distributed.get_rank(), 2), settings, 3)
    for seed, (micros, tokens) in enumerate([(3, 5), (3, 7), (1, 4), (3, 5)]):
        inputs, targets = batch(micros, tokens, seed)
        network.zero_grad()
        evaluated = pipeline.evaluate(inputs, summed_loss(targets, micros), micros)
        losses = pipeline.step(inputs, summed_loss(targets, micros), micros)
        assert evaluated == losses  # bit for bit, and no gradient came of it
        found.append((losses, gradients(network)))
    return found


def test_evaluation_and_steps_of_any_shape_share_one_pipeline():
    by_rank = run_ranks(2, shapes_change)
    for seed, (micros, tokens) in enumerate([(3, 5), (3, 7), (1, 4), (3, 5)]):
        assert_equal([steps[seed] for steps in by_rank], alone(Network(4), micros, tokens, seed))


def evaluated(settings: Settings, micros: int) -> list[Tensor]:
    network = Network(4)
    chunks = network.chunks(settings, distributed.get_rank(), 2)
    pipeline = pipeline_of(chunks, settings, micros)
    inputs, targets = batch(micros)
    return pipeline.evaluate(inputs, summed_loss(targets, micros))


@pytest.mark.parametrize("schedule", ["torch-interleaved", "dualpipe-v"])
def test_evaluation_takes_counts_that_the_schedule_refuses(schedule):
    settings = Settings(schedule=schedule, stages_per_rank=2)
    micros = 5 if schedule == "torch-interleaved" else 3
    with pytest.raises(HerdError, match=f"does not take {micros} micro-batches"):
        order_of(settings, 2, micros)
    [losses] = [losses for losses in run_ranks(2, evaluated, settings, micros) if losses]
    torch.testing.assert_close(losses, alone(Network(4), micros)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("schedule", "stages_per_rank"), SCHEDULES)
def test_activations_can_be_computed_again_in_backward(schedule, stages_per_rank):
    settings = Settings(schedule=schedule, stages_per_rank=stages_per_rank)
    assert_equal(run_ranks(2, piped, settings, 4, 4, True), alone(Network(4), 4))


def frozen(settings: Settings, micros: int) -> Result:
    network = Network(4)
    network.embedding.requires_grad_(False)
    for layer in (0, 2):
        network.layers[layer].requires_grad_(False)
    if distributed.is_initialized():
        chunks = network.chunks(settings, distributed.get_rank(), 2)
        inputs, targets = batch(micros)
        return pipeline_of(chunks, settings, micros).step(inputs, summed_loss(targets, micros)), gradients(network)
    return alone(network, micros)


@pytest.mark.parametrize(("schedule", "stages_per_rank"), SCHEDULES)
def test_stages_may_be_frozen(schedule, stages_per_rank):
    settings = Settings(schedule=schedule, stages_per_rank=stages_per_rank)
    assert_equal(run_ranks(2, frozen, settings, 4), frozen(settings, 4))


def sharded(settings: Settings, micros: int, dtype: torch.dtype, compute: torch.dtype) -> Result:
    """Data parallel in 2 by pipeline in 2; each data rank has half of the rows of each micro-batch."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    network, dp = Network(5, dtype), mesh["dp"].get_local_rank()
    chunks = network.chunks(settings, mesh["pp"].get_local_rank(), 2)
    for chunk in chunks.values():
        for module in [m for m in chunk.modules() if isinstance(m, Block)] + [chunk]:
            policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=dtype)
            fully_shard(module, mesh=mesh["dp"], reshard_after_forward=False, mp_policy=policy)
        torch_private.sums_gradients(chunk)
    pipeline = pipeline_of(chunks, settings, micros, mesh["pp"].get_group())
    inputs, targets = (whole.unflatten(0, (micros, ROWS))[:, dp] for whole in batch(micros))
    loss = summed_loss(targets, micros, targets.numel() * 2)
    evaluated = pipeline.evaluate(inputs, loss)
    losses: list[Tensor] = []
    for _ in range(2):  # the second time, weights were gathered and gradients reduced before
        network.zero_grad()
        losses = pipeline.step(inputs, loss)
        assert losses == evaluated
    for value in losses:
        distributed.all_reduce(value, group=mesh["dp"].get_group())
    parts = {name: gradient for chunk in chunks.values() for name, gradient in gradients(chunk).items()}
    return (losses, parts) if dp == 0 else ([], {})


@pytest.mark.parametrize(
    ("schedule", "stages_per_rank"),
    [("interleaved", 1), ("interleaved", 2), ("interleaved-zero-bubble", 2), ("zbv-zero-bubble", 2)],
)
def test_stages_sharded_by_fsdp(schedule, stages_per_rank):
    settings = Settings(schedule=schedule, stages_per_rank=stages_per_rank)
    assert_equal(run_ranks(4, sharded, settings, 4, torch.float64, torch.float64), alone(Network(5), 4))


@pytest.mark.parametrize("schedule", ["interleaved", "interleaved-zero-bubble"])
def test_weights_sharded_in_bfloat16_add_up_their_gradients_in_float32(schedule):
    settings, micros = Settings(schedule=schedule, stages_per_rank=2), 32
    network = Network(5, torch.bfloat16)
    whole, wanted = Chunk(network, range(5), True, True), {}
    inputs, targets = batch(micros)
    loss = summed_loss(targets, inputs.shape[0])
    for row, tokens in enumerate(inputs):  # each data rank sees one row of a micro-batch
        network.zero_grad()
        whole.micro = row // ROWS
        loss(whole(tokens[None]), row).backward()
        for name, gradient in gradients(network).items():
            wanted[name] = wanted.get(name, 0.0) + gradient.float()
    for _, part in run_ranks(4, sharded, settings, micros, torch.float32, torch.bfloat16):
        for name, gradient in part.items():  # added up in bfloat16, they differ by 5e-4
            assert gradient.dtype == torch.float32
            assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def in_bfloat16(settings: Settings | None, micros: int) -> Result:
    network = Network(4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        if settings is None:
            return alone(network, micros)
        chunks = network.chunks(settings, distributed.get_rank(), 2)
        pipeline = pipeline_of(chunks, settings, micros)
        inputs, targets = batch(micros)
        pipeline.evaluate(inputs, summed_loss(targets, micros))
        return pipeline.step(inputs, summed_loss(targets, micros)), gradients(network)


@pytest.mark.parametrize(("schedule", "stages_per_rank"), [("interleaved", 2), ("1f1b", 1), ("zbv-zero-bubble", 2)])
def test_under_autocast_gradients_add_up_in_float32(schedule, stages_per_rank):
    losses, wanted = in_bfloat16(None, 4)
    results = run_ranks(2, in_bfloat16, Settings(schedule=schedule, stages_per_rank=stages_per_rank), 4)
    found = {name: gradient for _, part in results for name, gradient in part.items()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    [given] = [rank_losses for rank_losses, _ in results if rank_losses]
    torch.testing.assert_close(given, losses, rtol=1e-6, atol=0)


def living(settings: Settings, micros: int) -> tuple[int, int]:
    """At most so many inputs and outputs of this rank's stages are in memory when one of its forwards ends."""
    network, most = Network(4), [0, 0]
    chunks = network.chunks(settings, distributed.get_rank(), 2)
    inputs: list[StorageWeakRef] = []
    outputs: list[StorageWeakRef] = []

    def count(_: nn.Module, arguments: tuple[Tensor, Tensor], output: Tensor) -> None:
        inputs.append(StorageWeakRef(arguments[0].untyped_storage()))
        outputs.append(StorageWeakRef(output.untyped_storage()))
        for kind, stored in enumerate((inputs, outputs)):
            most[kind] = max(most[kind], sum(not reference.expired() for reference in stored))

    for chunk in chunks.values():
        chunk.register_forward_hook(count)
    pipeline = pipeline_of(chunks, settings, micros)
    tokens, targets = batch(micros)
    pipeline.step(tokens, summed_loss(targets, micros))
    gc.collect()
    assert all(reference.expired() for reference in outputs)
    return most[0], most[1]


def test_states_are_freed_when_sent_and_inputs_after_their_backward():
    micros = 20
    (_, sent), (received, _) = run_ranks(2, living, Settings(schedule="gpipe"), micros)
    assert sent <= torch_private.MOST_SENDS + 2  # though the backwards of all 20 are still to come
    assert received == micros
    (_, sent), (received, _) = run_ranks(2, living, Settings(), micros)
    assert sent <= torch_private.MOST_SENDS + 2
    assert received <= 2  # 1F1B: the last rank does each backward at once


class Turned(nn.Module):
    """Takes and returns states whose memory is in another order than their shape; so are the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM, TOKENS, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            x = x[..., None].double().expand(-1, -1, DIM)
        return (x.transpose(1, 2) * self.weight).transpose(1, 2)


def turned() -> Tensor:
    module = Turned()
    settings, rank = Settings(), distributed.get_rank()
    tokens, _ = batch(2)
    pipeline_of({rank: module}, settings, 2).step(tokens, lambda state, micro: state.transpose(1, 2).sum())
    assert module.weight.grad is not None
    return module.weight.grad


def test_states_and_gradients_may_lie_in_memory_in_any_order():
    wanted = batch(2)[0].sum(0).double().expand(DIM, -1)
    for gradient in run_ranks(2, turned):
        torch.testing.assert_close(gradient, wanted)


class Wrong(nn.Module):
    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error:
            raise self.error
        return x[:, 1:].clone()


def wrong_in_the_middle(error: Exception | None) -> None:
    settings, rank = Settings(), distributed.get_rank()
    chunks = Network(3).chunks(settings, rank, 3)
    pipeline = pipeline_of({1: Wrong(error)} if rank == 1 else chunks, settings, 2)
    inputs, targets = batch(2)
    pipeline.step(inputs, summed_loss(targets, 2))


def test_an_error_of_ours_inside_a_stage_is_shown_as_it_is():
    with pytest.raises(HerdError, match=r"^this module refuses$"):
        run_ranks(3, wrong_in_the_middle, HerdError("this module refuses"))


def test_a_stage_that_changes_the_shape_of_states_is_named():
    with pytest.raises(RuntimeError, match=r"stage 1 returned torch.float64 \(2, 4, 8\); .* stage 0 .* \(2, 5, 8\)"):
        run_ranks(3, wrong_in_the_middle, None)


def stages_elsewhere() -> None:
    with pytest.raises(ValueError, match=r"rank . of 2 holds stages \[., .\] of 4"):
        pipeline_of({0: Turned()}, Settings(stages_per_rank=2), 2)
    pipeline = pipeline_of({distributed.get_rank(): Turned()}, Settings(), 3)
    with pytest.raises(ValueError, match="4 rows of tokens are not 3 equal micro-batches"):
        pipeline.step(batch(2)[0], lambda state, micro: state.sum())


def test_stages_and_rows_that_do_not_fit_are_refused():
    assert run_ranks(2, stages_elsewhere) == [None, None]


def test_torch_names_counts_near_the_one_that_it_refuses():
    settings = Settings(schedule="torch-interleaved", stages_per_rank=2)
    with pytest.raises(HerdError, match=r"pp = 4 does not take 9 .* takes 7, 8, 10, 12\); 'interleaved' takes any"):
        order_of(settings, 4, 9)
    with pytest.raises(HerdError, match=r"pp = 4 does not take 3 .* takes 8, 9\); 'interleaved' takes any"):
        order_of(settings.model_copy(update={"schedule": "dualpipe-v"}), 4, 3)


@pytest.mark.parametrize(("schedule", "stages_per_rank"), SCHEDULES)
def test_orders_can_be_drawn_without_ranks(schedule, stages_per_rank):
    settings = Settings(schedule=schedule, stages_per_rank=stages_per_rank)
    order, stages = order_of(settings, 4, 8), 4 * stages_per_rank
    homes = stage_homes(schedule, 4, stages_per_rank)
    assert all(homes[action.stage] == rank for rank, actions in enumerate(order) for action in actions)
    assert bubble(simulate(order, [1.0] * stages, [2.0] * stages)) <= 3 / 8 + 1e-9


def test_another_torch_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.1+cpu")
    with pytest.raises(HerdError, match=r"needs torch 2\.13; 2\.99\.1\+cpu is installed"):
        torch_private.check_torch()


def test_a_compiled_stage_is_refused_where_backward_runs_in_halves():
    block = Block(False)
    torch_private.refuse_compiled(block, "zbv-zero-bubble")
    block.compile()
    with pytest.raises(HerdError, match="'zbv-zero-bubble' runs backward in halves: set compile = false"):
        torch_private.refuse_compiled(nn.Sequential(block), "zbv-zero-bubble")
