"""A network spread over a mesh: cut into stages, then by tensor, context and data parallelism, in that order.

The same numbers as on one process, up to the order of sums: `parity.py` shows it. In bfloat16 FSDP hands out weights in
it, so there the states between blocks are bfloat16 too, where one process keeps them in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrize import is_parametrized

from herd.console import HerdError
from herd.data.loader import Batch
from herd.model.config import ModelConfig
from herd.model.rope import rotary_frequencies, rotary_table
from herd.model.transformer import Transformer
from herd.recipe_compute import Compute
from herd.train.compiled import compile_blocks
from herd.train.hardware import Hardware
from herd.train.network import Batches, Weights
from herd.train.objective import Objective
from herd.train.parallel.context import own_positions, spread_positions
from herd.train.parallel.data import last_of_step, shard_data
from herd.train.parallel.norm import gradient_norm, local, scale_down, settle
from herd.train.parallel.pipeline import Pipeline, stage_homes, stage_indices
from herd.train.parallel.schedule import split_layers
from herd.train.parallel.stage import Micro, Stage
from herd.train.parallel.tensor import check_tensor_parallel, same_part, shard_tensors
from herd.train.parallel.world import World
from herd.train.recompute import recompute_activations
from herd.train.stragglers import this_place


@runtime_checkable
class SharedBatches(Protocol):
    """Batches of which each data-parallel rank reads its rows alone."""

    def part(self, step: int, rank: int, ranks: int) -> Batch: ...


class Sharded:
    """The part of a network that this rank trains; `weights` gives what it starts from. `prepare` changes the network
    (on the meta device) before it is cut: adapters, frozen parameters.

    Raises HerdError where the mesh does not fit the network.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        world: World,
        compute: Compute,
        hardware: Hardware,
        prepare: Callable[[Transformer], None] = lambda model: None,
    ) -> None:
        self.config, self.world = config, world
        self.place = this_place(world.degrees, dist.get_rank())
        self._compute, self._hardware = compute, hardware
        degrees, pipe = world.degrees, compute.pipeline
        self.stages = degrees.pp * (pipe.stages_per_rank if degrees.pp > 1 else 1)
        cuts = split_layers(config.layers, self.stages, pipe.ends_apart and degrees.pp > 1)
        with torch.device("meta"):
            whole = Transformer(config).to(torch.promote_types(hardware.dtype, torch.float32))
            prepare(whole)
        here = stage_indices(pipe.schedule, world.place("pp"), degrees.pp, self.stages // degrees.pp)
        self._held = {s: Stage(whole, cuts[s], s == 0, s == self.stages - 1, hardware.dtype) for s in here}
        for stage in self._held.values():
            self._spread(stage)
        self.parameters, self._copies = self._named()
        self._fill(weights)
        self._twins = self._tied_group()
        self._pipeline: Pipeline | None = None
        self._tables: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}

    def _spread(self, stage: Stage) -> None:
        """Apply the mesh's dimensions to a stage of meta tensors; a dimension of size 1 applies nothing."""
        world, degrees = self.world, self.world.degrees
        if degrees.tp > 1:
            check_tensor_parallel(self.config, degrees.tp, self.config.context // degrees.cp)
            if any(map(is_parametrized, stage.modules())):
                raise HerdError("compute.mesh.tp: adapters are trained with tp = 1; spread them by cp, pp or dp")
            shard_tensors(stage, world.mesh["tp"])
        if degrees.cp > 1:
            spread_positions(stage, world.group("cp"))
        recompute_activations(stage.blocks, self._compute.recompute)
        if self._compute.compile:
            compile_blocks(stage)
        if degrees.dp * degrees.cp > 1:
            shard_data(stage, world.replicas, self._hardware.dtype, self._compute.reshard_after_forward)
        stage.to_empty(device=world.device)
        if stage.first and stage.last and self.config.tied_embeddings:
            stage.output.weight = stage.tok_embeddings.weight  # plain parameters were made anew, one by one

    def _named(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """This rank's parameters by canonical name; and its copy of a tied head that the first stage owns."""
        found: dict[str, nn.Parameter] = {}
        copies: dict[str, nn.Parameter] = {}
        for stage in self._held.values():
            for name, p in stage.named_parameters():
                if name == "output.weight" and self.config.tied_embeddings:
                    copies["tok_embeddings.weight"] = p
                else:
                    found[name] = p
        return found, copies

    def _fill(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, p in [*self.parameters.items(), *self._copies.items()]:
                local(p).copy_(same_part(p, weights(name).to(p.dtype)))

    def _tied_group(self) -> dist.ProcessGroup | None:
        """The ranks that hold the two ends of a tied head, for this rank's place on the other dimensions."""
        if not self.config.tied_embeddings or self.world.degrees.pp == 1:
            return None
        ranks = self.world.mesh.mesh  # (dp, pp, cp, tp)
        pp = self.world.degrees.pp
        last = stage_homes(self._compute.pipeline.schedule, pp, self.stages // pp)[-1]
        mine: dist.ProcessGroup | None = None
        if last != 0:
            for pair in zip(ranks[:, 0].flatten().tolist(), ranks[:, last].flatten().tolist(), strict=True):
                group = dist.new_group(list(pair))  # every rank must take part in making every group
                if dist.get_rank() in pair:
                    mine = cast(dist.ProcessGroup, group)
        return mine

    def read(self, batches: Batches, step: int) -> Batch:
        """See `Network`. Raises HerdError where a batch has no row for some rank."""
        if not isinstance(batches, SharedBatches):
            raise HerdError("compute.mesh: this training reads whole batches, so it runs on one process only")
        batch = batches.part(step, self.world.place("dp"), self.world.degrees.dp)
        if not len(batch.inputs):
            raise HerdError(f"compute.mesh.dp: {self.world.degrees.dp} ranks, but step {step + 1} has fewer sequences")
        return batch

    def accumulate(self, objective: Objective, batch: Batch) -> tuple[Tensor, int]:
        """See `Network`. Raises HerdError where ranks that gather weights by micro-batch have unequal rows."""
        device = self._hardware.device
        mine = torch.tensor([batch.count, len(batch.inputs)], dtype=torch.int64, device=device)
        shares = [torch.empty_like(mine) for _ in range(self.world.degrees.dp)]
        dist.all_gather(shares, mine, group=self.world.group("dp"))
        counts, rows = torch.stack(shares).T.tolist()
        if self._compute.reshard_after_forward and len(set(rows)) > 1:
            raise HerdError(
                f"compute.reshard_after_forward: dp = {self.world.degrees.dp} does not divide a batch of {sum(rows)} "
                "sequences; choose another batch, or leave weights gathered"
            )
        count = sum(counts)
        own, micros = self._micro_batches(batch)
        for stage in self._held.values():
            stage.micros = micros
        tokens = [torch.from_numpy(part.inputs).to(device) for part in own]

        def loss(hidden_BTD: Tensor, micro: int) -> Tensor:
            head = self._held[self.stages - 1]
            return objective.loss(head, hidden_BTD, own[micro], self._hardware.dtype) / count

        losses = self._run(tokens, loss)
        settle(self.parameters.values())
        settle(self._copies.values())
        self._sum_tied()
        wide = torch.promote_types(self._hardware.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=device)
        for value in losses:
            total += value
        dist.all_reduce(total, group=self.world.replicas.get_group())
        dist.all_reduce(total, group=self.world.group("pp"))
        dist.broadcast(total, 0)  # sums of other places may differ in the last bit; decisions are made on one number
        return total, count

    def _run(self, tokens: list[Tensor], loss: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
        if self.world.degrees.pp > 1:
            if self._pipeline is None:
                settings, group = self._compute.pipeline, self.world.group("pp")
                self._pipeline = Pipeline(self._held, self.stages, settings, group, self.world.device, len(tokens))
            return self._pipeline.step(torch.cat(tokens), loss, len(tokens))
        (stage,), losses = self._held.values(), []
        for micro, inputs in enumerate(tokens):
            last_of_step(stage, micro == len(tokens) - 1)
            stage.micro = micro
            value = loss(stage(inputs), micro)
            value.backward()
            losses.append(value.detach())
        return losses

    def _micro_batches(self, batch: Batch) -> tuple[list[Batch], list[Micro]]:
        """Micro-batches at this rank's positions, each with its rotary tables and mask."""
        rows, length = batch.inputs.shape
        size = self._compute.micro_rows
        if self.world.degrees.pp > 1:  # a pipeline's micro-batches are of one shape
            size = max(size for size in range(1, min(size, rows) + 1) if rows % size == 0)
        at = own_positions(length, self.world.degrees.cp, self.world.place("cp"))
        positions, rope = self._positions(length, at)
        own, micros = [], []
        for part in batch.split(size):
            packed = (part.documents[:, 0] != part.documents[:, -1]).any()
            documents = torch.from_numpy(part.documents).to(self.world.device) if packed else None
            micros.append(Micro(rope, None if documents is None else mask_of(documents, positions)))
            cut = [np.ascontiguousarray(x[:, at.numpy()]) for x in (part.inputs, part.targets, part.documents)]
            own.append(Batch(*cut))
        return own, micros

    def _positions(self, length: int, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """True positions of this rank's tokens in sequences of a length, and their rotary tables, on its device."""
        if length not in self._tables:
            if length > self.config.context:
                raise ValueError(f"{length} tokens do not fit the context of {self.config.context}")
            config, degrees = self.config, self.world.degrees
            if degrees.tp > 1:
                check_tensor_parallel(config, degrees.tp, len(positions))
            frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            cos, sin = (table[positions].to(self.world.device) for table in rotary_table(frequencies, length))
            self._tables[length] = positions.to(self.world.device), (cos, sin)
        return self._tables[length]

    def _sum_tied(self) -> None:
        """Sum the gradients of both ends of a tied head, on both."""
        if not self.config.tied_embeddings or self.world.degrees.pp == 1:
            return
        first, last = self.parameters.get("tok_embeddings.weight"), self._copies.get("tok_embeddings.weight")
        if any(p is not None and p.grad is None for p in (first, last)):
            return  # frozen
        if first is not None and last is not None:
            assert first.grad is not None and last.grad is not None
            local(first.grad).add_(local(last.grad))
            local(last.grad).copy_(local(first.grad))
        elif (p := first if first is not None else last) is not None:
            assert p.grad is not None
            dist.all_reduce(local(p.grad), group=self._twins)

    @property
    def leads(self) -> bool:
        return self.place.rank == 0

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """With the copy of a tied head, whose gradient is the original's, so that both stay equal."""
        return {**self.parameters, **{f"copy of {name}": p for name, p in self._copies.items()}}

    @property
    def saved(self) -> dict[str, nn.Parameter]:
        """A copy is saved under its original's name: replicated tensors are written once and read by all."""
        return {**self._copies, **self.parameters}

    def loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Where one rank holds original and copy, the copy follows."""
        for name, copy in self._copies.items():
            if (original := self.parameters.get(name)) is not None:
                with torch.no_grad():
                    local(copy).copy_(local(original))
                optimizer.state[copy] = {key: value.clone() for key, value in optimizer.state[original].items()}

    def clip(self, norm: float) -> Tensor:
        found = gradient_norm(self.parameters.values(), self.world)
        dist.broadcast(found, 0)
        scale_down(self.trained.values(), found, norm)
        return found

    def agree(self, flag: bool) -> bool:
        decided = torch.tensor([flag], dtype=torch.int32, device=self.world.device)
        dist.broadcast(decided, 0)
        return bool(decided)

    def told(self, text: str) -> str:
        box = [text]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gather(self) -> dict[str, Tensor] | None:
        found = gathered(self.parameters, self.world)
        return found if self.leads else None


def gathered(parameters: dict[str, nn.Parameter], world: World) -> dict[str, Tensor]:
    """Whole tensors on rank 0's CPU, one at a time; stages send theirs to it."""
    names: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(names, sorted(parameters))
    leader = world.place("dp") == world.place("cp") == world.place("tp") == 0
    found: dict[str, Tensor] = {}
    for source in world.mesh.mesh[0, :, 0, 0].tolist():  # the first rank of each pipeline place
        for name in names[source]:
            here = name in parameters and names[source] == sorted(parameters)
            value = None
            if here:
                p = parameters[name].detach()
                value = (p.full_tensor() if isinstance(p, DTensor) else p).cpu().contiguous()
            if source == 0:
                if dist.get_rank() == 0 and value is not None:
                    found[name] = value
            elif here and leader and value is not None:
                dist.send_object_list([value.shape, value.dtype], 0)
                dist.send(value, 0)
            elif dist.get_rank() == 0:
                about: list = [None, None]
                dist.recv_object_list(about, source)
                found[name] = torch.empty(about[0], dtype=about[1])
                dist.recv(found[name], source)
    return found


def mask_of(documents_BS: Tensor, positions_T: Tensor) -> Tensor:
    """`document_mask` of the rows at some positions, (B, 1, T, S)."""
    everywhere = torch.arange(documents_BS.shape[1], device=documents_BS.device)
    causal = everywhere[None] <= positions_T[:, None]
    same = documents_BS[:, positions_T, None] == documents_BS[:, None, :]
    return (causal & same)[:, None]
