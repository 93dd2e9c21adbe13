"""Hangs: which rank never arrived, where, what the others wait for. Then every process ends, so that it can restart.

Each rank notes in memory what it is doing (`entered`, `waiting`, `completed`); a thread writes that now and then to a
file of its own in a folder that all ranks share. When a rank has not moved for the timeout it writes down its Python
stack and the collectives it stands in (torch's flight recorder); the lowest rank that still writes reads everything,
prints one line that names the culprit and the details below it, and all ranks exit with EXIT_HUNG. A process that
hangs inside C code and holds Python's lock can't run this thread: faulthandler's own timer, which needs no lock, writes
its stack and ends it.

The timeout must be longer than anything a rank does between two marks: compiling, an evaluation, a checkpoint.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from herd.artifact import canonical_json
from herd.train.stragglers import Place

TIMEOUT_SECONDS = 600.0
EXIT_HUNG = 75  # EX_TEMPFAIL: try again
BEATS = 8  # a timeout: at 600 s, 16,384 ranks write 218 small files a second
ALIVE_BEATS = 3  # a rank that did not write for so many is not alive


class Beat(NamedTuple):
    """What a rank last wrote of itself. `idle`: seconds without a move when it wrote; `written`: seconds of the epoch.

    `collectives` maps a process group to [number, name, finished] of the last collective this rank entered in it.
    """

    place: Place
    attempt: int
    step: int
    phase: str
    waits: bool
    idle: float
    written: float
    collectives: dict[str, tuple[int, str, bool]] | None = None
    final: bool = False  # written when it gave up

    @property
    def standing_in(self) -> list[str]:
        """Collectives that this rank entered and did not leave."""
        return [f"{name} #{number}" for number, name, done in (self.collectives or {}).values() if not done]

    def where(self) -> str:
        inside = f", {', '.join(self.standing_in)}" if self.standing_in else ""
        return f"after step {self.step} in '{self.phase}'{inside}"


class Now(NamedTuple):
    """What a rank is doing, and since when (seconds of the monotonic clock)."""

    step: int
    phase: str
    waits: bool
    since: float


class Watchdog:
    """Watches this process and, with its like in the other ranks, the whole mesh; for use in a `with` block.

    `folder` is shared by all ranks. What is there from before a restart (torchrun counts them) is not looked at.
    """

    def __init__(self, place: Place, folder: Path, timeout: float = TIMEOUT_SECONDS) -> None:
        self._place, self._folder, self._timeout = place, folder, timeout
        self._attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self._now = Now(0, "starting", False, time.monotonic())  # replaced as one: another thread reads it
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stack = self._stack_file(self._place.rank).open("w", encoding="utf-8")
        self._write(0.0)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._place.ranks > 1:
            faulthandler.cancel_dump_traceback_later()
        self._stack.close()

    def entered(self, phase: str) -> None:
        """This rank begins work of its own: `batch of step 5`, `forward and backward`, `checkpoint`."""
        self._now = Now(self._now.step, phase, False, time.monotonic())

    @contextlib.contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """Around something that ends only when other ranks come: `all-reduce of the gradient norm`."""
        before = self._now
        self._now = Now(before.step, phase, True, time.monotonic())
        yield  # an error leaves the phase as it is: that is where it happened
        self._now = before._replace(since=time.monotonic())

    def completed(self, step: int) -> None:
        """So many steps are done."""
        self._now = Now(step, "between steps", False, time.monotonic())

    def _watch(self) -> None:
        interval = self._timeout / BEATS
        while True:
            began = time.monotonic()
            if self._place.ranks > 1:  # a laptop's Ctrl-Z stops the clock of no training
                faulthandler.dump_traceback_later(2 * self._timeout, file=self._stack, exit=True)
            if self._over.wait(interval):
                return
            if time.monotonic() - began > interval + self._timeout / 2:  # the whole process was stopped meanwhile
                self._now = self._now._replace(since=time.monotonic())
            idle = time.monotonic() - self._now.since
            self._write(idle)
            if idle > self._timeout and not self._others_move():
                self._end(interval)

    def _write(self, idle: float, collectives: Mapping[str, Any] | None = None, final: bool = False) -> None:
        now = self._now
        beat = Beat(self._place, self._attempt, now.step, now.phase, now.waits, idle, time.time())
        row = beat._asdict() | {"place": self._place._asdict(), "collectives": collectives, "final": final}
        file = self._folder / f"rank-{self._place.rank:05d}.json"
        with contextlib.suppress(OSError):  # a full disk must not end a training
            file.with_suffix(".new").write_text(canonical_json(row), encoding="utf-8")
            file.with_suffix(".new").replace(file)

    def _others_move(self) -> bool:
        """Whether a rank did something lately that this one may be waiting for."""
        return any(beat.idle < self._timeout / 2 and beat.place.rank != self._place.rank for beat in self._alive())

    def _alive(self) -> list[Beat]:
        return [b for b in read_beats(self._folder, self._attempt) if _fresh(b, self._timeout, time.time())]

    def _end(self, interval: float) -> None:
        faulthandler.dump_traceback(self._stack)
        self._stack.flush()
        inside = collectives(self._folder / f"rank-{self._place.rank:05d}.flight.json")
        self._write(time.monotonic() - self._now.since, inside, final=True)
        report = self._folder / f"hang-{self._attempt}.txt"
        deadline = time.monotonic() + 2 * interval
        if self._place.rank == min((beat.place.rank for beat in self._alive()), default=self._place.rank):
            while time.monotonic() < deadline and any(not beat.final for beat in self._alive()):
                time.sleep(interval / 8)
            beats = read_beats(self._folder, self._attempt)
            line, details = hang_report(beats, self._place.ranks, self._timeout, time.time(), self._read_stack)
            print(f"warning: {line}\n{details}", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                report.write_text(f"{line}\n{details}\n", encoding="utf-8")
        while time.monotonic() < deadline + interval and not report.exists():
            time.sleep(interval / 8)  # when one process ends, torchrun ends the others: the report comes first
        os._exit(EXIT_HUNG)

    def _stack_file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.stack.txt"

    def _read_stack(self, rank: int) -> str:
        try:
            text = self._stack_file(rank).read_text(encoding="utf-8")
        except OSError:
            return ""
        return text.rstrip().split("\n\n")[-1]  # the main thread comes last


def read_beats(folder: Path, attempt: int) -> list[Beat]:
    """What the ranks of this attempt last wrote, in order of rank."""
    beats = []
    for file in sorted(folder.glob("rank-*.json")):
        if file.name.endswith(".flight.json"):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            row = json.loads(file.read_text(encoding="utf-8"))
            if row["attempt"] == attempt:
                beats.append(Beat(**row | {"place": Place(**row["place"])}))
    return beats


def hang_report(
    beats: Sequence[Beat], ranks: int, timeout: float, now: float, stack_of: Callable[[int], str] = lambda rank: ""
) -> tuple[str, str]:
    """One line that names who never arrived, and details: who waits where, and the culprits' stacks."""
    absent = sorted(set(range(ranks)) - {beat.place.rank for beat in beats})
    late = culprits(beats, timeout, now)
    named = [f"rank {rank} never started" for rank in absent]
    for beat in late:
        state = "" if _fresh(beat, timeout, now) else ", and does not answer"
        named.append(f"{beat.place} never arrived: {beat.where()} for {now - beat.written + beat.idle:.0f} s{state}")
    head = f"hang: no rank moved for {timeout:.0f} s; "
    line = head + ("; ".join(named[:3]) + (f"; and {len(named) - 3} more" if len(named) > 3 else ""))
    if not named:
        line = head + "all of them wait, none is behind"
    groups: dict[str, list[int]] = {}
    for beat in beats:
        if beat not in late:
            groups.setdefault(beat.where(), []).append(beat.place.rank)
    details = [f"  waiting {where}: ranks {_ranges(members)}" for where, members in groups.items()]
    for beat in late[:3]:
        if stack := stack_of(beat.place.rank):
            details += [f"  stack of rank {beat.place.rank}:", *(f"    {text}" for text in stack.split("\n"))]
    return line, "\n".join(details)


