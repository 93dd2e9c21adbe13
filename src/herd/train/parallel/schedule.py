"""Orders in which a pipeline's micro-batches run: pure functions, without torch (paper 3.3.2, spec 4.3 and A4).

PP ranks, V stages a rank, M micro-batches, N micro-batches that a stage runs before the rank goes to its next stage.
Stage s lives on rank s mod PP. An order is a list of actions a rank, each rank's in the sequence in which it runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from herd.console import HerdError

Kind = Literal["F", "B", "I", "W"]


class Action(NamedTuple):
    """What a rank does next: forward, backward, or backward in halves (zero bubble): inputs first, weights later."""

    kind: Kind
    stage: int
    micro: int


Order = list[list[Action]]


class Slot(NamedTuple):
    """An action and when it ran, in the unit of the durations given."""

    action: Action
    start: float
    end: float


def split_layers(layers: int, stages: int, ends_apart: bool) -> list[range]:
    """Layers of each stage, in order; their numbers may differ.

    Embedding and head weigh one layer each, as in the paper, which takes one layer from the first and from the last
    stage. Each layer goes to the lightest stage, among equals to the latest: early stages hold more activations.
    `ends_apart`: the first stage holds the embedding alone and the last one the head alone; their ranges are empty.
    Raises HerdError where a stage would be left without a layer.
    """
    ends = 2 if ends_apart else 0
    if stages < 1 or stages - ends > layers or (ends_apart and stages < 3):
        apart = "two more for the embedding and the head apart, " if ends_apart else ""
        raise HerdError(f"[compute] pipeline: {stages} stages do not fit {layers} layers ({apart}one layer a stage)")
    sizes = [0 if ends_apart and stage in (0, stages - 1) else 1 for stage in range(stages)]
    inner = range(1, stages - 1) if ends_apart else range(stages)
    for _ in range(layers - sum(sizes)):
        lightest = min(inner, key=lambda stage: (sizes[stage] + (stage == 0) + (stage == stages - 1), -stage))
        sizes[lightest] += 1
    firsts = [sum(sizes[:stage]) for stage in range(stages)]
    return [range(first, first + size) for first, size in zip(firsts, sizes, strict=True)]


def gpipe(pp: int, micros: int) -> Order:
    """All forwards, then all backwards; one stage a rank."""
    return [[Action(kind, rank, micro) for kind in ("F", "B") for micro in range(micros)] for rank in range(pp)]


def one_forward_one_backward(pp: int, micros: int) -> Order:
    """1F1B: after PP - r - 1 forwards rank r alternates; one stage a rank."""
    return interleaved(pp, 1, micros, 1)


def interleaved(pp: int, stages_per_rank: int, micros: int, group: int) -> Order:
    """The paper's schedule: V stages a rank, any number M of micro-batches, any group N (the last may be short).

    A rank runs its forwards in groups of N, stage by stage, its backwards likewise from the last stage. After a
    warm-up of 2 (PP - r - 1) + (V - 1) N forwards it alternates one forward and one backward, then drains (A4); with
    one stage a rank the warm-up is that of 1F1B, PP - r - 1. N = PP is depth first, N = M breadth first. Never more
    than the warm-up and one are in flight (forwards whose backward is still to come).

    As a fixed table these rules can deadlock (PP = 4, V = 2, N = 1: rank 0 would wait for a forward of rank 3, which
    waits for a backward of rank 0) or wait in vain where M is no multiple of N. So the ranks are also played through
    with the freedom to take a backward for a forward, or the reverse, and the table holds only where it is as fast:
    with backwards twice as long as forwards, and a tenth of a forward to send a state. PP = 4, V = 2, M = 10 takes 80.8
    forwards' time by the table, 74.4 played.
    """
    if min(pp, stages_per_rank, micros, group) < 1:
        raise ValueError("ranks, stages a rank, micro-batches and their group are at least 1")
    group = min(group, micros)
    stages = pp * stages_per_rank
    forwards = forwards_only([stage % pp for stage in range(stages)], micros, group)
    backwards = [[Action("B", stages - 1 - f.stage, f.micro) for f in row] for row in reversed(forwards)]
    hops, held = (2, (stages_per_rank - 1) * group) if stages_per_rank > 1 else (1, 0)
    warm_up = [min(stages_per_rank * micros, hops * (pp - rank - 1) + held) for rank in range(pp)]
    played = _play(forwards, backwards, warm_up, stages)
    try:
        table = [_alternate(f, b, first) for f, b, first in zip(forwards, backwards, warm_up, strict=True)]
        return table if _seconds(table, stages) <= _seconds(played, stages) else played
    except ValueError:
        return played


FORWARD, BACKWARD, TRANSFER = 10, 20, 1  # whole numbers, so that equal times are equal


def _seconds(order: Order, stages: int) -> float:
    timeline = simulate(order, [FORWARD] * stages, [BACKWARD] * stages, TRANSFER)
    return max(slots[-1].end for slots in timeline)


def _alternate(forwards: list[Action], backwards: list[Action], warm_up: int) -> list[Action]:
    steady = zip(forwards[warm_up:], backwards, strict=False)
    return forwards[:warm_up] + [action for pair in steady for action in pair] + backwards[len(forwards) - warm_up :]


def _play(forwards: Order, backwards: Order, warm_up: list[int], stages: int) -> Order:
    """Order by playing: a rank starts whichever of its next forward and next backward can start sooner.

    With at most the warm-up and one forwards in flight it never stops: take the first backward missing in the order of
    (group, stage from the last, micro-batch). All that it needs but its own forward is done. The first forward missing
    in the order of (group, chunk, micro-batch, rank) is ready, and at most (V - 1) N are in flight on its rank.
    """
    home = {action.stage: rank for rank, actions in enumerate(forwards) for action in actions}
    done: dict[Action, int] = {}  # and when it ended
    free = [0] * len(forwards)
    order: Order = [[] for _ in forwards]
    started = [[0, 0] for _ in forwards]  # forwards and backwards of each rank so far

    def start(rank: int, action: Action) -> int | None:
        at = free[rank]
        for need in needs(action, stages):
            if need not in done:
                return None
            at = max(at, done[need] + (TRANSFER if home[need.stage] != rank else 0))
        return at

    def options(rank: int) -> list[tuple[int, int, bool, Action]]:
        forward, backward = started[rank]
        found = []
        if forward < len(forwards[rank]) and forward - backward <= warm_up[rank]:
            found.append(forwards[rank][forward])
        if backward < forward:
            found.append(backwards[rank][backward])
        return [(at, rank, a.kind == "B", a) for a in found if (at := start(rank, a)) is not None]

    for _ in range(2 * sum(map(len, forwards))):
        at, rank, is_backward, action = min(option for rank in range(len(forwards)) for option in options(rank))
        free[rank] = done[action] = at + (BACKWARD if is_backward else FORWARD)
        started[rank][is_backward] += 1
        order[rank].append(action)
    return order


def forwards_only(stage_ranks: Sequence[int], micros: int, group: int) -> Order:
    """Forwards of an evaluation, in groups of N stage by stage. `stage_ranks`: the rank of each stage."""
    return [
        [
            Action("F", stage, micro)
            for first in range(0, micros, group)
            for stage, home in enumerate(stage_ranks)
            if home == rank
            for micro in range(first, min(first + group, micros))
        ]
        for rank in range(max(stage_ranks) + 1)
    ]


def needs(action: Action, stages: int) -> list[Action]:
    """What must have run before an action (A4); of a backward in halves, its halves are named."""
    kind, stage, micro = action
    if kind == "F":
        return [Action("F", stage - 1, micro)] if stage else []
    if kind == "W":
        return [Action("I", stage, micro)]
    return [Action("F", stage, micro)] + ([Action(kind, stage + 1, micro)] if stage + 1 < stages else [])


def simulate(
    order: Order, forward: Sequence[float], backward: Sequence[float], transfer: float = 0.0
) -> list[list[Slot]]:
    """When each action runs: the slots of each rank, in its order.

    `forward` and `backward` are each stage's seconds a micro-batch (any unit will do); the halves I and W take half of
    a backward each. `transfer` passes between the end of a stage and the start of the next on another rank, without
    keeping either busy. Raises ValueError for an order in which the ranks wait for each other.
    """
    stages = len(forward)
    home = {action.stage: rank for rank, actions in enumerate(order) for action in actions}
    seconds: dict[Kind, Callable[[int], float]] = {
        "F": lambda stage: forward[stage],
        "B": lambda stage: backward[stage],
        "I": lambda stage: backward[stage] / 2,
        "W": lambda stage: backward[stage] / 2,
    }
    done: dict[Action, float] = {}
    timeline: list[list[Slot]] = [[] for _ in order]
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(order):
            while len(timeline[rank]) < len(actions):
                action = actions[len(timeline[rank])]
                ends = [_end(done, need, home, rank, transfer) for need in needs(action, stages)]
                if None in ends:
                    break
                before = timeline[rank][-1].end if timeline[rank] else 0.0
                start = max([before, *(end for end in ends if end is not None)])
                slot = Slot(action, start, start + seconds[action.kind](action.stage))
                timeline[rank].append(slot)
                done[action], moved = slot.end, True
    stuck = [actions[len(slots)] for actions, slots in zip(order, timeline, strict=True) if len(slots) < len(actions)]
    if stuck:
        raise ValueError(f"the ranks wait for each other before {', '.join(map(str, stuck))}")
    return timeline


def _end(done: dict[Action, float], need: Action, home: dict[int, int], rank: int, transfer: float) -> float | None:
    """When what is needed is on this rank; schedules mix whole backwards with halves, so either will do."""
    end = done.get(need)
    if end is None and need.kind in ("B", "I"):
        end = done.get(need._replace(kind="I" if need.kind == "B" else "B"))
    return None if end is None else end + (transfer if home[need.stage] != rank else 0.0)


def bubble(timeline: list[list[Slot]]) -> float:
    """Time that ranks wait, over the time that they work. (PP - 1) / (V M) for equal stages and N = PP (paper)."""
    busy = sum(slot.end - slot.start for slots in timeline for slot in slots)
    return max(slots[-1].end for slots in timeline) * len(timeline) / busy - 1


def most_in_flight(actions: list[Action]) -> int:
    """Forwards of one rank whose activations are held at once, at most: until the backward, or its weights' half."""
    held = most = 0
    for action in actions:
        held += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
        most = max(most, held)
    return most
