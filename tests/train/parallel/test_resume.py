"""Trainings that are killed at any moment and go on, on the same mesh bit for bit, on another one within 1e-10."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from herd.data.loader import Loader
from herd.model.config import ModelConfig
from herd.recipe import Optimizer
from herd.recipe_compute import Compute, Mesh, Pipeline, Saving
from herd.train import loop
from herd.train.hardware import Hardware
from herd.train.launch import fresh
from herd.train.loop import Plan, TrainState, train
from herd.train.network import Network
from herd.train.objective import next_token
from herd.train.optim import Schedule
from herd.train.parallel.network import Sharded
from herd.train.parallel.ranks import run_ranks
from herd.train.parallel.world import world_of

CONFIG = ModelConfig(4, 16, 2, 2, 24, 64, 8, 16, tied_embeddings=True)
HARDWARE = Hardware(torch.device("cpu"), torch.float64)
STEPS = 24


class Ended(Exception):
    pass


def go_on(folder: Path, mesh: Mesh, until: int = STEPS, kill: tuple[int, float] | None = None):
    """Train from the newest checkpoint, saving after every step; (weights of rank 0, metrics). `kill`: the rank that
    ends itself after so many seconds."""
    loop.CHECKPOINT_SHARE = math.inf  # however long a save takes
    if kill and kill[0] == distributed.get_rank():
        threading.Timer(kill[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
    stream = np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint16)
    stream[np.random.default_rng(1).random(3000) < 0.1] = 0
    batches = Loader({"text": stream}, CONFIG.context, 8, STEPS, 1, 0)
    pipeline = Pipeline(stages_per_rank=2 if mesh.pp > 1 else 1)
    compute = Compute(mesh=mesh, pipeline=pipeline, micro_sequences=1, checkpoints=Saving(every_seconds=1e-9))
    network: Network = Sharded(CONFIG, fresh(CONFIG, 0), world_of(mesh, HARDWARE.device), compute, HARDWARE)
    plan = Plan(STEPS, Schedule(0.01, 0.001, 3, STEPS), Optimizer(), compute)

    def stop(step: int) -> None:
        if step == until:
            raise Ended

    try:
        state = train(
            network, next_token, batches, plan, HARDWARE, "run", folder, [until] if until < STEPS else [], stop
        )
    except Ended:
        state = TrainState()
    return network.gather(), state.metrics


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory):
    return run_ranks(1, go_on, tmp_path_factory.mktemp("one"), Mesh())[0]


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - right).abs().max() / right.abs().max()) for name, right in expected.items())


@pytest.mark.parametrize(
    "meshes",
    [
        (Mesh(pp=2, dp=2), Mesh(pp=2), Mesh()),
        (Mesh(tp=2, pp=2), Mesh(tp=2), Mesh()),
        (Mesh(), Mesh(cp=2, dp=2), Mesh(pp=2)),
    ],
    ids=lambda meshes: " to ".join(str(mesh.size) for mesh in meshes),
)
def test_a_run_goes_on_on_another_mesh(tmp_path, on_one, meshes):
    first, second, last = meshes
    run_ranks(first.size, go_on, tmp_path, first, 8)
    run_ranks(second.size, go_on, tmp_path, second, 16)
    weights, metrics = run_ranks(last.size, go_on, tmp_path, last)[0]
    assert worst(weights, on_one[0]) < 1e-10
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    for row, right in zip(metrics, on_one[1], strict=True):
        assert (row["loss"], row["gradient_norm"]) == pytest.approx((right["loss"], right["gradient_norm"]), rel=1e-10)


@pytest.mark.parametrize(("mesh", "kills"), [(Mesh(), 20), (Mesh(pp=2, dp=2), 10)], ids=["one", "pp 2 dp 2"])
def test_kills_at_random_moments_leave_no_trace(tmp_path, mesh, kills):
    """Most of a step's time is a save here, so most kills hit one."""
    expected = run_ranks(mesh.size, go_on, tmp_path / "undisturbed", mesh)[0]
    random = np.random.default_rng(7)
    killed = 0
    while killed < kills:
        kill = int(random.integers(mesh.size)), float(random.uniform(0.02, 0.5))
        try:
            run_ranks(mesh.size, go_on, tmp_path / "killed", mesh, STEPS, kill)
        except RuntimeError:
            killed += 1
    weights, metrics = run_ranks(mesh.size, go_on, tmp_path / "killed", mesh)[0]
    assert metrics == expected[1]
    assert all(torch.equal(weights[name], right) for name, right in expected[0].items())
