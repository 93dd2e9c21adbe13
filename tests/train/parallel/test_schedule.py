"""Orders of micro-batches: whole, free of deadlock and within their memory for any counts, with the paper's bubble."""

from __future__ import annotations

import itertools

import pytest

from herd.console import HerdError
from herd.train.parallel.schedule import (
    Action,
    bubble,
    forwards_only,
    gpipe,
    interleaved,
    most_in_flight,
    needs,
    one_forward_one_backward,
    simulate,
    split_layers,
)

PP, V, M, N = (1, 2, 3, 5), (1, 2, 3), (1, 2, 3, 5, 8, 10), (1, 2, 3, 4, 7, 20)


def forwards(actions):
    return [(action.stage, action.micro) for action in actions if action.kind == "F"]


@pytest.mark.parametrize("pp", PP)
def test_any_counts_run_whole_in_order_and_within_the_warm_up(pp):
    for stages_per_rank, micros, group in itertools.product(V, M, N):
        order, stages = interleaved(pp, stages_per_rank, micros, group), pp * stages_per_rank
        everything = {Action(kind, s, m) for kind in ("F", "B") for s in range(stages) for m in range(micros)}
        assert sorted(everything) == sorted(action for actions in order for action in actions)
        assert all(action.stage % pp == rank for rank, actions in enumerate(order) for action in actions)
        timeline = simulate(order, [1.0] * stages, [2.0] * stages, 0.5)  # raises where ranks wait for each other
        ends = {slot.action: (slot.end, rank) for rank, slots in enumerate(timeline) for slot in slots}
        for rank, slots in enumerate(timeline):
            for slot in slots:
                for end, home in (ends[need] for need in needs(slot.action, stages)):
                    assert slot.start >= end + (0.5 if home != rank else 0.0)
        for rank, actions in enumerate(order):
            n = min(group, micros)
            hops, held = (2, (stages_per_rank - 1) * n) if stages_per_rank > 1 else (1, 0)
            assert most_in_flight(actions) <= min(stages_per_rank * micros, hops * (pp - rank - 1) + held + 1)
            for stage in {action.stage for action in actions}:
                for kind in ("F", "B"):  # the gradients of a stage add up in the order of the micro-batches
                    assert [a.micro for a in actions if a.kind == kind and a.stage == stage] == list(range(micros))


@pytest.mark.parametrize(("pp", "stages_per_rank", "rounds"), [*itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 3))])
def test_the_bubble_is_the_papers(pp, stages_per_rank, rounds):
    stages, micros = pp * stages_per_rank, pp * rounds
    timeline = simulate(interleaved(pp, stages_per_rank, micros, pp), [1.0] * stages, [2.0] * stages)
    assert bubble(timeline) == pytest.approx((pp - 1) / (stages_per_rank * micros))


def test_even_counts_warm_up_and_alternate_as_a4_says():
    for rank, actions in enumerate(interleaved(4, 2, 8, 4)):
        warm_up = min(16, 2 * (4 - rank - 1) + 4)
        kinds = "".join(action.kind for action in actions)
        assert kinds == "F" * warm_up + "FB" * (16 - warm_up) + "B" * warm_up
    assert forwards(interleaved(4, 2, 8, 4)[1]) == [
        *((1, m) for m in range(4)),
        *((5, m) for m in range(4)),
        *((1, m) for m in range(4, 8)),
        *((5, m) for m in range(4, 8)),
    ]  # N = PP: depth first
    assert forwards(interleaved(4, 2, 8, 8)[1]) == [(stage, m) for stage in (1, 5) for m in range(8)]  # N = M: breadth
    assert forwards(interleaved(2, 2, 5, 3)[0]) == [
        *((0, m) for m in range(3)),
        *((2, m) for m in range(3)),
        *((0, m) for m in (3, 4)),
        *((2, m) for m in (3, 4)),
    ]  # a short last group


def test_one_stage_a_rank_is_1f1b():
    order = one_forward_one_backward(3, 4)
    assert ["".join(action.kind for action in actions) for actions in order] == ["FFFBFBBB", "FFBFBFBB", "FBFBFBFB"]
    assert [most_in_flight(actions) for actions in order] == [3, 2, 1]
    assert order == interleaved(3, 1, 4, 3)
    assert bubble(simulate(order, [1.0] * 3, [2.0] * 3)) == pytest.approx(2 / 4)


def test_gpipe_keeps_everything_in_flight():
    order = gpipe(3, 4)
    assert [most_in_flight(actions) for actions in order] == [4, 4, 4]
    assert bubble(simulate(order, [1.0] * 3, [2.0] * 3)) == pytest.approx(2 / 4)


def test_ranks_that_wait_for_each_other_are_named():
    order = [[Action("F", 0, 0), Action("B", 0, 0), Action("F", 0, 1)], [Action("F", 1, 1), Action("B", 1, 0)]]
    with pytest.raises(ValueError, match="wait for each other"):
        simulate(order, [1.0, 1.0], [1.0, 1.0])


def test_a_backward_in_halves_lets_the_stage_before_go_on_after_the_first():
    order = [[Action("F", 0, 0), Action("B", 0, 0)], [Action("F", 1, 0), Action("I", 1, 0), Action("W", 1, 0)]]
    first, second = simulate(order, [1.0, 1.0], [4.0, 4.0])
    assert [(slot.start, slot.end) for slot in second] == [(1, 2), (2, 4), (4, 6)]
    assert [(slot.start, slot.end) for slot in first] == [(0, 1), (4, 8)]
    assert most_in_flight(order[1]) == 1


def test_forwards_of_an_evaluation_run_for_any_placement():
    for homes, micros, group in itertools.product(([0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 2]), (1, 2, 5), (1, 2, 7)):
        order = forwards_only(homes, micros, group)
        timeline = simulate(order, [1.0] * len(homes), [1.0] * len(homes))
        assert sum(map(len, timeline)) == len(homes) * micros


@pytest.mark.parametrize(
    ("layers", "stages", "apart", "sizes"),
    [
        (4, 2, False, [2, 2]),
        (4, 4, False, [1, 1, 1, 1]),
        (126, 16, False, [7, *[8] * 14, 7]),
        (7, 3, False, [2, 3, 2]),
        (8, 3, False, [2, 3, 3]),
        (126, 128, True, [0, *[1] * 126, 0]),
        (126, 16, True, [0, *[9] * 14, 0]),
        (5, 4, True, [0, 2, 3, 0]),
        (3, 1, False, [3]),
    ],
)
def test_layers_are_split_evenly_embedding_and_head_counted_as_one_each(layers, stages, apart, sizes):
    split = split_layers(layers, stages, apart)
    assert [len(stage) for stage in split] == sizes
    assert [layer for stage in split for layer in stage] == list(range(layers))


@pytest.mark.parametrize(("layers", "stages", "apart"), [(3, 4, False), (126, 128, False), (2, 5, True), (4, 2, True)])
def test_more_stages_than_layers_are_refused(layers, stages, apart):
    with pytest.raises(HerdError, match=f"{stages} stages do not fit {layers} layers"):
        split_layers(layers, stages, apart)
