"""Accumulation changes nothing, an interrupted run ends bit for bit like an undisturbed one, faults are said."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from herd.console import HerdError
from herd.data.loader import Batch, Loader
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, document_mask, init_weights
from herd.recipe import Optimizer
from herd.recipe_compute import Compute, Saving
from herd.train import loop
from herd.train.hardware import Hardware
from herd.train.loop import Plan, train
from herd.train.objective import Objective, next_token
from herd.train.optim import Schedule

CONFIG = ModelConfig(2, 16, 2, 1, 24, 40, 8, 12, tied_embeddings=True)
FLOAT32 = Hardware(torch.device("cpu"), torch.float32)
FLOAT64 = Hardware(torch.device("cpu"), torch.float64)
STEPS = 12


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are tiny: a second thread only waits
    yield
    torch.set_num_threads(before)


def new_model(seed: int = 0, config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    init_weights(model, seed)
    return model


def batches(sequences: int = 6, steps: int = STEPS) -> Loader:
    """Text with a pattern to learn, in packed documents (token 0 begins one)."""
    stream = np.random.default_rng(0).integers(1, 8, 3000).astype(np.uint16)
    stream[np.random.default_rng(1).random(3000) < 0.1] = 0
    return Loader({"text": stream}, CONFIG.context, sequences, steps, 1, 0)


def plan(steps: int = STEPS, schedule: Schedule | None = None, **compute) -> Plan:
    """A checkpoint after every step, where there is a folder for it."""
    settings = Compute(**{"checkpoints": Saving(every_seconds=1e-9), **compute})
    return Plan(steps, schedule or Schedule(0.01, 0.001, 3, STEPS), Optimizer(), settings)


def weights(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bit for bit."""
    return [name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("micro", [1, 2, 4, 5])
def test_accumulated_micro_batches_equal_the_big_batch(micro):
    """Also where the rows do not divide evenly: every token weighs the same (not every micro-batch)."""
    whole, parts = new_model().double(), new_model().double()
    first = train(whole, next_token, batches(), plan(), FLOAT64, "whole")
    second = train(parts, next_token, batches(), plan(micro_sequences=micro), FLOAT64, "parts")
    for name, p in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], p, rtol=1e-9, atol=1e-11)
    assert [m["loss"] for m in second.metrics] == pytest.approx([m["loss"] for m in first.metrics], rel=1e-12)
    assert [m["tokens"] for m in second.metrics] == [m["tokens"] for m in first.metrics]


def test_packed_documents_train_like_separate_sequences():
    """Three documents in a row under the document mask: loss and every gradient as of three rows of their own."""

    def exact() -> Transformer:
        model = new_model().double()
        frequencies = CONFIG.rope_theta ** -(torch.arange(0, CONFIG.head_dim, 2, dtype=torch.float64) / CONFIG.head_dim)
        angles = torch.outer(torch.arange(CONFIG.context, dtype=torch.float64), frequencies)
        model._cos_TF, model._sin_TF = angles.cos(), angles.sin()  # the float32 table differs by position in 1e-8
        return model

    tokens = np.random.default_rng(3).integers(1, 40, (1, 13))
    documents = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]])
    whole, pieces = exact(), exact()
    together = next_token(whole, Batch(tokens[:, :-1], tokens[:, 1:], documents), torch.float64)
    together.backward()
    apart = torch.zeros((), dtype=torch.float64)
    for start, end in ((0, 5), (5, 8), (8, 12)):
        cut = slice(start, end)
        row = Batch(tokens[:, :-1][:, cut], tokens[:, 1:][:, cut], documents[:, cut])
        loss = next_token(pieces, row, torch.float64)
        loss.backward()
        apart += loss.detach()
    assert together.item() == pytest.approx(apart.item(), rel=1e-13)
    for (name, p), q in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-13, msg=name)


def test_training_equals_a_loop_written_out_with_torchs_parts():
    ours, theirs = new_model().double(), new_model().double()
    state = train(ours, next_token, batches(), plan(), FLOAT64, "ours")
    matrices = [p for p in theirs.parameters() if p.dim() > 1]
    norms = [p for p in theirs.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0}],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
    )
    data, schedule = batches(), plan().schedule
    for step in range(STEPS):
        batch = data[step]
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        logits = theirs(torch.from_numpy(batch.inputs), document_mask(torch.from_numpy(batch.documents)))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        row = state.metrics[step]
        assert (row["step"], row["learning_rate"], row["tokens"]) == (step + 1, schedule(step), (step + 1) * 72)
        assert (row["loss"], row["gradient_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-6)
    for name, p in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], p, rtol=1e-8, atol=1e-10)


def test_a_pattern_is_learnt():
    state = train(
        new_model(), next_token, batches(steps=60), plan(steps=60, schedule=Schedule(0.03, 0, 3, 60)), FLOAT32, "learn"
    )
    assert state.metrics[0]["loss"] > 3.5 and state.metrics[-1]["loss"] < 2.3  # 8 tokens in use of 40: ln 8 = 2.08


