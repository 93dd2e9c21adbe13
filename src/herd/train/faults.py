"""Faults on purpose, for tests and drills: does a run survive a killed process, a hung one, a slow one, a flipped bit?

`HERD_FAULT` names them, separated by semicolons; nothing is looked up where it is unset:

    kill:rank=1:step=7              SIGKILL of one process before a step (counted from 1)
    hang:rank=1:step=5              one process sleeps for ever before a step
    slow:rank=2:seconds=0.3         one process sleeps before every step (from `step` on, if given)
    flip:step=8                     one bit in the newest checkpoint, in the first of its files by name, or
    flip:step=8:file=*.safetensors  in one that a pattern names
    full-disk:step=4                the next write of a checkpoint finds the disk full (`writes=3`: the next three)

All but `slow` fire once, also over restarts: a file in the folder that `Faults` is given says that they did.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from herd.console import HerdError, warn

VARIABLE = "HERD_FAULT"
GRAMMAR = (
    "kill:rank=R:step=S, hang:rank=R:step=S, slow:rank=R:seconds=X[:step=S], flip:step=S[:file=PATTERN], "
    "full-disk:step=S[:rank=R][:writes=N], joined by ';'"
)
_NEEDED = {
    "kill": {"rank", "step"},
    "hang": {"rank", "step"},
    "slow": {"rank", "seconds"},
    "flip": {"step"},
    "full-disk": {"step"},
}
_ALLOWED = {"slow": {"step"}, "flip": {"file"}, "full-disk": {"rank", "writes"}}


class Fault(NamedTuple):
    """One fault: the process it happens in and the first step (from 1) it happens at."""

    kind: str
    rank: int = 0
    step: int = 1
    seconds: float = 0.0
    file: str = "*"
    writes: int = 1


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Faults of `HERD_FAULT`. Raises HerdError with the grammar for anything else."""
    return tuple(_parse(part.strip()) for part in text.split(";")) if text.strip() else ()


def _parse(text: str) -> Fault:
    kind, *settings = text.split(":")
    given = {key: value for key, _, value in (setting.partition("=") for setting in settings)}
    needed = _NEEDED.get(kind)
    if needed is None or not needed <= given.keys() <= needed | _ALLOWED.get(kind, set()) or len(given) < len(settings):
        raise HerdError(f"{VARIABLE}: '{text}' is not one of {GRAMMAR}")
    try:
        numbers = {key: int(given[key]) for key in ("rank", "step", "writes") if key in given}
        seconds = float(given.get("seconds", 0))
    except ValueError:
        raise HerdError(f"{VARIABLE}: '{text}': rank, step, writes and seconds are numbers") from None
    if not 0 <= seconds < float("inf") or numbers.get("rank", 0) < 0 or min(numbers.values(), default=1) < 0:
        raise HerdError(f"{VARIABLE}: '{text}': rank, step, writes and seconds are not negative")
    return Fault(kind, seconds=seconds, file=given.get("file", "*"), **numbers)


class Faults:
    """The faults of one process.

    `folder` must survive a restart (the folder of checkpoints does): it holds the marks of faults that fired, and the
    checkpoints that `flip` damages.
    """

    def __init__(self, faults: Sequence[Fault], rank: int, folder: Path) -> None:
        self._folder = folder
        self._mine = tuple((f, index) for index, f in enumerate(faults) if f.rank == rank)
        self._step = 0
        self._failed = 0

    @staticmethod
    def from_environment(rank: int, folder: Path) -> Faults:
        """Faults of `HERD_FAULT` for this process. Raises HerdError where it does not follow the grammar."""
        return Faults(parse_faults(os.environ.get(VARIABLE, "")), rank, folder)

    def at(self, step: int) -> None:
        """To be called before each step, counted from 1: whatever is due happens here."""
        self._step = step
        for fault, index in self._mine:
            if fault.kind == "slow" and step >= fault.step:
                time.sleep(fault.seconds)
            elif fault.kind in ("kill", "hang", "flip") and step >= fault.step and self._first_time(fault, index):
                self._happen(fault)

    def writing(self, file: Path) -> None:
        """To be called before a file of a checkpoint is written. Raises OSError (ENOSPC) where `full-disk` is due."""
        for fault, index in self._mine:
            if fault.kind != "full-disk" or self._step < fault.step:
                continue
            if (0 < self._failed < fault.writes) or (self._failed == 0 and self._first_time(fault, index)):
                self._failed += 1
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (made up by {VARIABLE})", str(file))

    def _first_time(self, fault: Fault, index: int) -> bool:
        mark = self._folder / f"fault-{index}-{fault.kind}.fired"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with mark.open("x") as stream:
                os.fsync(stream.fileno())
        except FileExistsError:
            return False
        return True

    def _happen(self, fault: Fault) -> None:
        if fault.kind == "flip":
            file = flip_bit(self._folder, fault.file)
            warn(f"{VARIABLE}: at step {self._step} " + (f"a bit of {file} was flipped" if file else "nothing to flip"))
            return
        warn(f"{VARIABLE}: {fault.kind} of rank {fault.rank} before step {self._step}")
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(3600)


def flip_bit(folder: Path, pattern: str = "*") -> Path | None:
    """Flip a bit in the middle of a file of the newest checkpoint in a folder; the file, or None where there is none.

    A checkpoint is what a folder holds with a name `step-...`: files side by side, or a folder of files. Files are
    matched by their own names; of several the first by name is taken.
    """
    steps = {entry.name.split(".")[0] for entry in folder.glob("step-*")}
    for newest in sorted(steps, reverse=True):
        entries = sorted(folder.glob(f"{newest}*"))
        files = [f for entry in entries for f in (sorted(entry.rglob("*")) if entry.is_dir() else [entry])]
        for file in files:
            if file.is_file() and file.match(pattern) and file.stat().st_size:
                with file.open("r+b") as stream:
                    stream.seek(file.stat().st_size // 2)
                    byte = stream.read(1)[0]
                    stream.seek(-1, os.SEEK_CUR)
                    stream.write(bytes([byte ^ 1]))
                return file
    return None
