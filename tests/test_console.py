"""What a person reads: numbers said shortly and truly, plain lines without a terminal, bars of other processes."""

import io
import pickle
import queue
import re
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from herd import console
from herd.console import Bar, Event, Terminal, duration, human_bytes, human_count, progress, redirect, say, warn

BYTE_UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
COUNT_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@pytest.fixture
def events():
    seen: list[Event] = []
    redirect(seen.append)
    yield seen
    redirect(console.terminal)


@given(st.floats(0, 9e14))
@example(999.7)
@example(999_950.0)
@example(999_999_999.0)
def test_bytes_read_back_to_what_they_were_in_at_most_three_digits_and_one_decimal(count):
    text = human_bytes(count)
    found = re.fullmatch(r"(\d{1,3}(?:\.\d)?) (B|kB|MB|GB|TB)", text)
    assert found, text
    assert float(found[1]) * BYTE_UNITS[found[2]] == pytest.approx(count, rel=0.051, abs=0.51)
    assert ("." in found[1]) == (found[2] != "B")


@given(st.integers(0, 9 * 10**14))
def test_counts_read_back_to_what_they_were_in_three_digits(count):
    text = human_count(count)
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,2})?)([KMBT]?)", text)
    assert found, text
    assert float(found[1]) * COUNT_UNITS[found[2]] == pytest.approx(count, rel=0.0051)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (999_499, "999K"),
        (999_500, "1M"),
        (999_999_999, "1B"),
        (87_200, "87.2K"),
        (8_030_261_248, "8.03B"),
    ],
)
def test_counts_beside_a_unit(count, text):
    assert human_count(count) == text


@given(st.floats(0, 1e7))
def test_durations_read_back_to_what_they_were(seconds):
    text = duration(seconds)
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if text.endswith("h") or " h " in text:
        assert re.fullmatch(r"\d+ h [0-5]\d m", text) and numbers[0] >= 1
        assert abs(numbers[0] * 3600 + numbers[1] * 60 - seconds) <= 60.5
    elif " m " in text:
        assert re.fullmatch(r"[1-5]?\d m [0-5]\d s", text) and 1 <= numbers[0] <= 59
        assert abs(numbers[0] * 60 + numbers[1] - seconds) <= 0.5
    else:
        assert re.fullmatch(r"[1-5]?\d s", text) and abs(numbers[0] - seconds) <= 0.5


@pytest.fixture
def plain(monkeypatch, capsys):
    """A terminal that is none, whose clock stands where the test puts it; and what it has written."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return Terminal(), clock, lambda: capsys.readouterr().err


def test_without_a_terminal_a_bar_is_a_line_now_and_then(plain):
    terminal, clock, written = plain
    terminal(Event("open", "training", (1, 1), 200.0))
    for step in range(1, 61):
        clock.now += 1.0
        terminal(Event("update", "loss 3.1", (1, 1), 200.0, float(step)))
    terminal(Event("close", "", (1, 1)))
    text = written()
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[0] == "  training: 5% loss 3.1, 3 m 10 s left"
    assert "\x1b" not in text and "\r" not in text


def test_a_bar_of_unknown_length_counts(plain):
    terminal, clock, written = plain
    terminal(Event("open", "reading", (1, 1), 0.0))
    clock.now += 11
    terminal(Event("update", "documents", (1, 1), 0.0, 12345.0))
    assert written() == "  reading: 12,345 documents\n"


def test_a_bar_whose_total_grows_shows_its_share(plain):
    """The ladder learns only on its way how many cells it needs."""
    terminal, clock, written = plain
    terminal(Event("open", "cells", (1, 1), 0.0))
    clock.now += 11
    terminal(Event("update", "3 of 12", (1, 1), 12.0, 3.0))
    assert written() == "  cells: 25% 3 of 12, 33 s left\n"


def test_messages_are_lines_whatever_they_hold(plain):
    terminal, _, written = plain
    terminal(Event("say", "[bold]not markup[/bold] %s {}"))
    terminal(Event("warn", "careful"))
    assert written() == "[bold]not markup[/bold] %s {}\nwarning: careful\n"


def test_updates_of_bars_that_are_closed_or_stopped_are_ignored(plain):
    terminal, clock, written = plain
    terminal(Event("open", "a", (1, 1), 2.0))
    terminal.stop()
    clock.now += 60
    terminal(Event("update", "", (1, 1), 2.0, 1.0))
    terminal(Event("close", "", (1, 1)))
    assert written() == ""


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_text_appears_above_live_bars_and_they_go_away(monkeypatch):
    stream = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    terminal(Event("open", "one", (1, 1), 10.0))
    terminal(Event("open", "two", (2, 1), 10.0))  # another process, the same number
    terminal(Event("update", "note", (2, 1), 10.0, 5.0))
    terminal(Event("say", "[red]plain[/red]"))
    terminal(Event("close", "", (1, 1)))
    terminal(Event("update", "late", (1, 1), 10.0, 9.0))
    terminal(Event("close", "", (2, 1)))
    terminal(Event("say", "after"))
    assert "[red]plain[/red]" in stream.getvalue() and stream.getvalue().endswith("after\n")


def test_events_of_another_process_arrive_whole(events):
    """What a worker's queue carries: the event pickled, and maybe a plain tuple of it."""
    channel: queue.Queue[bytes] = queue.Queue()
    redirect(lambda event: channel.put(pickle.dumps(tuple(event))))
    with progress("cell", 10) as bar:
        bar.update(4, "loss 3")
        say("hello")
        warn("careful")
    redirect(events.append)
    while not channel.empty():
        console.deliver(Event(*pickle.loads(channel.get())))
    assert [(e.kind, e.text) for e in events] == [
        ("open", "cell"),
        ("update", "loss 3"),
        ("say", "hello"),
        ("warn", "careful"),
        ("close", ""),
    ]
    assert len({e.bar for e in events if e.kind in ("open", "update", "close")}) == 1
    assert (events[1].total, events[1].done) == (10, 4)


def test_a_bar_closes_when_its_work_fails_and_is_quiet_between(events):
    with pytest.raises(RuntimeError), progress("work", 1000) as bar:
        for i in range(1000):
            bar.update(i)
        raise RuntimeError
    assert [e.kind for e in events] == ["open", "update", "close"]


def test_bars_are_told_apart(events):
    first, second = Bar("a", 1), Bar("b", 1)
    assert events[0].bar != events[1].bar
    first.close()
    second.close()
