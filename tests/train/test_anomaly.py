"""Spikes planted in the loss curve of a real training are found, and nothing else; each policy does what it says."""

import json
import math

import numpy as np
import pytest
import torch

from herd.data.loader import Loader
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, init_weights
from herd.recipe import Optimizer
from herd.recipe_compute import Anomalies
from herd.train.anomaly import Verdict, Watch, expected
from herd.train.hardware import Hardware
from herd.train.loop import Plan, train
from herd.train.objective import next_token
from herd.train.optim import Schedule

STEPS = 300


@pytest.fixture(scope="module")
def curve() -> list[float]:
    """Losses of each step of a tiny network that learns a pattern, noisy, falling fast first."""
    config = ModelConfig(2, 16, 2, 1, 24, 40, 8, 12, tied_embeddings=True)
    model = Transformer(config)
    init_weights(model, 0)
    draw = np.random.default_rng(0)
    steps = np.where(draw.random(8000) < 0.8, 1, draw.integers(0, 39, 8000))  # mostly one token on
    stream = (1 + np.cumsum(steps) % 39).astype(np.uint16)
    batches = Loader({"text": stream}, config.context, 8, STEPS, 1, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plan = Plan(STEPS, Schedule(0.02, 0.002, 15, STEPS), Optimizer())
    state = train(model, next_token, batches, plan, Hardware(torch.device("cpu"), torch.float32), "curve")
    torch.set_num_threads(threads)
    losses = [row["loss"] for row in state.metrics]
    assert len(losses) == STEPS and losses[0] - losses[-1] > 0.5  # it learned
    return losses


def judged(losses: list[float], **settings) -> dict[int, Verdict]:
    """Steps (from 1) about which there was anything to say or do."""
    watch = Watch(Anomalies(**settings))
    verdicts = {step: watch.judge(step, loss, 1.0) for step, loss in enumerate(losses, start=1)}
    return {step: verdict for step, verdict in verdicts.items() if verdict != Verdict("go")}


def test_nothing_is_said_of_an_undisturbed_training(curve):
    assert judged(curve) == {}


@pytest.mark.parametrize("spike", ["log", "skip", "roll-back"])
def test_planted_spikes_are_found_and_no_others(curve, spike):
    planted = [30, 45, 110, 200, 204, 290]
    losses = [loss + (2.5 if step in planted else 0) for step, loss in enumerate(curve, start=1)]
    found = judged(losses, spike=spike)
    assert list(found) == planted
    assert {verdict.action for verdict in found.values()} == {"go" if spike == "log" else spike}
    assert f"loss {losses[199]:.4g} at step 200" in found[200].reason


def test_a_loss_that_jumps_and_stays_is_said_once_and_becomes_normal(curve):
    losses = [loss + (2.5 if step >= 200 else 0) for step, loss in enumerate(curve, start=1)]
    found = judged(losses)
    assert list(found) == [200, max(found)]
    assert "back after" in found[max(found)].reason


def test_a_flat_loss_trips_nothing():
    draw = np.random.default_rng(0)
    assert judged([2.0 + 1e-4 * abs(x) for x in draw.standard_normal(500)] + [2.02]) == {}
    assert list(judged([2.0] * 200 + [2.1])) == [201]


def test_what_is_expected_of_noise_is_its_median_and_its_deviation_whatever_the_trend():
    noise = 0.2 * np.random.default_rng(0).standard_normal(2000)
    flat = expected((5 + noise).tolist(), 2000)
    falling = expected((5 + noise - 0.01 * np.arange(2000)).tolist(), 2000)
    assert flat and flat.loss == pytest.approx(5, abs=0.2) and flat.deviation == pytest.approx(0.2, rel=0.1)
    assert falling and falling.deviation == pytest.approx(flat.deviation, rel=0.05)
    assert expected([1.0] * 24, 100) is None and expected([1.0] * 25, 100)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_what_is_not_finite_stops_by_default_and_is_named(loss, norm):
    verdict = Watch(Anomalies()).judge(7, loss, norm)
    assert verdict.action == "stop"
    assert verdict.reason == f"loss {loss:.4g}, gradient norm {norm:.4g} at step 7; lower the learning rate"
    assert Watch(Anomalies(not_finite="skip")).judge(7, loss, norm).action == "skip"
    assert Watch(Anomalies(not_finite="roll-back")).judge(7, loss, norm).action == "roll-back"


def test_after_so_many_skipped_in_a_row_training_stops():
    watch = Watch(Anomalies(not_finite="skip", most_in_a_row=2))
    actions = [watch.judge(step, loss, 1.0).action for step, loss in enumerate([math.nan, math.nan, 3.0] * 2, start=1)]
    assert actions == ["skip", "skip", "go"] * 2  # not in a row
    last = [watch.judge(step, math.nan, 1.0) for step in (7, 8, 9)]
    assert [verdict.action for verdict in last] == ["skip", "skip", "stop"]
    assert "after 2 steps in a row skipped" in last[-1].reason


def test_a_roll_back_soon_after_another_is_in_a_row_with_it():
    """The loop goes back to older checkpoints then, so it needs the count."""
    settings = Anomalies(not_finite="roll-back", most_in_a_row=2, window_steps=40)
    watch = Watch(settings)
    assert [watch.judge(s, x, 1.0).action for s, x in enumerate([3.0, math.nan, 3.0, 3.0, math.nan])][-1] == "roll-back"
    assert watch.in_a_row == 2
    assert watch.judge(6, math.nan, 1.0).action == "stop"
    watch = Watch(settings)
    watch.judge(1, math.nan, 1.0)
    for step in range(2, 12):
        watch.judge(step, 3.0, 1.0)
    assert watch.in_a_row == 0


def test_restored_it_judges_as_one_never_stopped(curve):
    losses = [loss + (2.5 if step in (60, 150, 151) else 0) for step, loss in enumerate(curve, start=1)]
    losses[99] = math.nan
    settings = Anomalies(not_finite="skip", spike="log")
    whole = Watch(settings)
    verdicts = [whole.judge(step, loss, 1.0) for step, loss in enumerate(losses, start=1)]
    for cut in (10, 60, 100, 150, 151):
        first, second = Watch(settings), Watch(settings)
        for step, loss in enumerate(losses[:cut], start=1):
            first.judge(step, loss, 1.0)
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        rest = [second.judge(step, loss, 1.0) for step, loss in enumerate(losses[cut:], start=cut + 1)]
        assert rest == verdicts[cut:]
        assert second.state() == whole.state()