@pytest.mark.parametrize("micro", [64, 2])
@pytest.mark.parametrize("seed", range(3))
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, monkeypatch, seed, micro):
    """Interrupted twice, at steps drawn at random, with a checkpoint each step; weights and metrics bit for bit."""
    random = np.random.default_rng(seed)
    undisturbed = new_model()
    expected = train(undisturbed, next_token, batches(), plan(micro_sequences=micro), FLOAT32, "undisturbed")
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", float("inf"))
    reached: list[int] = []

    def interrupt(stop: int):
        def on_reach(step: int) -> None:
            reached.append(step)
            if step == stop:
                raise Killed

        return on_reach

    first, second = sorted(random.choice(np.arange(2, STEPS), 2, replace=False).tolist())
    for stop, model in ((first, new_model()), (second, new_model(9))):
        with pytest.raises(Killed):
            train(
                model,
                next_token,
                batches(),
                plan(micro_sequences=micro),
                FLOAT32,
                "run",
                tmp_path,
                range(STEPS + 1),
                interrupt(stop),
            )
    model = new_model(9)  # whatever it held before is replaced
    state = train(
        model,
        next_token,
        batches(),
        plan(micro_sequences=micro),
        FLOAT32,
        "run",
        tmp_path,
        range(STEPS + 1),
        interrupt(-1),
    )
    # a killed step was not saved yet, so it is done again and no earlier one is
    assert reached == [*range(1, first + 1), *range(first, second + 1), *range(second, STEPS + 1)]
    assert not differing(weights(model), weights(undisturbed))
    assert state.metrics == expected.metrics and state.tokens == expected.tokens


def test_the_end_of_training_is_saved_before_anything_else_can_fail(tmp_path):
    model = new_model()
    settings = plan(checkpoints=Saving(every_seconds=1e9))
    train(model, next_token, batches(), settings, FLOAT32, "run", tmp_path)
    again = new_model(9)
    train(again, next_token, batches(), settings, FLOAT32, "run", tmp_path)
    assert not differing(weights(model), weights(again))


def test_an_address_for_checkpoints_is_the_run_s_own_and_another_where_it_begins_anew(tmp_path):
    settings = plan(checkpoints=Saving(every_seconds=1e-9, to=str(tmp_path / "far")))
    folder = tmp_path / "near.work"
    train(new_model(), next_token, batches(), settings, FLOAT32, "run", folder)
    (first,) = (tmp_path / "far").iterdir()
    assert first.name.startswith("near.work-") and list(first.glob("step-*/COMPLETE"))
    (folder / "checkpoints.txt").unlink()  # as when the stage is forced
    steps = train(new_model(), next_token, batches(), settings, FLOAT32, "run", folder).metrics
    assert len(steps) == STEPS and len(list((tmp_path / "far").iterdir())) == 2


def test_a_finished_run_trains_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", float("inf"))
    model, again = new_model(), new_model(9)
    first = train(model, next_token, batches(), plan(), FLOAT32, "run", tmp_path)
    second = train(again, next_token, batches(), plan(), FLOAT32, "run", tmp_path)
    assert not differing(weights(model), weights(again)) and first.metrics == second.metrics


def test_checkpoints_and_calls_change_nothing(tmp_path, monkeypatch):
    plainly, saved, seen = new_model(), new_model(), {}
    train(plainly, next_token, batches(), plan(), FLOAT32, "plain")
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", float("inf"))
    train(
        saved,
        next_token,
        batches(),
        plan(),
        FLOAT32,
        "saved",
        tmp_path,
        [4, STEPS],
        lambda step: seen.update({step: weights(saved)}),
    )
    assert not differing(weights(plainly), weights(saved))
    assert list(seen) == [4, STEPS] and not differing(seen[STEPS], weights(saved)) and differing(seen[4], seen[STEPS])


def test_long_runs_log_means_and_resume_between_log_points(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_POINTS", 4)
    model = new_model()
    every = train(copy.deepcopy(model), next_token, batches(), plan(), FLOAT32, "coarse")
    monkeypatch.setattr(loop, "LOG_POINTS", 400)
    fine = train(copy.deepcopy(model), next_token, batches(), plan(), FLOAT32, "fine")
    assert [m["step"] for m in every.metrics] == [3, 6, 9, 12]
    assert [m["loss"] for m in every.metrics] == pytest.approx(
        np.reshape([m["loss"] for m in fine.metrics], (4, 3)).mean(1), rel=1e-5
    )
    assert every.tokens == fine.tokens == STEPS * 72
    monkeypatch.setattr(loop, "LOG_POINTS", 4)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", float("inf"))

    def kill(_: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(copy.deepcopy(model), next_token, batches(), plan(), FLOAT32, "run", tmp_path, [8], kill)
    assert train(new_model(9), next_token, batches(), plan(), FLOAT32, "run", tmp_path).metrics == every.metrics


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, monkeypatch, poison):
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", float("inf"))
    calls = []

    def poisoned(model: Transformer, hidden: torch.Tensor, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
        calls.append(1)
        return next_token.loss(model, hidden, batch, dtype) * (poison if len(calls) == 5 else 1.0)

    objective = Objective(poisoned)

    with pytest.raises(HerdError, match=r"^toy: loss (nan|inf), gradient norm nan at step 5; lower the learning rate$"):
        train(new_model(), objective, batches(), plan(), FLOAT32, "toy", tmp_path)
    model = new_model(9)
    state = train(model, next_token, batches(), plan(), FLOAT32, "toy", tmp_path)  # goes on from step 4
    assert len(state.metrics) == STEPS and all(p.isfinite().all() for p in model.parameters())
