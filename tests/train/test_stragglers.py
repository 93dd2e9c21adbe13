"""A slow rank is named and a hung one too, by processes that really wait for one another; then all of them end."""

import ctypes
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from herd import console
from herd.recipe_compute import Mesh
from herd.train.faults import Faults, parse_faults
from herd.train.parallel.ranks import run_ranks
from herd.train.stragglers import Place, RankTimes, StepClock, coordinates, find_slow, this_place
from herd.train.watchdog import EXIT_HUNG, Beat, Watchdog, culprits, hang_report

CPU = torch.device("cpu")
HANG_SECONDS = 3.0


def test_coordinates_are_those_of_the_papers_order():
    mesh = Mesh(tp=2, cp=2, pp=2, dp=2)
    assert coordinates(mesh, 1) == "dp 0 pp 0 cp 0 tp 1"
    assert coordinates(mesh, 4) == "dp 0 pp 1 cp 0 tp 0"
    assert coordinates(mesh, 15) == "dp 1 pp 1 cp 1 tp 1"
    assert len({coordinates(mesh, rank) for rank in range(16)}) == 16


def test_who_holds_up_the_others_is_told_by_its_own_work_not_by_its_step():
    even = (0.001,) * 4
    assert find_slow(RankTimes((0.5,) * 4, (0.1, 0.1, 0.11, 0.1), even)) == []
    (slow,) = find_slow(RankTimes((0.5,) * 4, (0.1, 0.1, 0.4, 0.1), even))
    assert slow.rank == 2 and slow.times == pytest.approx(0.5 / 0.2)
    assert find_slow(RankTimes((0.5,) * 4, (1e-5, 1e-5, 9e-4, 1e-5), even)) == []  # 90 times, but of nothing
    (slow,) = find_slow(RankTimes((0.5,) * 4, (0.1,) * 4, (0.001, 0.003, 0.001, 0.001)))
    assert slow.rank == 1 and slow.times == pytest.approx(3)
    assert [s.rank for s in find_slow(RankTimes((0.5,) * 4, (0.1, 0.3, 0.4, 0.1), even))] == [2, 1]
    assert find_slow(RankTimes((0.0,), (0.0,), (0.0,))) == []


def _steps_with_a_slow_rank(mesh: Mesh, steps: int, folder: Path) -> tuple[list[str], dict[str, float]]:
    said: list[str] = []
    console.redirect(lambda event: said.append(event.text))
    rank = dist.get_rank()
    clock = StepClock(this_place(mesh, rank), CPU, every=3)
    faults = Faults(parse_faults("slow:rank=2:seconds=0.2"), rank, folder)
    times = None
    for step in range(1, steps + 1):
        with clock.own():
            faults.at(step)
        dist.all_reduce(torch.ones(4))
        times = clock.completed(step) or times
    assert times is not None
    return said, times.row()


def test_a_slow_rank_is_named_with_its_place_and_how_slow_it_is(tmp_path):
    results = run_ranks(3, _steps_with_a_slow_rank, Mesh(tp=1, dp=3), 9, tmp_path, timeout=60)
    named = [text for text in results[0][0] if "its own work" in text]
    assert [text.split(" (")[0] for text in named] == ["rank 2", "rank 2"]  # found, and after twice as long
    assert f"host {os.uname().nodename}" in named[0] and "dp 2 pp 0 cp 0 tp 0" in named[0]
    assert "times slower for 3 steps" in named[0] and "times slower for 6 steps" in named[1]
    assert results[1][0] == results[2][0] == []  # one process says it
    rows = [row for _, row in results]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["slowest_rank"] == 2 and rows[0]["rank_own_seconds_max"] >= 0.2
    assert rows[0]["rank_step_seconds_min"] >= 0.15  # all steps are as slow as that rank: they tell nothing


def test_one_process_needs_no_process_group():
    clock = StepClock(this_place(Mesh(), 0), CPU, every=2)
    assert clock.completed(1) is None
    times = clock.completed(2)
    assert times is not None and times.row()["slowest_rank"] == 0 and find_slow(times) == []


