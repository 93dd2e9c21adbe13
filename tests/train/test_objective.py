"""What a step of post-training minimises, against transformers and against formulas written out over full logits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from herd.model.config import ModelConfig
from herd.model.formats.huggingface import huggingface_name, to_halves, write_huggingface
from herd.model.transformer import Transformer
from herd.recipe import Optimizer
from herd.recipe_compute import Compute
from herd.train.batches import IGNORED, Row, dialog_batch, preference_batch, ranked_batch
from herd.train.hardware import Hardware
from herd.train.loop import Plan, train_step
from herd.train.network import Whole
from herd.train.objective import RewardModel, dialog_tokens, preference, reward, token_logprobs
from herd.train.optim import Schedule

CONFIG = ModelConfig(2, 32, 4, 2, 48, 60, 8, 64, tied_embeddings=True)
BETA, NLL = 0.3, 0.2
FLOAT64 = Hardware(torch.device("cpu"), torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exact(monkeypatch):
    """All in float64: norms and rotation cast to float32 on purpose, which is lifted here."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def new_model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return model


def new_judge() -> RewardModel:
    model = RewardModel(new_model())
    torch.nn.init.normal_(model.score.weight)
    return model.double()


def some_rows(count: int, seed: int = 0) -> list[Row]:
    """A prompt, then tokens that are trained with gaps; the last one, and some others, are not scored."""
    random, rows = np.random.default_rng(seed), []
    for _ in range(count):
        prompt, answer = random.integers(2, 6), random.integers(4, 16)
        trained = [False] * prompt + [True] + list(random.random(answer - 1) < 0.7)
        scored = [bool(random.random() < 0.7) for _ in trained]
        scored[-1] = False
        scored[prompt] = True
        rows.append(Row(random.integers(0, 60, prompt + answer).tolist(), trained, scored))
    return rows


def some_pairs(count: int) -> tuple[list[tuple[Row, Row]], np.ndarray]:
    rows = some_rows(2 * count, seed=1)
    reference = np.random.default_rng(2).normal(-30, 5, (count, 2)).astype(np.float32)
    return list(zip(rows[::2], rows[1::2], strict=True)), reference


def some_ranks(count: int, responses: int = 3) -> tuple[list[list[int]], list[list[list[int]]]]:
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 60, random.integers(2, 9)).tolist() for _ in range(count)]
    ranked = [[random.integers(0, 60, random.integers(1, 7)).tolist() for _ in range(responses)] for _ in range(count)]
    return prompts, ranked


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_logprobs(model: Transformer, row: Row) -> torch.Tensor:
    """Of a row alone: log-probability of each token but the first, by log_softmax of all logits."""
    ids = torch.tensor([row.ids])
    return F.log_softmax(model(ids)[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]


def mask(marks) -> torch.Tensor:
    return torch.tensor(list(marks)[1:])


# ---- dialogs ----


def test_the_loss_of_dialogs_and_its_gradients_are_those_of_transformers(tmp_path):
    model, rows = new_model(), some_rows(5)
    write_huggingface(tmp_path, CONFIG, model.state_dict(), None, torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[7] * (width - len(row.ids))] for row in rows])
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        trained = torch.tensor(list(row.trained))
        labels[index, : len(trained)][trained] = torch.tensor(row.ids)[trained]
    expected = theirs(input_ids=ids, labels=labels).loss
    expected.backward()
    batch = dialog_batch(rows)
    loss = dialog_tokens(model, batch, torch.float32) / batch.count
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = dict(theirs.named_parameters())
    for name, gradient in gradients(model, loss).items():
        heads = {"wq": CONFIG.heads, "wk": CONFIG.kv_heads}.get(name.split(".")[-2])
        gradient = to_halves(gradient, heads) if heads else gradient
        torch.testing.assert_close(gradient, found[huggingface_name(name)].grad, rtol=1e-3, atol=2e-6, msg=name)


def test_padding_changes_neither_loss_nor_gradients(exact):
    model, rows = new_model().double(), some_rows(4)
    batch = dialog_batch(rows)
    together = dialog_tokens(model, batch, torch.float64)
    expected = gradients(model, together)
    alone = [dialog_tokens(model, dialog_batch([row]), torch.float64) for row in rows]
    torch.testing.assert_close(torch.stack(alone).sum(), together, rtol=1e-12, atol=0)
    found = gradients(model, torch.stack(alone).sum())
    for index, row in enumerate(rows):  # whatever stands there
        batch.inputs[index, len(row.ids) - 1 :] = 59
    again = gradients(model, dialog_tokens(model, batch, torch.float64))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(again[name], gradient, rtol=1e-10, atol=1e-12)


