"""Batches are a pure function of seed and step; windows are used evenly; kinds stay apart and keep their weights."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from herd.console import HerdError
from herd.data.loader import Batch, Loader, derive_seed, permuted
from herd.data.mix import Mixture

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
    """The order of windows does not depend on the number of steps where shares stand still."""
    short, long = (Loader(streams(code=500, prose=700), 7, 3, steps, 5, BOS) for steps in (10, 20))
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


def test_kinds_are_read_by_their_tokens_times_their_weight():
    """Of 10,000 windows, to within one."""
    assert shares(None)["code"] == pytest.approx(0.25, abs=1e-4)
    assert shares({"code": 3.0})["code"] == pytest.approx(0.5, abs=1e-4)
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
    with pytest.raises(HerdError, match=r"'poems', which no stream of tokens is; there are \['code', 'prose'\]"):
        Loader(streams(code=100, prose=300), 10, 1, 1, 0, BOS, {"poems": 2.0, "code": 1.0})


def test_a_short_stream_beside_a_long_one_is_said(capsys):
    """Text that will never be trained on is something the person should hear of."""
    loader = Loader(streams(code=5, prose=300), 10, 1, 30, 0, BOS)
    assert all(loader[step].inputs.min() > 10_000 for step in range(30))
    assert "code" in capsys.readouterr().err


def test_steps_past_the_plan_are_an_error():
    with pytest.raises(IndexError):
        Loader(streams(code=100), 10, 2, 3, 0, BOS)[3]


def moving(loader_steps: int = 50, sequences: int = 12) -> Loader:
    mixture = Mixture({"code": 0.6, "docs": 0.4, "prose": 0.0}, {"code": 0.1, "docs": 0.4, "prose": 0.5})
    return Loader(streams(code=900, docs=400, prose=2000), 7, sequences, loader_steps, 5, BOS, mixture=mixture)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=16), st.integers(20, 400))
def test_any_prefix_holds_each_stream_in_its_share(weights, windows):
    """Sixteen streams (four groups, four kinds) whose shares move: never two windows off, where draws would be tens."""
    totals = [sum(side) for side in zip(*weights, strict=True)]
    assume(min(totals) > 0.01)
    names = [f"s{i:02}" for i in range(len(weights))]
    sides = [{n: w[e] / totals[e] for n, w in zip(names, weights, strict=True)} for e in (0, 1)]
    loader = Loader(streams(**{n: 9 for n in names}), 2, 1, windows, 0, BOS, mixture=Mixture(*sides))
    order = np.array([loader[step].inputs[0, 0] // 10_000 for step in range(windows)])
    done = np.arange(1, windows + 1)
    for i, name in enumerate(names):
        start, end = (side[name] for side in sides)
        quota = done * start + (end - start) * done**2 / (2 * windows)
        assert np.abs(np.cumsum(order == i) - quota).max() < 2


def test_weights_move_over_time():
    loader = moving(loader_steps=100, sequences=20)
    kinds = np.array([loader[step].inputs[:, 0] // 10_000 for step in range(100)])
    by_time = [[(part == i).mean() for i in range(3)] for part in np.split(kinds, 4)]
    assert by_time[0] == pytest.approx([0.5375, 0.4, 0.0625], abs=0.005)
    assert by_time[3] == pytest.approx([0.1625, 0.4, 0.4375], abs=0.005)


def test_windows_are_used_once_an_epoch_while_weights_move():
    loader = moving(loader_steps=200)
    rows = np.concatenate([loader[step].inputs[:, 0] for step in range(200)])
    for kind, length in enumerate((900, 400, 2000)):
        windows = (length - 1) // 7
        mine = rows[rows // 10_000 == kind]
        for epoch in range(len(mine) // windows):
            assert len(set(mine[epoch * windows : (epoch + 1) * windows].tolist())) == windows
        assert len(set(mine[len(mine) // windows * windows :].tolist())) == len(mine) % windows


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 12, 16])
def test_any_number_of_ranks_trains_on_the_same_batches(ranks):
    """Each rank has a loader of its own; also more ranks than rows."""
    whole, loaders = moving(), [moving() for _ in range(ranks)]
    for step in (0, 1, 17, 49):
        parts = [loader.part(step, rank, ranks) for rank, loader in enumerate(loaders)]
        assert max(len(p.inputs) for p in parts) - min(len(p.inputs) for p in parts) <= 1
        together = Batch(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("inputs", "targets", "documents")))
        assert same(together, whole[step])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 49))
def test_a_run_goes_on_anywhere_from_a_few_numbers(stop):
    state = json.loads(json.dumps(moving().state(stop)))
    assert len(json.dumps(state)) < 500
    resumed, undisturbed = moving(), moving()
    for step in range(resumed.check(state), 50):
        assert same(resumed[step], undisturbed[step])


def test_a_state_of_other_batches_is_refused():
    with pytest.raises(HerdError, match=r"not these: sequences was 12, is 6"):
        moving(sequences=6).check(moving().state(3))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**48))
def test_a_permutation_is_one(size, key):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_a_permutation_leaves_no_trace_of_the_order():
    """Neighbours end up far apart, the first windows anywhere: as many fixed points and rises as chance has."""
    size = 5000
    for key in range(5):
        order = np.array([permuted(i, size, key) for i in range(size)])
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
        assert (np.diff(order) > 0).mean() == pytest.approx(0.5, abs=0.03)
        assert (order == np.arange(size)).sum() < 8


def test_a_plan_of_the_papers_size_costs_nothing_before_its_first_batch():
    """15.6T tokens, 1.9 billion windows of 8,192: the streams here are short, the counting is not."""
    short = {name: np.broadcast_to(np.uint16(7), 10**12) for name in ("code", "docs", "prose")}
    loader = Loader(short, 8192, 2048, 930_000, 1, BOS)
    batch = loader.part(929_999, 511, 512)
    assert batch.inputs.shape == (4, 8192)
