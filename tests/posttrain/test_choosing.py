"""Choosing among samples by hand, and the steps of a round on samples written by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from herd.artifact import Artifact, file_sha256
from herd.evaluate.answers import read_questions
from herd.model.dialog import Dialog, Message, encode, from_openai, prompt, to_openai
from herd.model.formats.native import build, load_native
from herd.model.formats.weights import read_tensors
from herd.posttrain import dpo as dpo_stage
from herd.posttrain import rejection as rejection_stage
from herd.posttrain import tuning
from herd.posttrain.dpo import DpoSettings, PreferenceBatches, dpo, reference_logprobs
from herd.posttrain.rejection import RejectionSettings, best_answers, rejection
from herd.posttrain.reward import (
    Pair,
    PairBatches,
    RewardSettings,
    pairs_of,
    score,
    spread,
    train_reward,
    wanted,
)
from herd.posttrain.sft import SftSettings, sft
from herd.posttrain.tuning import DialogBatches, training_rows, tune
from herd.recipe import Compute
from herd.recipe_compute import Saving
from herd.train import loop
from herd.train.batches import IGNORED, Row
from herd.train.hardware import Hardware
from herd.train.network import Whole
from herd.train.objective import RewardModel

FLOAT32 = Hardware(torch.device("cpu"), torch.float32)
WHERE: dict[str, Any] = {
    "seed": 1,
    "member": "tiny",
    "threads": 1,
    "micro_tokens": 4096,
    "hardware": {"device": "cpu"},
    "compute": Compute(device="cpu", dtype="float32"),
}
REWARD = RewardSettings(learning_rate=1e-3, pairs=100, batch_pairs=4, **WHERE)
REJECTION = RejectionSettings(learning_rate=1e-3, context_tokens=4096, **WHERE)
DPO = DpoSettings(learning_rate=1e-3, beta=0.1, nll_weight=0.2, pairs=12, batch_pairs=4, **WHERE)
SFT = SftSettings(learning_rate=1e-3, epochs=2, batch_dialogs=2, context_tokens=4096, **WHERE)


def row(question: str, right: bool, *ids: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"question": question, "prompt": messages, "ids": list(ids), "right": right}


# ---- by hand ----


def test_the_best_answer_is_the_right_one_with_the_highest_score():
    rows = [
        *(row("a", False, 1), row("a", True, 2), row("a", True, 3), row("a", True, 4)),
        *(row("b", False, 5), row("b", False, 6)),
        *(row("c", True, 7), row("c", False, 8), row("c", False, 9)),
        *(row("d", True, 10), row("d", False, 11)),
    ]
    scores = [9.0, 0.1, 0.3, 0.2, 5.0, 6.0, -1.0, 4.0, 4.0, 0.0, 1.0]
    # three of four right: once; none right: left out; one of three: twice; half of them: once
    assert [best["ids"][0] for best in best_answers(rows, scores)] == [3, 7, 7, 10]


def test_of_questions_that_are_always_answered_right_few_are_trained_on():
    rows = [row(str(question), True, 10 * question + sample) for question in range(9) for sample in range(2)]
    assert [best["ids"][0] for best in best_answers(rows, [0.0, 1.0] * 9)] == [1, 31, 61]


def test_pairs_are_different_answers_of_one_question_each_used_once(tokenizer):
    rows = [
        *(row("a", True, 1), row("a", True, 1), row("a", True, 2), row("a", False, 3), row("a", False, 4)),
        *(row("a", False, 5), row("b", True, 6), row("c", False, 7)),
    ]
    pairs = pairs_of(rows, tokenizer, 0)
    assert len(pairs) == 2 and {pair.question for pair in pairs} == {"a"}
    assert {tuple(pair.right) for pair in pairs} == {(1,), (2,)}
    assert len({tuple(pair.wrong) for pair in pairs}) == 2 and all(pair.wrong[0] in (3, 4, 5) for pair in pairs)
    assert pairs[0].prompt == prompt(Dialog((Message("user", "a"),)), tokenizer)
    assert pairs_of(rows, tokenizer, 0) == pairs
    assert len({str(pairs_of(rows, tokenizer, seed)) for seed in range(10)}) > 1


def test_a_limit_on_pairs_takes_one_of_every_question_first():
    pairs = [Pair(question, [], [index], []) for index, question in enumerate("aaabbc")]
    assert [pair.right[0] for pair in spread(pairs, 4)] == [0, 3, 5, 1]
    assert [pair.right[0] for pair in spread(pairs, 99)] == [0, 3, 5, 1, 4, 2]


@pytest.mark.parametrize("mixed", [False, True])
def test_an_epoch_has_every_dialog_once_and_each_epoch_another_order(mixed):
    rows = [Row([token] * (2 + token % 5), [True] * (2 + token % 5)) for token in range(1, 12)]
    batches = DialogBatches(rows, 3, 0, 4096, mixed)
    assert len(batches) == 4
    lengths = [{len(rows[token - 1].ids) for token in batches[step].inputs[:, 0]} for step in range(4)]
    assert max(map(len, lengths)) == (3 if mixed else 2)  # without mixing, neighbours in a line of lengths
    epochs = [[sorted(batches[step].inputs[:, 0].tolist()) for step in range(e * 4, e * 4 + 4)] for e in range(3)]
    for epoch in epochs:
        assert sorted(token for batch in epoch for token in batch) == list(range(1, 12))
    assert len({str(epoch) for epoch in epochs}) > 1
    again = DialogBatches(rows, 3, 0, 4096, mixed)
    assert all((again[step].inputs == batches[step].inputs).all() for step in range(8))


def test_every_pair_comes_once_with_its_own_reference():
    pairs = [Pair(str(i), [50 + i], [i, i], [20 + i]) for i in range(7)]
    batches = PairBatches(pairs, 3, 0, 4096)
    assert sorted(batches[s].inputs[r, 0] for s in range(3) for r in range(len(batches[s].inputs))) == list(
        range(50, 57)
    )
    rows = [(Row([1, i, 2], [False, True, True]), Row([1, 30 + i], [False, True])) for i in range(7)]
    reference = np.stack([np.arange(7), 100 + np.arange(7)], 1).astype(np.float32)
    preferences, seen = PreferenceBatches(rows, reference, 3, 0, 4096), []
    for step in range(len(preferences)):
        batch = preferences[step]
        for index in range(batch.count):
            chosen, rejected = batch.targets[2 * index], batch.targets[2 * index + 1]
            assert batch.reference[2 * index : 2 * index + 2].tolist() == [chosen[0], chosen[0] + 100]
            assert rejected.tolist() == [30 + chosen[0], IGNORED]
            seen.append(int(chosen[0]))
    assert sorted(seen) == list(range(7))


def test_dialogs_longer_than_the_context_are_left_out_and_counted(tokenizer, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(tuning, "warn", said.append)
    short = Dialog((Message("user", "a"), Message("assistant", "b")))
    nothing = Dialog((Message("user", "a"), Message("assistant", "b", trained=False)))
    rows = training_rows([short, short.then(Message("user", "c" * 99)), nothing], tokenizer, 60)
    assert [list(one.ids) for one in rows] == [encode(short, tokenizer).ids]
    assert said and said[0].startswith("2 of 3 dialogs")


# ---- the steps ----


@pytest.fixture(scope="module")
def samples(bench, asked, tokenizer) -> Artifact:
    """Two right and two wrong answers to each question, one of them twice; wrong is also an answer in words."""
    call, end = tokenizer.call_id, tokenizer.special["<|im_end|>"]
    rows = []
    for question in read_questions(asked.file("questions.jsonl")):
        if question.split != "sample" or len(question.code) != 1:
            continue
        start = to_openai(Dialog((Message("system", "Table df"), Message("user", question.text))))
        for text, right in ((question.code[0], 1), (f"({question.code[0]})", 1), ("df.x", 0), ("df.x", 0), ("no", 0)):
            ids = [*([] if text == "no" else [call]), *tokenizer.encode(text), end]
            rows.append({"question": question.id, "prompt": start, "ids": ids, "right": bool(right)})
    assert len(rows) >= 8 * 5

    def write(out):
        (out.folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        out.write_json("lineage.json", {"generated by": "sft-tiny"})

    return bench.make("samples", write)


@pytest.fixture(scope="module")
def judged(bench, adopted, samples) -> Artifact:
    return bench.make("reward", lambda out: train_reward(REWARD, {"adopt": adopted, "samples": samples}, out))


def test_scores_are_those_of_each_answer_alone_behind_its_prompt(adopted, samples, tokenizer):
    model = RewardModel(load_native(adopted.path))
    torch.nn.init.normal_(model.score.weight)
    rows = samples.json_lines("samples.jsonl")
    keys = [(one["question"], tuple(one["ids"])) for one in rows[:-1]]
    found = score(model, rows, keys, tokenizer, torch.float32)
    with torch.inference_mode():
        for one, value in zip(rows[:-1], found[:-1], strict=True):
            ids = [*prompt(from_openai(one["prompt"]), tokenizer), *one["ids"]]
            expected = model.body.hidden(torch.tensor([ids]))[0, -1] @ model.score.weight[0]
            assert value == pytest.approx(expected.item(), abs=1e-4)
    assert found[2] == found[3] and len(set(found)) > 10
    assert (found[-1] is None) == ((rows[-1]["question"], tuple(rows[-1]["ids"])) not in keys)


def test_only_what_a_score_decides_is_scored():
    rows = [row("a", True, 1), row("a", True, 1), row("a", False, 2), row("b", True, 3), row("b", True, 4)]
    rows += [row("b", False, 5), row("c", True, 6), row("c", False, 7)]
    assert wanted(rows, []) == [("b", (3,)), ("b", (4,))]  # of one right answer there is nothing to choose
    pair = Pair("c", [0], [6], [7])
    assert wanted(rows, [pair])[2:] == [("c", (6,)), ("c", (7,))]


def test_the_reward_step_keeps_questions_apart_for_measuring(judged, samples):
    rows = samples.json_lines("samples.jsonl")
    questions = len({one["question"] for one in rows})
    kept = -(-questions // 4)
    facts = judged.json("training.json")
    assert (facts["pairs"], facts["held_out_pairs"]) == (2 * (questions - kept), 2 * kept)
    assert len(judged.json("scores.json")) == len(rows)
    claim = judged.json("claims.json")
    assert [one["id"] for one in claim] == ["tiny.reward.pairs"] and claim[0]["n"] == 2 * kept


def test_the_rejection_step_trains_on_the_best_answers_and_some_dialogs(bench, adopted, asked, samples, judged):
    inputs = {"adopt": adopted, "model": adopted, "questions": asked, "samples": samples, "reward": judged}
    once, again = (bench.make("rejection", lambda out: rejection(REJECTION, inputs, out)) for _ in range(2))
    assert once.content == again.content
    facts = once.json("training.json")
    questions = len({one["question"] for one in samples.json_lines("samples.jsonl")})
    assert facts["best_answers"] == 2 * questions  # two of five were right: each comes twice
    assert facts["replayed"] >= 1 and facts["rows"] == facts["best_answers"] + facts["replayed"]
    losses = [one["loss"] for one in once.json_lines("metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_the_rejection_step_keeps_the_mean_of_the_weights_before_and_after(
    bench, adopted, asked, samples, judged, monkeypatch
):
    tuned: dict[str, torch.Tensor] = {}

    def watched(model, *arguments):
        state = tune(model, *arguments)
        tuned.update({name: value.clone() for name, value in model.state_dict().items()})
        return state

    monkeypatch.setattr(rejection_stage, "tune", watched)
    inputs = {"adopt": adopted, "model": adopted, "questions": asked, "samples": samples, "reward": judged}
    made = bench.make("rejection", lambda out: rejection(REJECTION, inputs, out))
    before, kept = (read_tensors(a.path / "model.safetensors") for a in (adopted, made))
    assert any(not torch.equal(before[name], tuned[name]) for name in before)
    for name in before:
        torch.testing.assert_close(kept[name], (before[name] + tuned[name]) / 2)


def test_preference_moves_right_above_wrong_and_the_mean_is_taken_where_it_is_no_worse(
    bench, adopted, asked, samples, tokenizer, monkeypatch
):
    inputs = {"adopt": adopted, "model": adopted, "questions": asked, "samples": samples}
    real = bench.make("dpo", lambda out: dpo(DPO, inputs, out))
    assert real.json("training.json")["averaged"] and real.json("training.json")["dev"] == {"averaged": 0, "tuned": 0}
    scores = iter([0.5, 0.4])
    monkeypatch.setattr(dpo_stage, "_dev_score", lambda *_: next(scores))
    kept = bench.make("dpo", lambda out: dpo(DPO, inputs, out))
    assert not kept.json("training.json")["averaged"]
    before, mean, after = (read_tensors(a.path / "model.safetensors") for a in (adopted, real, kept))
    for name in before:
        torch.testing.assert_close(mean[name], (before[name] + after[name]) / 2)
        assert not torch.equal(before[name], after[name])
    drift = {claim["id"]: claim["value"] for claim in kept.json("claims.json")}
    assert drift["tiny.dpo.chosen.drift"] > drift["tiny.dpo.rejected.drift"]
    config = load_native(adopted.path).config
    found = pairs_of(samples.json_lines("samples.jsonl"), tokenizer, 0)[:4]
    rows = [(dpo_stage._row(p.prompt, p.right, tokenizer), dpo_stage._row(p.prompt, p.wrong, tokenizer)) for p in found]
    gaps = [float(np.diff(reference_logprobs(build(config, w), rows, FLOAT32)).mean()) for w in (before, after)]
    assert gaps[1] < gaps[0]  # rejected minus chosen


def test_call_tag_and_end_token_are_not_scored(tokenizer):
    end = tokenizer.special["<|im_end|>"]
    one = dpo_stage._row([5, end, 6], [tokenizer.call_id, 40, 41, end], tokenizer)
    assert one.scored is not None
    assert list(one.trained) == [False] * 3 + [True] * 4
    assert list(one.scored) == [False] * 4 + [True, True, False]


class Killed(Exception):
    pass


def test_a_killed_fine_tuning_goes_on_and_ends_with_the_same_weights(bench, adopted, asked, monkeypatch):
    def chats(out):
        lines = [[{"role": "user", "content": f"a\u2028{i}"}, {"role": "assistant", "content": "b"}] for i in range(3)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (out.folder / "train.jsonl").write_text(text, encoding="utf-8")

    inputs = {"adopt": adopted, "questions": asked, "chats": bench.make("chats", chats)}
    undisturbed, broken, resumed = bench.draft("whole"), bench.draft("broken"), bench.draft("resumed", work="broken")
    sft(SFT, inputs, undisturbed)
    saving = SFT.compute.model_copy(update={"checkpoints": Saving(every_seconds=1e-9)})
    settings = SFT.model_copy(update={"compute": saving})
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", float("inf"))
    read, taken = Whole.read, []

    def killed_at_the_fourth(network, batches, step):
        taken.append(step)
        if len(taken) == 4:
            raise Killed
        return read(network, batches, step)

    monkeypatch.setattr(Whole, "read", killed_at_the_fourth)
    with pytest.raises(Killed):
        sft(settings, inputs, broken)
    sft(settings, inputs, resumed)
    assert taken == [0, 1, 2, 3, *range(3, 10)]  # nine rows in twos, two epochs
    for name in ("model.safetensors", "metrics.jsonl", "training.json"):
        assert file_sha256(resumed.folder / name) == file_sha256(undisturbed.folder / name), name