def test_a_part_is_as_long_as_its_longest_trained_row():
    rows = [Row(list(range(n)), [False, True] + [False] * (n - 2)) for n in (9, 4)] + [Row([1, 2, 3], [True] * 3)]
    parts = list(dialog_batch(rows).split(1))
    assert [part.inputs.shape for part in parts] == [(1, 1), (1, 1), (1, 2)]
    assert sum(part.count for part in parts) == dialog_batch(rows).count == 4  # nothing comes before a first token


# ---- accumulation ----


def cases() -> dict:
    pairs, reference = some_pairs(5)
    prompts, ranked = some_ranks(5)
    return {
        "dialogs": (lambda: new_model().double(), dialog_tokens, dialog_batch(some_rows(5))),
        "pairs": (lambda: new_model().double(), preference(BETA, NLL), preference_batch(pairs, reference)),
        "ranked": (new_judge, reward, ranked_batch(prompts, ranked, 0)),
    }


@pytest.mark.parametrize("kind", ["dialogs", "pairs", "ranked"])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(exact, kind, micro):
    def step(rows: int) -> tuple[float, dict[str, torch.Tensor]]:
        make, objective, batch = cases()[kind]
        model = make()
        network = Whole(model, FLOAT64, Compute(micro_sequences=rows))
        plan = Plan(1, Schedule(1.0, 1.0, 1, 1), Optimizer(clip_norm=1e9))
        loss, _, count = train_step(network, objective, batch, plan)
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        assert count == batch.count
        return loss, {name: p.detach() for name, p in model.named_parameters()}

    whole, parts = step(64), step(micro)
    assert parts[0] == pytest.approx(whole[0], rel=1e-12)
    for name, weight in whole[1].items():
        torch.testing.assert_close(parts[1][name], weight, rtol=1e-12, atol=1e-12)


# ---- preference ----


def test_log_probabilities_are_the_log_softmax_of_all_logits(exact):
    model, rows = new_model().double(), some_rows(4)
    batch = dialog_batch(rows)
    found, targets = token_logprobs(model, batch, torch.float64)
    assert targets.shape == found.shape
    assert (found[targets == IGNORED] == 0).all()
    for index, row in enumerate(rows):
        expected = plain_logprobs(model, row) * mask(row.trained)
        torch.testing.assert_close(found[index, : len(expected)], expected, rtol=1e-12, atol=0)


def test_preference_is_dpos_formula_with_the_nll_of_the_chosen_answer(exact):
    """-log sigmoid(beta ((c - rc) - (r - rr))) + w NLL(chosen); sums over scored tokens, NLL over trained ones."""
    model = new_model().double()
    pairs, reference = some_pairs(4)
    loss = preference(BETA, NLL)(model, preference_batch(pairs, reference), torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for (chosen, rejected), (chosen_ref, rejected_ref) in zip(pairs, reference.astype(float), strict=True):
        assert chosen.scored is not None and rejected.scored is not None
        c, r = plain_logprobs(model, chosen), plain_logprobs(model, rejected)
        c_sum = (c * mask(chosen.scored) * mask(chosen.trained)).sum()
        r_sum = (r * mask(rejected.scored) * mask(rejected.trained)).sum()
        nll = -(c * mask(chosen.trained)).sum() / mask(chosen.trained).sum()
        margin = BETA * ((c_sum - chosen_ref) - (r_sum - rejected_ref))
        expected = expected - torch.log(torch.sigmoid(margin)) + NLL * nll
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    found, wanted = gradients(model, loss), gradients(model, expected)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11)


def test_a_model_that_is_its_own_reference_starts_at_log_two(exact):
    model = new_model().double()
    pairs, zeros = some_pairs(3)
    batch = preference_batch(pairs, zeros)
    with torch.no_grad():
        logps, _ = token_logprobs(model, batch, torch.float64)
        own = (logps * torch.from_numpy(batch.scored)).sum(-1).view(-1, 2).numpy()
    loss = preference(BETA, 0.0)(model, preference_batch(pairs, own), torch.float64)
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-12)


