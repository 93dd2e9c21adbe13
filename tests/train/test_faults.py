"""The fault injector does what it is told, once, and refuses what it does not understand."""

import errno
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from herd.console import HerdError
from herd.train.faults import Fault, Faults, flip_bit, parse_faults


def faults(text: str, folder: Path, rank: int = 0) -> Faults:
    return Faults(parse_faults(text), rank, folder)


def test_the_grammar_of_the_documentation_is_understood():
    text = "kill:rank=1:step=7; hang:rank=1:step=5;slow:rank=2:seconds=0.3;flip:step=8:file=*.json;full-disk:step=4"
    assert parse_faults(text) == (
        Fault("kill", 1, 7),
        Fault("hang", 1, 5),
        Fault("slow", 2, 1, 0.3),
        Fault("flip", 0, 8, file="*.json"),
        Fault("full-disk", 0, 4),
    )
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "kill:rank=1",
        "kill:rank=1:step=x",
        "kill:rank=-1:step=2",
        "kill:rank=1:step=2:step=3",
        "slow:rank=1:seconds=nan",
        "slow:rank=1:seconds=1:file=a",
        "burn:rank=1:step=2",
        "kill:rank=1:step=2;",
    ],
)
def test_anything_else_is_refused_with_the_grammar_or_the_key(text):
    with pytest.raises(HerdError, match="HERD_FAULT: '"):
        parse_faults(text)


def test_the_environment_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HERD_FAULT", "full-disk:step=1")
    named = Faults.from_environment(0, tmp_path)
    named.at(1)
    with pytest.raises(OSError, match="No space left"):
        named.writing(tmp_path / "file")


def test_a_kill_comes_before_its_step_and_not_again_after_a_restart(tmp_path):
    def steps(rank: int, reached: Path) -> None:
        mine = faults("kill:rank=1:step=3", tmp_path, rank)
        for step in range(1, 6):
            mine.at(step)
            reached.write_text(str(step))

    context = multiprocessing.get_context("fork")
    for rank, expected, code in ((0, "5", 0), (1, "2", -signal.SIGKILL), (1, "5", 0)):
        reached = tmp_path / "reached"
        process = context.Process(target=steps, args=(rank, reached))
        process.start()
        process.join(30)
        assert (reached.read_text(), process.exitcode) == (expected, code)


def test_a_hung_process_stays_hung(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=lambda: faults("hang:rank=0:step=1", tmp_path).at(1))
    process.start()
    process.join(0.5)
    assert process.exitcode is None
    process.kill()
    process.join()


def test_a_slow_process_is_slow_at_every_step_from_the_one_named(tmp_path, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    mine = faults("slow:rank=0:seconds=0.3:step=3", tmp_path)
    for step in range(1, 6):
        mine.at(step)
    faults("slow:rank=1:seconds=0.3", tmp_path).at(1)
    assert slept == [0.3] * 3


def test_a_full_disk_is_found_by_as_many_writes_as_named(tmp_path):
    mine = faults("full-disk:step=4:writes=2", tmp_path)
    mine.at(3)
    mine.writing(tmp_path / "a")
    mine.at(4)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left") as raised:
            mine.writing(tmp_path / "b")
        assert raised.value.errno == errno.ENOSPC
    mine.writing(tmp_path / "c")
    restarted = faults("full-disk:step=4:writes=2", tmp_path)
    restarted.at(4)
    restarted.writing(tmp_path / "d")


def test_a_flip_changes_one_bit_of_the_newest_checkpoint(tmp_path):
    for step in (5, 6):
        (tmp_path / f"step-{step:09d}.json").write_bytes(b"{}" * 10)
        (tmp_path / f"step-{step:09d}").mkdir()
        (tmp_path / f"step-{step:09d}" / "rank-0.safetensors").write_bytes(bytes(1000))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    mine = faults("flip:step=8:file=*.safetensors", tmp_path)
    mine.at(7)
    mine.at(8)
    mine.at(9)
    changed = [file for file, old in before.items() if file.read_bytes() != old]
    assert changed == [tmp_path / "step-000000006" / "rank-0.safetensors"]
    old, new = before[changed[0]], changed[0].read_bytes()
    assert bin(int.from_bytes(old, "big") ^ int.from_bytes(new, "big")).count("1") == 1
    assert flip_bit(tmp_path / "nothing") is None
