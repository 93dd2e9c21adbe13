"""Trainings on a mesh in which something goes wrong: steps skipped or rolled back, damage, hung ranks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from herd import console
from herd.console import HerdError
from herd.data.loader import Batch, Loader
from herd.model.config import ModelConfig
from herd.recipe import Optimizer
from herd.recipe_compute import Anomalies, Compute, Mesh, Saving
from herd.train import loop
from herd.train.faults import VARIABLE
from herd.train.hardware import Hardware
from herd.train.launch import fresh
from herd.train.loop import Plan, train
from herd.train.network import Batches
from herd.train.objective import Objective, next_token
from herd.train.optim import Schedule
from herd.train.parallel.network import Sharded
from herd.train.parallel.ranks import run_ranks
from herd.train.parallel.world import world_of

CONFIG = ModelConfig(2, 16, 2, 2, 24, 64, 8, 16)
HARDWARE = Hardware(torch.device("cpu"), torch.float64)
STEPS, BAD = 10, 6
MESH = Mesh(pp=2, dp=2)


class Counted(Sharded):
    """Knows which step it computes, from 1."""

    step = 0

    def read(self, batches: Batches, step: int) -> Batch:
        self.step = step + 1
        return super().read(batches, step)


def run(folder: Path, mesh: Mesh = MESH, anomalies: Anomalies | None = None, bad: int = 0, slow: float = 600.0):
    """Train; the loss of step `bad` is a NaN (of all steps from -`bad` on, where it is negative).

    (weights on rank 0, metrics, events, lines said).
    """
    loop.CHECKPOINT_SHARE = math.inf
    said: list[str] = []
    console.redirect(lambda event: said.append(event.text) if event.kind in ("say", "warn") else None)
    stream = np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint16)
    batches = Loader({"text": stream}, CONFIG.context, 4, STEPS, 1, 0)
    compute = Compute(
        mesh=mesh,
        micro_sequences=1,
        checkpoints=Saving(every_seconds=1e-9, keep=3, asynchronous=False),
        anomalies=anomalies or Anomalies(),
        hang_seconds=slow,
    )
    network = Counted(CONFIG, fresh(CONFIG, 0), world_of(mesh, HARDWARE.device), compute, HARDWARE)

    def loss(model, hidden: Tensor, batch, dtype: torch.dtype) -> Tensor:
        wrong = network.step == bad or 0 < -bad <= network.step
        return next_token.loss(model, hidden, batch, dtype) * (math.nan if wrong else 1.0)

    plan = Plan(STEPS, Schedule(0.01, 0.001, 3, STEPS), Optimizer(), compute)
    state = train(network, Objective(loss), batches, plan, HARDWARE, "run", folder)
    return network.gather(), state.metrics, state.events, said


def without_steps(left_out: set[int]) -> dict[str, Tensor]:
    """Weights of one process that leaves steps out, written out with torch's parts."""
    from herd.model.transformer import Transformer, init_weights
    from herd.train.loop import set_rate, train_step
    from herd.train.network import Whole
    from herd.train.optim import adamw

    model = Transformer(CONFIG)
    init_weights(model, 0)
    model.double()
    network, plan = Whole(model, HARDWARE, Compute()), Plan(STEPS, Schedule(0.01, 0.001, 3, STEPS), Optimizer())
    stream = np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint16)
    batches, optimizer = (
        Loader({"text": stream}, CONFIG.context, 4, STEPS, 1, 0),
        adamw(model.parameters(), Optimizer()),
    )
    for step in range(STEPS):
        if step + 1 not in left_out:
            train_step(network, next_token, batches[step], plan)
            set_rate(optimizer, plan.schedule(step))
            optimizer.step()
            optimizer.zero_grad()
    return network.gather()


@pytest.mark.parametrize("action", ["skip", "roll-back"])
def test_a_step_that_is_not_finite_is_left_out_on_all_ranks(tmp_path, action):
    """With a checkpoint of every step, rolling back loses no more than skipping does."""
    weights, metrics, events, said = run_ranks(4, run, tmp_path, MESH, Anomalies(not_finite=action), BAD)[0]
    assert [row["step"] for row in metrics] == [step for step in range(1, STEPS + 1) if step != BAD]
    assert [(event["step"], event["action"]) for event in events] == [(BAD, action)]
    assert sum("loss nan" in line for line in said) == 1
    expected = without_steps({BAD})
    assert max(float((weights[name] - right).abs().max()) for name, right in expected.items()) < 1e-10


def test_by_default_it_stops_and_all_ranks_say_why(tmp_path):
    with pytest.raises(HerdError, match=f"run: loss nan, gradient norm nan at step {BAD}; lower the learning rate"):
        run_ranks(4, run, tmp_path, MESH, None, BAD)


def test_rolling_back_again_and_again_keeps_what_was_good(tmp_path):
    """Every step from one on is bad: checkpoints of good steps stay, none of a bad one is written."""
    with pytest.raises(HerdError, match="after 3 steps in a row rolled back"):
        run_ranks(2, run, tmp_path, Mesh(dp=2), Anomalies(not_finite="roll-back"), -BAD)
    left = sorted(int(folder.name.split("-")[1]) for folder in tmp_path.glob("step-*"))
    assert left and max(left) < BAD


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("full-disk:step=4", "a checkpoint can't be saved, those before it stay"),
        ("flip:step=5;kill:rank=1:step=5", "damaged, "),
    ],
)
def test_faults_leave_no_trace_in_what_is_trained(tmp_path, monkeypatch, fault, line):
    undisturbed = run_ranks(4, run, tmp_path / "undisturbed")[0]
    monkeypatch.setenv(VARIABLE, fault)
    folder = tmp_path / "faulty"
    if "kill" in fault:
        with pytest.raises(RuntimeError, match=r"rank 1 ended without a result|rank . failed"):
            run_ranks(4, run, folder)
    weights, metrics, _, said = run_ranks(4, run, folder)[0]
    assert sum(line in one for one in said) == 1, said
    assert metrics == undisturbed[1]
    assert all(torch.equal(weights[name], right) for name, right in undisturbed[0].items())


def test_a_hung_rank_is_named_and_the_run_ends(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(VARIABLE, "hang:rank=2:step=4")
    with pytest.raises(RuntimeError, match="ended without a result"):
        run_ranks(4, run, tmp_path, MESH, None, 0, 3.0)
    report = (tmp_path / "ranks" / "hang-0.txt").read_text()
    assert report.startswith("hang: no rank moved for 3 s; rank 2 (host")
    assert "dp 1 pp 0 cp 0 tp 0) never arrived: after step 3 in 'batch of step 4'" in report