def _train(rank: int, ranks: int, folder: Path, step_of: Callable[[int, int, Watchdog], None]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    with Watchdog(this_place(Mesh(dp=ranks), rank), folder / "watch", HANG_SECONDS) as watch:
        for step in range(1, 6):
            step_of(rank, step, watch)
            watch.completed(step)
        dist.barrier()


def _run(ranks: int, folder: Path, step_of: Callable[[int, int, Watchdog], None]) -> tuple[list[int | None], str]:
    """Exit codes of ranks that train so, and the report of their hang."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_train, args=(rank, ranks, folder, step_of)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and processes[-1].is_alive():
        time.sleep(0.05)
    for process in processes:
        process.join(3)  # a stopped one does not end
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    report = folder / "watch" / "hang-0.txt"
    return codes, report.read_text() if report.exists() else ""


def test_a_hung_rank_is_named_with_its_phase_and_every_process_ends(tmp_path):
    def step_of(rank: int, step: int, watch: Watchdog) -> None:
        watch.entered(f"batch of step {step}")
        Faults(parse_faults("hang:rank=1:step=3"), rank, tmp_path).at(step)
        with watch.waiting("all-reduce of the gradient norm"):
            dist.all_reduce(torch.ones(4))

    codes, report = _run(3, tmp_path, step_of)
    assert codes == [EXIT_HUNG] * 3
    line, details = report.split("\n", 1)
    assert line.startswith("hang: no rank moved for 3 s; rank 1 (host ")
    assert "dp 1 pp 0 cp 0 tp 0) never arrived: after step 2 in 'batch of step 3' for " in line
    assert "waiting after step 2 in 'all-reduce of the gradient norm'" in details and "ranks 0, 2" in details
    assert "stack of rank 1:" in details and "faults.py" in details  # it says the line that hangs
    assert "allreduce" in details.replace("_", "")  # from torch's flight recorder


def test_inside_one_phase_the_flight_recorder_tells_who_is_missing(tmp_path):
    """As in a forward pass under FSDP, whose collectives the loop does not see."""

    def step_of(rank: int, step: int, watch: Watchdog) -> None:
        watch.entered("forward and backward")
        if (rank, step) == (0, 4):
            time.sleep(3600)
        dist.all_reduce(torch.ones(4))

    codes, report = _run(2, tmp_path, step_of)
    assert codes == [EXIT_HUNG] * 2
    assert "rank 0 (host " in report.split("\n")[0] and "after step 3 in 'forward and backward'" in report
    assert json.loads((tmp_path / "watch" / "rank-00001.flight.json").read_text())["entries"]


def test_a_rank_that_holds_pythons_lock_is_named_and_ended_too(tmp_path):
    def step_of(rank: int, step: int, watch: Watchdog) -> None:
        watch.entered(f"batch of step {step}")
        if (rank, step) == (1, 2):
            ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the lock: no other thread of this process runs
        with watch.waiting("all-reduce"):
            dist.all_reduce(torch.ones(4))

    codes, report = _run(2, tmp_path, step_of)
    assert codes == [EXIT_HUNG, 1]
    assert "rank 1 (host " in report and "does not answer" in report.split("\n")[0]
    assert "step_of" in (tmp_path / "watch" / "rank-00001.stack.txt").read_text()


def test_a_stopped_process_is_named(tmp_path):
    def step_of(rank: int, step: int, watch: Watchdog) -> None:
        if (rank, step) == (0, 3):
            os.kill(os.getpid(), signal.SIGSTOP)
        with watch.waiting("all-reduce"):
            dist.all_reduce(torch.ones(4))

    codes, report = _run(2, tmp_path, step_of)
    assert codes == [None, EXIT_HUNG]  # nothing but a signal ends a stopped process: torchrun sends it
    assert "rank 0 (host " in report.split("\n")[0] and "does not answer" in report.split("\n")[0]


def test_slow_steps_are_no_hang(tmp_path):
    def step_of(rank: int, step: int, watch: Watchdog) -> None:
        watch.entered("batch")
        time.sleep(HANG_SECONDS / 3 if rank else 0)
        with watch.waiting("all-reduce"):
            dist.all_reduce(torch.ones(4))

    assert _run(2, tmp_path, step_of) == ([0, 0], "")


def beat(rank: int, **changes) -> Beat:
    place = Place(rank, 4, "host", 1, coordinates(Mesh(dp=4), rank))
    return Beat(
        place, 0, **{"step": 7, "phase": "forward", "waits": False, "idle": 100.0, "written": 1000.0, **changes}
    )


def test_the_culprit_is_who_waits_for_nobody_not_who_is_late_because_of_it():
    """Rank 3 hangs; rank 2 waits for it in their group, and therefore misses in the group of the others."""
    beats = [
        beat(0, collectives={"data": (9, "all_reduce", False)}),
        beat(1, collectives={"data": (9, "all_reduce", False)}),
        beat(2, collectives={"data": (8, "all_reduce", True), "tensor": (31, "all_gather", False)}),
        beat(3, collectives={"data": (8, "all_reduce", True), "tensor": (30, "all_gather", True)}),
    ]
    assert culprits(beats, 100, 1000) == [beats[3]]
    line, details = hang_report(beats, 4, 100, 1000)
    assert "rank 3 (host" in line and "rank 2" not in line
    assert "all_gather #31" in details and "ranks 0-1" in details


def test_where_nothing_tells_ranks_apart_none_is_accused():
    beats = [beat(rank, waits=True) for rank in range(4)]
    assert culprits(beats, 100, 1000) == []
    assert "all of them wait, none is behind" in hang_report(beats, 4, 100, 1000)[0]
    assert culprits([*beats[:3], beat(3, waits=True, step=6)], 100, 1000)[0].place.rank == 3
    assert "rank 3 never started" in hang_report(beats[:3], 4, 100, 1000)[0]
