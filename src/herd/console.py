"""What herd says while it works: sentences, progress bars, and the one kind of error that is shown as a line.

Every message is an event sent to a sink. In the main process the sink is the terminal (rich bars there, plain lines
where standard error is not a terminal); in a worker process it is a queue that the main process reads, so that bars
of parallel work appear side by side.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PLAIN_LINE_EVERY_SECONDS = 10.0


class HerdError(Exception):
    """A problem that a person can act on. The command line prints its text as one line and exits with status 1."""


def one_line(error: BaseException) -> str:
    """The text of an error from elsewhere as one line of at most 200 characters; without text, the error's name."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


class Event(NamedTuple):
    """One message. `kind` is say, warn, open, update or close; bars are told apart by `bar`, unique over processes."""

    kind: str
    text: str = ""
    bar: tuple[int, int] = (0, 0)
    total: float = 0.0
    done: float = 0.0


class Terminal:
    """Shows events on standard error: rich progress bars on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plain: dict[tuple[int, int], list[Any]] = {}  # bar -> [title, total, started, last line]
        self._live: Any = None
        self._tasks: dict[tuple[int, int], Any] = {}

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.kind in ("say", "warn"):
                self._print(("warning: " if event.kind == "warn" else "") + event.text)
            elif sys.stderr.isatty():
                self._bar(event)
            else:
                self._line(event)

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _bar(self, event: Event) -> None:
        from rich import progress
        from rich.console import Console

        if event.kind == "open":
            if self._live is None:
                self._live = progress.Progress(
                    progress.TextColumn("{task.description}"),
                    progress.BarColumn(bar_width=24),
                    progress.TaskProgressColumn(),
                    progress.TextColumn("{task.fields[note]}"),
                    progress.TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                )
                self._live.start()
            self._tasks[event.bar] = self._live.add_task(event.text, total=event.total or None, note="")
        elif event.bar not in self._tasks:
            return
        elif event.kind == "update":
            self._live.update(self._tasks[event.bar], total=event.total or None, completed=event.done, note=event.text)
        else:
            self._live.remove_task(self._tasks.pop(event.bar))
            if not self._tasks:
                self._live.stop()
                self._live = None

    def _line(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "open":
            self._plain[event.bar] = [event.text, event.total, now, now]
            return
        state = self._plain.get(event.bar)
        if state is None:
            return
        if event.kind == "close":
            del self._plain[event.bar]
            return
        title, _, started, last = state
        total = event.total
        if now - last < PLAIN_LINE_EVERY_SECONDS or not event.done:
            return
        state[3] = now
        left = f", {duration((now - started) * (total - event.done) / event.done)} left" if total else ""
        share = f"{event.done / total:.0%}" if total else f"{event.done:,.0f}"
        self._print(f"  {title}: {share} {event.text}{left}")

    def stop(self) -> None:
        """Take the bars off the screen, as before a prompt or at the end."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None
            self._tasks.clear()
            self._plain.clear()


terminal = Terminal()
_sink: Callable[[Event], None] = terminal
_numbers = itertools.count(1)


def redirect(sink: Callable[[Event], None]) -> None:
    """Send this process's events to `sink` instead of the terminal (worker processes)."""
    global _sink
    _sink = sink


def deliver(event: Event) -> None:
    """Show an event that another process sent."""
    _sink(event)


def say(text: str) -> None:
    """Tell the person something worth a line."""
    _sink(Event("say", text))


def warn(text: str) -> None:
    """Tell the person something that went wrong without stopping the work."""
    _sink(Event("warn", text))


class Bar:
    """One progress bar, in the unit that its user counts in."""

    UPDATE_EVERY_SECONDS = 0.2

    def __init__(self, title: str, total: float) -> None:
        self._id = (os.getpid(), next(_numbers))
        self._last = 0.0
        self.total = total
        _sink(Event("open", title, self._id, total))

    def update(self, done: float, note: str = "") -> None:
        """Move to `done` of the total; `note` (a rate, a loss) is shown beside the bar."""
        now = time.monotonic()
        if now - self._last >= self.UPDATE_EVERY_SECONDS:
            self._last = now
            _sink(Event("update", note, self._id, self.total, done))

    def close(self) -> None:
        """Take the bar away."""
        _sink(Event("close", "", self._id))


@contextlib.contextmanager
def progress(title: str, total: float = 0.0) -> Iterator[Bar]:
    """A progress bar for the length of a `with` block; `total` 0 means unknown."""
    bar = Bar(title, total)
    try:
        yield bar
    finally:
        bar.close()


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 2 m 05 s, 3 h 10 m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def human_bytes(count: float) -> str:
    """Bytes in decimal units: 812 B, 4.1 kB, 23.5 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if round(count, 0 if unit == "B" else 1) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def human_count(count: float) -> str:
    """A count of parameters or tokens: 812, 87.2K, 1.15M, 8.03B."""
    for unit in ("", "K", "M", "B", "T"):
        if abs(count) < 999.5 or unit == "T":
            return f"{count:.0f}" if unit == "" or abs(count) >= 999.5 else f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")
