"""The tensors of a training state by name, and room for those of a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from herd.model.formats.weights import OF_NAME
from herd.train.checkpoints.format import Opened
from herd.train.checkpoints.ranks import Ranks

WEIGHT = "model."
RANDOM = "random."


def weights(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by names like `model.norm.weight`, sharing their memory."""
    return {WEIGHT + name: parameters[name].detach() for name in sorted(parameters)}


def moments(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by names like `exp_avg.norm.weight`; frozen parameters have none."""
    return {
        f"{key}.{name}": value.detach()
        for name in sorted(parameters)
        for key, value in sorted(optimizer.state.get(parameters[name], {}).items())
    }


def room_for_moments(
    opened: Opened, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """Room for the state that the checkpoint has of each parameter which the optimizer trains."""
    saved: dict[str, list[str]] = defaultdict(list)
    for full in opened.tensors:
        key, _, name = full.partition(".")
        if not full.startswith((WEIGHT, RANDOM)):
            saved[name].append(key)
    # Only these kinds of AdamW count their steps where the parameters are.
    counts_there = {p: bool(g.get("fused") or g.get("capturable")) for g in optimizer.param_groups for p in g["params"]}
    room: dict[str, dict[str, Tensor]] = {}
    for name, parameter in sorted(parameters.items()):
        if parameter not in counts_there or name not in saved:
            continue
        room[name] = {}
        for key in saved[name]:
            dtype = OF_NAME[opened.tensors[f"{key}.{name}"]["dtype"]]
            if key == "step":
                device = parameter.device if counts_there[parameter] else torch.device("cpu")
                room[name][key] = torch.zeros((), dtype=dtype, device=device)
            else:
                room[name][key] = torch.zeros_like(parameter.detach(), dtype=dtype)
    return room


def random_states(rank: int) -> dict[str, Tensor]:
    """The states of this process's random generators."""
    states = {f"{RANDOM}cpu.{rank:05d}": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states[f"{RANDOM}cuda.{rank:05d}"] = torch.cuda.get_rng_state()
    return states


def room_for_random(opened: Opened, ranks: Ranks) -> dict[str, Tensor]:
    """Room for the random states that this process restores."""
    if opened.ranks != ranks.count and ranks.rank != 0:
        return {}
    return {name: value for name, value in random_states(ranks.rank).items() if opened.has(name, value.shape)}


def local_part(value: Tensor, copy: bool) -> Tensor:
    """This process's part of a tensor; a copy in memory, which training leaves alone, where asked for."""
    local = value.to_local() if isinstance(value, DTensor) else value
    return local.to("cpu", copy=True) if copy else local
