"""The encoder that is distilled from judgments: what it learns, that it learns the same again, and its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from herd.console import HerdError
from herd.data.encoder import Encoder, EncoderConfig, train_encoder, word_ids
from herd.data.held_out import separation
from herd.data.linear import hash_share
from herd.data.words import Tokens, tokens

LIBRARY = Path(os.__file__).parent
SMALL = EncoderConfig(buckets=1 << 12, width=64, layers=2, heads=4, words=64)


@cache
def pages() -> dict[str, tuple[Tokens, bool]]:
    """Stretches of the standard library, and whether most of each is prose, as a judge would say."""
    import pydoc_data.topics

    found = {f"topic/{name}": (tokens(text[:600]), True) for name, text in pydoc_data.topics.topics.items()}
    for file in sorted(LIBRARY.glob("*.py")):
        text = file.read_text("utf-8", "replace")
        if len(text) > 4_000:
            found[f"code/{file.stem}"] = (tokens(text[-600:]), False)
    return found


def halves() -> tuple[list[str], list[str]]:
    keys = sorted(pages())
    return [key for key in keys if hash_share(key, 1) < 0.6], [key for key in keys if hash_share(key, 1) >= 0.6]


def encoder_of(keys: list[str], labels: list[bool], seed: int = 3) -> Encoder:
    return train_encoder([pages()[key][0] for key in keys], labels, seed, SMALL, epochs=4)


def auroc(encoder: Encoder, keys: list[str]) -> float:
    truth = np.array([pages()[key][1] for key in keys])
    return separation(encoder.score_batch([pages()[key][0] for key in keys]), truth, keys, 1).auroc


def test_it_recovers_unseen_judgments_and_shuffled_ones_teach_nothing() -> None:
    known, unseen = halves()
    labels = [pages()[key][1] for key in known]
    assert auroc(encoder_of(known, labels), unseen) >= 0.9
    values = []
    for seed in range(2):
        shuffled = [labels[index] for index in np.random.default_rng(seed).permutation(len(labels))]
        values.append(auroc(encoder_of(known, shuffled, seed), unseen))
    assert 0.2 < float(np.mean(values)) < 0.8


def test_equal_labels_give_equal_weights_whatever_ran_before() -> None:
    known, _ = halves()
    labels = [pages()[key][1] for key in known]
    first = encoder_of(known[:60] + known[-60:], labels[:60] + labels[-60:])
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    torch.set_num_threads(2)
    try:
        state = torch.get_rng_state()
        second = encoder_of(known[:60] + known[-60:], labels[:60] + labels[-60:])
        assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))


def test_a_score_does_not_depend_on_the_batch() -> None:
    known, unseen = halves()
    encoder = encoder_of(known[:40] + known[-40:], [pages()[key][1] for key in known[:40] + known[-40:]])
    documents = [pages()[key][0] for key in unseen] + [tokens(""), tokens("one"), tokens("word " * 100_000)]
    together = encoder.score_batch(documents)
    alone = np.array([encoder.score_batch([document])[0] for document in documents])
    assert np.allclose(together, alone, atol=1e-5) and ((together > 0) & (together < 1)).all()
    assert encoder.score_batch([]).shape == (0,)


def test_long_documents_are_read_at_the_start_and_in_the_middle() -> None:
    words = [f"w{index}" for index in range(1_000)]
    ids = word_ids(tokens(" ".join(words)), SMALL)
    assert len(ids) == 64 and ids.min() >= 1 and ids.max() < SMALL.buckets
    every = word_ids(tokens(" ".join(words)), EncoderConfig(SMALL.buckets, words=1_000))
    assert np.array_equal(ids[:48], every[:48]) and np.array_equal(ids[48:], every[492:508])


def test_a_trainer_that_is_given_does_the_training() -> None:
    known, _ = halves()
    keys = known[:20] + known[-20:]
    seen: list[float] = []

    def plain_sgd(module: nn.Module, loss_of: Callable[[int], Tensor], steps: int) -> None:
        optimizer = torch.optim.SGD(module.parameters(), 0.03)
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(step)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())

    train_encoder([pages()[key][0] for key in keys], [pages()[key][1] for key in keys], 1, SMALL, 20, 40, plain_sgd)
    assert len(seen) == 20 and np.mean(seen[-4:]) < np.mean(seen[:4])


def test_saved_encoders_score_the_same_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    known, unseen = halves()
    encoder = encoder_of(known[:20] + known[-20:], [pages()[key][1] for key in known[:20] + known[-20:]])
    encoder.save(tmp_path, "encoder-quality")
    documents = [pages()[key][0] for key in unseen]
    assert np.array_equal(
        Encoder.load(tmp_path, "encoder-quality").score_batch(documents), encoder.score_batch(documents)
    )
    facts = json.loads((tmp_path / "encoder-quality.json").read_text())
    for change in ({"width": 32}, {"layers": 10**9}, {"heads": 5}, {"heads": 0}, {"words": "many"}):
        (tmp_path / "encoder-quality.json").write_text(json.dumps(facts | change))
        with pytest.raises(HerdError, match="encoder-quality"):
            Encoder.load(tmp_path, "encoder-quality")
    with pytest.raises(HerdError, match="nowhere"):
        Encoder.load(tmp_path, "nowhere")


def test_labels_of_one_kind_are_an_error() -> None:
    known, _ = halves()
    with pytest.raises(HerdError, match="5 of 5 labels are yes"):
        train_encoder([pages()[key][0] for key in known[:5]], [True] * 5, 1, SMALL)


def test_the_rest_of_the_room_needs_no_torch() -> None:
    code = "import sys, herd.data.quality, herd.data.topics, herd.data.technical; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
