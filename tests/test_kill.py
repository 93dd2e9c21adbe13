"""A run killed at any moment and started again ends with the artifacts of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smoke.toml"
KILLS = 10

# Publishes as nobody should: straight under the final name, the marker first, and dies at the first stage's end.
SABOTAGE = """
import contextlib, os, shutil, signal, sys
import herd.artifact as artifact, herd.run as run

@contextlib.contextmanager
def publish(folder, stage, key, asked, recorded):
    final = folder / artifact.folder_name(stage, key)
    final.mkdir(parents=True, exist_ok=True)
    draft = artifact.Draft(final, folder / ".drafts" / "work")
    draft.work.mkdir(parents=True, exist_ok=True)
    recorded["seconds"] = 0
    artifact._seal(draft, stage, key, asked, recorded)
    yield draft
    if {die}:
        os.kill(os.getpid(), signal.SIGKILL)
    (final / artifact.MANIFEST).unlink()
    artifact._seal(draft, stage, key, asked, recorded)

if {sabotaged}:
    run.publish = publish
elif {die}:
    artifact._seal = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
from herd.cli import main
sys.exit(main(["run", {recipe!r}, "--out", {out!r}, "--until", "sources"]))
"""


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "herd", "run", str(RECIPE), "--out", str(out)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # whoever runs the tests may ignore Ctrl-C, as a shell makes its background jobs do
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def contents(out: Path) -> dict[str, str]:
    """Content hash of every stage's newest artifact."""
    current = json.loads((out / "current.json").read_text())["artifacts"]
    return {
        stage: json.loads((out / folder / "manifest.json").read_text())["content"] for stage, folder in current.items()
    }


def claims(out: Path) -> dict[str, float]:
    """The ledger's newest value of each claim that is no timing."""
    rows = [json.loads(line)["claim"] for line in (out / "evidence.jsonl").read_text().splitlines()]
    return {row["id"]: row["value"] for row in rows if "per-second" not in row["id"]}


def children(pid: int) -> list[int]:
    lines = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in lines.split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_killed_ten_times_and_resumed_gives_the_same_artifacts(tmp_path, smoke_run):
    draw, kills = random.Random(0), 0
    for _ in range(100):
        process = start(tmp_path / "killed")
        if kills < KILLS:
            time.sleep(draw.uniform(0.5, 10.0))
        else:
            process.wait(timeout=400)
        if process.poll() is None:
            workers = children(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            deadline = time.monotonic() + 10
            while any(map(alive, workers)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(map(alive, workers)), "workers outlive the run that started them"
        elif kills >= KILLS:
            assert process.returncode == 0, process.stderr.read().decode()  # type: ignore[union-attr]
            break
        else:  # finished before ten kills: go on killing runs that make late stages anew
            for folder in sorted((tmp_path / "killed").glob("*-flagship-*")):
                (folder / "manifest.json").unlink()
    assert kills == KILLS
    assert contents(tmp_path / "killed") == contents(smoke_run)
    assert claims(tmp_path / "killed") == claims(smoke_run)
    assert not [p for p in (tmp_path / "killed" / ".drafts").iterdir() if not p.name.endswith(".work")]


@pytest.mark.parametrize("sabotaged", [False, True])
def test_the_comparison_sees_a_stage_that_is_not_atomic(tmp_path, sabotaged):
    """Killed while publishing: our way the resumed run equals the quiet one, the sabotaged way it must not."""

    def go(name: str, die: bool) -> int:
        code = SABOTAGE.format(die=die, sabotaged=sabotaged, recipe=str(RECIPE), out=str(tmp_path / name))
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, timeout=200
        ).returncode

    assert go("quiet", die=False) == 0
    assert go("killed", die=True) == -signal.SIGKILL
    resumed = go("killed", die=False)
    equal = resumed == 0 and contents(tmp_path / "killed") == contents(tmp_path / "quiet")
    assert equal is not sabotaged


def test_a_second_run_waits_for_nobody_and_says_who_writes(tmp_path):
    first = start(tmp_path)
    try:
        while not (tmp_path / "lock").exists() or not (tmp_path / "lock").read_text():
            time.sleep(0.05)
            assert first.poll() is None
        second = start(tmp_path)
        assert second.wait(timeout=60) == 1
        message = second.stderr.read().decode()  # type: ignore[union-attr]
        assert str(first.pid) in message and message.count("\n") == 1
    finally:
        first.kill()
        first.wait()


def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = start(tmp_path)
    while not (tmp_path / "recipe.toml").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    message = process.stderr.read().decode()  # type: ignore[union-attr]
    assert "go on with: herd run" in message and "Traceback" not in message
