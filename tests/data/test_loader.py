"""Batches are a pure function of seed and step; windows are used evenly; kinds stay apart and keep their weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.console import HerdError
from herd.data.loader import Loader, derive_seed

BOS = 0


def streams(**lengths: int) -> dict[str, np.ndarray]:
    """Streams whose tokens say where they stand: kind i holds i * 10,000 + 1, + 2, ...; never a begin-of-text."""
    return {kind: np.arange(1, n + 1, dtype=np.uint32) + 10_000 * i for i, (kind, n) in enumerate(lengths.items())}


def same(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in ((a.inputs, b.inputs), (a.targets, b.targets), (a.documents, b.documents))
    )


def test_a_batch_depends_on_its_step_alone():
    first, second = (Loader(streams(code=500, prose=900), 7, 3, 40, 5, BOS) for _ in range(2))
    forwards = [first[step] for step in range(40)]
    order = np.random.default_rng(0).permutation(40)
    assert all(same(second[int(step)], forwards[step]) for step in order)
    assert same(first[3], forwards[3])  # and asking again changes nothing


def test_seeds_and_only_they_change_the_order():
    runs = [
        [Loader(streams(code=500, prose=900), 7, 3, 20, seed, BOS)[i].inputs.tolist() for i in range(20)]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert (
        len(
            {
                derive_seed(seed, *names)
                for seed in (1, 2)
                for names in (("order",), ("init",), ("order", 1), ("ord", "er"))
            }
        )
        == 8
    )
    assert derive_seed(1, "a") == derive_seed(1, "a") < 2**48


def test_a_resumed_run_may_be_planned_longer_without_losing_its_past():
    """The order of windows does not depend on the number of steps where there is one kind."""
    short, long = (Loader(streams(code=500), 7, 3, steps, 5, BOS) for steps in (10, 20))
    assert all(same(short[i], long[i]) for i in range(10))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(10, 120), st.integers(0, 2**48))
def test_every_window_is_used_once_before_any_is_used_again(context, sequences, length, seed):
    windows = (length - 1) // context
    epochs = 3
    steps = -(-windows * epochs // sequences)
    loader = Loader(streams(code=length), context, sequences, steps, seed, BOS)
    starts = np.concatenate([loader[step].inputs[:, 0] for step in range(steps)])[: windows * epochs]
    expected = [1 + i * context for i in range(windows)]
    for epoch in range(epochs):
        assert sorted(starts[epoch * windows : (epoch + 1) * windows]) == expected
    if windows > 20:
        assert list(starts[:windows]) != list(starts[windows : 2 * windows])  # each epoch has an order of its own


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(31, 200), st.integers(31, 200), st.integers(0, 1000))
def test_targets_follow_inputs_and_rows_never_cross_streams(context, sequences, code, prose, seed):
    loader = Loader(streams(code=code, prose=prose), context, sequences, 4, seed, BOS)
    for step in range(4):
        batch = loader[step]
        assert batch.inputs.shape == batch.targets.shape == batch.documents.shape == (sequences, context)
        assert batch.inputs.dtype == batch.targets.dtype == np.int64
        assert np.array_equal(batch.targets, batch.inputs + 1)  # consecutive in one stream
        assert np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        assert all(len(set(row // 10_000)) == 1 for row in batch.targets)


def shares(weights: dict[str, float] | None) -> dict[str, float]:
    loader = Loader(streams(code=2000, prose=6000), 4, 10, 1000, 3, BOS, weights)
    kinds = np.concatenate([loader[step].inputs[:, 0] // 10_000 for step in range(1000)])
    return {kind: float((kinds == i).mean()) for i, kind in enumerate(("code", "prose"))}


def test_kinds_are_drawn_by_their_tokens_times_their_weight():
    assert shares(None)["code"] == pytest.approx(0.25, abs=0.015)
    assert shares({"code": 3.0})["code"] == pytest.approx(0.5, abs=0.015)
    assert shares({"code": 3.0, "prose": 3.0}) == shares(None)
    assert shares({"prose": 0.0})["prose"] == 0


def test_documents_are_numbered_in_each_row():
    stream = np.array([BOS, 5, 6, BOS, 7, 8, 9, BOS, 5, BOS, BOS, 4, 9, 9, 9, 9, 1], dtype=np.uint16)
    loader = Loader({"code": stream}, 8, 2, 1, 0, BOS)
    rows = {
        tuple(row): tuple(ids) for row, ids in zip(loader[0].inputs.tolist(), loader[0].documents.tolist(), strict=True)
    }
    numbered = {row: [i - ids[0] for i in ids] for row, ids in rows.items()}
    assert numbered == {
        (0, 5, 6, 0, 7, 8, 9, 0): [0, 0, 0, 1, 1, 1, 1, 2],
        (5, 0, 0, 4, 9, 9, 9, 9): [0, 1, 2, 2, 2, 2, 2, 2],
    }


def test_streams_that_are_too_short_are_refused():
    with pytest.raises(HerdError, match="longer than the context of 100 tokens: add text"):
        Loader(streams(code=100, prose=3), 100, 1, 1, 0, BOS)
    assert Loader(streams(code=101), 100, 2, 1, 0, BOS)[0].inputs.shape == (2, 100)


def test_weights_of_kinds_that_are_not_there_are_refused():
    with pytest.raises(HerdError, match=r"\['poems'\]; there are \['code', 'prose'\]"):
        Loader(streams(code=100, prose=300), 10, 1, 1, 0, BOS, {"poems": 2.0, "code": 1.0})


def test_a_short_stream_beside_a_long_one_is_said(capsys):
    """Text that will never be trained on is something the person should hear of."""
    loader = Loader(streams(code=5, prose=300), 10, 1, 30, 0, BOS)
    assert all(loader[step].inputs.min() > 10_000 for step in range(30))
    assert "code" in capsys.readouterr().err


def test_steps_past_the_plan_are_an_error():
    with pytest.raises(IndexError):
        Loader(streams(code=100), 10, 2, 3, 0, BOS)[3]
