"""A network to train, on this process alone or on the mesh that torchrun started."""

from __future__ import annotations

import os

import torch

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, initial_weight
from herd.recipe_compute import Compute
from herd.train.hardware import Hardware
from herd.train.network import Network, Weights, Whole


def fresh(config: ModelConfig, seed: int) -> Weights:
    """Initial weights, drawn by name."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Transformer(config).named_parameters()}
    return lambda name: initial_weight(config, name, shapes[name], seed)


def describe(compute: Compute) -> dict[str, str]:
    """What of `[compute]` changes what training gives, where it is not the default: part of a trained member's key.

    The mesh is not: it changes the order of sums alone, and a run must go on on another one.
    """
    usual, keys = Compute(), ("micro_sequences", "compile", "anomalies")
    return {key: str(getattr(compute, key)) for key in keys if getattr(compute, key) != getattr(usual, key)}


def started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def open_network(config: ModelConfig, weights: Weights, compute: Compute, hardware: Hardware) -> Network:
    """The network that starts from these weights: whole, or this rank's part where the mesh has more than one.

    Raises HerdError where torchrun started another number of processes than the mesh has, or the mesh does not fit.
    """
    if compute.mesh.size == 1:
        model = Transformer(config)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights(name))
        return Whole(model.to(hardware.device), hardware, compute)
    if started() == 1:
        raise HerdError(
            f"compute.mesh: {compute.mesh.size} processes asked for, 1 started; start them with "
            f"torchrun --nproc-per-node {compute.mesh.size} -m herd run RECIPE --only pretrain"
        )
    from herd.train.parallel.network import Sharded
    from herd.train.parallel.world import start, world_of

    start(hardware.device)
    return Sharded(config, weights, world_of(compute.mesh, hardware.device), compute, hardware)


def whole_model(network: Network, config: ModelConfig, hardware: Hardware) -> Transformer | None:
    """The trained model on this process where it leads, else None. Every rank must call it."""
    if isinstance(network, Whole) and isinstance(network.model, Transformer):
        return network.model
    weights = network.gather()
    if weights is None:
        return None
    model = Transformer(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    return model.to(hardware.device)