def test_formatting_tokens_get_no_gradient_from_the_preference(exact):
    """Seen at the logits: without NLL only scored tokens are pushed; with it the chosen answer's formatting too."""
    model = new_model().double()
    pairs, reference = some_pairs(3)
    batch = preference_batch(pairs, reference)
    trained = batch.targets != IGNORED
    scored = batch.scored[trained]
    of_chosen = (np.arange(len(batch.inputs)) % 2 == 0)[:, None].repeat(trained.shape[1], 1)[trained]
    assert (trained & ~batch.scored).any() and scored.any()
    for weight, expected in ((0.0, scored), (NLL, scored | of_chosen)):
        seen: list[torch.Tensor] = []

        def keep(module, inputs, logits, seen=seen):
            logits.retain_grad()
            seen.append(logits)

        handle = model.output.register_forward_hook(keep)
        preference(BETA, weight)(model, batch, torch.float64).backward()
        handle.remove()
        assert seen[0].grad is not None
        pushed = (seen[0].grad != 0).any(-1).numpy()
        assert (pushed == expected).all()


# ---- reward ----


def test_reward_is_the_mean_over_ordered_pairs_of_the_row_as_it_stands(exact):
    """Three ranked responses make three pairs; the score is read off a plain forward pass of each row."""
    model = new_judge()
    prompts, ranked = some_ranks(4)
    batch = ranked_batch(prompts, ranked, seed=5)
    expected = torch.zeros((), dtype=torch.float64)
    for row, ends in zip(batch.inputs, batch.ends, strict=True):
        length = ends.max() + 1
        states = model.body.hidden(torch.from_numpy(row[None, :length]))[0]
        first, second, third = (states[end] @ model.score.weight[0] for end in ends)
        pairs = [first - second, first - third, second - third]
        expected = expected - torch.log(torch.sigmoid(torch.stack(pairs))).mean()
    loss = reward(model, batch, torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    found, wanted = gradients(model, loss), gradients(model, expected)
    assert found["score.weight"].abs().sum() > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11)


def test_a_new_reward_model_prefers_nothing():
    prompts, ranked = some_ranks(3, responses=2)
    model = RewardModel(new_model())
    assert reward(model, ranked_batch(prompts, ranked, 0), torch.float32).item() == pytest.approx(3 * math.log(2))


def test_ranked_responses_stand_in_an_order_drawn_from_the_seed():
    prompts, ranked = some_ranks(40)
    batch, again, other = (ranked_batch(prompts, ranked, seed) for seed in (1, 1, 2))
    assert (batch.inputs == again.inputs).all() and (batch.ends == again.ends).all()
    assert (batch.ends != other.ends).any()
    orders = set()
    for row, ends, prompt, responses in zip(batch.inputs, batch.ends, prompts, ranked, strict=True):
        assert row[: len(prompt)].tolist() == prompt
        for end, response in zip(ends, responses, strict=True):
            assert row[end + 1 - len(response) : end + 1].tolist() == response
        assert ends.max() + 1 == len(prompt) + sum(map(len, responses))
        orders.add(tuple(np.argsort(ends)))
    assert len(orders) == 6  # every order occurs, so place says nothing of rank


@pytest.mark.parametrize(("tokens", "padded"), [(50, 49), (130, 256), (257, 256), (258, 384), (700, 768)])
def test_rows_are_padded_to_few_lengths(tokens, padded):
    batch = dialog_batch([Row([5] * tokens, [True] * tokens), Row([6] * 20, [True] * 20)])
    assert batch.inputs.shape == batch.targets.shape == (2, padded)
    assert batch.count == tokens - 1 + 19


def test_a_micro_batch_has_at_most_so_many_tokens_and_every_row_comes_once():
    rows = [Row([n] * n, [True] * n) for n in (700, 40, 230, 200, 600, 220)]
    batch = replace(dialog_batch(rows), micro_tokens=704)
    parts = [sorted(part.inputs[:, 0].tolist()) for part in batch.split(64)]
    assert parts == [[40, 200], [220, 230], [600], [700]]  # 2 * 256 tokens twice, then 640 and 768
    assert [len(part.inputs) for part in batch.split(2)] == [2, 2, 1, 1]
    assert sum(part.count for part in batch.split(64)) == batch.count