def culprits(beats: Sequence[Beat], timeout: float, now: float) -> list[Beat]:
    """Ranks that the others wait for: those that don't answer; else those that wait for nobody; else those behind.

    Where nothing tells ranks apart the list is empty.
    """
    silent = [beat for beat in beats if not _fresh(beat, timeout, now)]
    at_work = [beat for beat in beats if not beat.waits and not beat.standing_in]
    last: dict[str, int] = {}
    for beat in beats:
        for group, (number, _, _) in (beat.collectives or {}).items():
            last[group] = max(number, last.get(group, 0))
    step = max((beat.step for beat in beats), default=0)
    behind = [
        beat
        for beat in beats
        if beat.step < step or any(number < last[group] for group, (number, _, _) in (beat.collectives or {}).items())
    ]
    if len(beats) == 1:
        return list(beats)
    return next((found for found in (silent, at_work, behind) if 0 < len(found) < len(beats)), [])


def collectives(dump_to: Path | None = None) -> dict[str, tuple[int, str, bool]] | None:
    """Last collective that this process entered in each group, from torch's flight recorder; None where there is none.

    The whole record goes to `dump_to`, as JSON. gloo keeps one in torch 2.13 (older ones were not tried), NCCL keeps
    one too (not tried here); how many collectives is TORCH_FR_BUFFER_SIZE, 2,000 by default.
    """
    import torch

    dump = getattr(getattr(torch._C, "_distributed_c10d", None), "_dump_fr_trace_json", None)  # private, so guarded
    if dump is None:
        return None
    try:
        raw = dump()
        entries = json.loads(raw)["entries"]
    except (RuntimeError, ValueError, KeyError, TypeError):
        return None
    if dump_to is not None:
        with contextlib.suppress(OSError):
            dump_to.write_bytes(raw if isinstance(raw, bytes) else str(raw).encode())
    found: dict[str, tuple[int, str, bool]] = {}
    for entry in entries:
        group = f"{entry['process_group'][0]}{' p2p' if entry['is_p2p'] else ''}"
        number = entry["p2p_seq_id" if entry["is_p2p"] else "collective_seq_id"]
        if number >= found.get(group, (-1,))[0]:
            done = bool(entry["retired"]) or entry["state"] == "completed"
            found[group] = (number, f"{entry['profiling_name']} {entry['input_sizes']}", done)
    return found


def _fresh(beat: Beat, timeout: float, now: float) -> bool:
    return now - beat.written < ALIVE_BEATS * timeout / BEATS


def _ranges(ranks: Sequence[int]) -> str:
    """0, 1, 2, 5 as `0-2, 5`."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return ", ".join("-".join(map(str, part)) for part in parts)
