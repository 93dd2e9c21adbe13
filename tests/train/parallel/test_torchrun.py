"""Started as on a cluster: torchrun, four processes, one of them killed; and what a hung one leads to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("elastic.py")
MESH = ("1", "1", "2", "2")


def torchrun(folder: Path, fault: str = "", restarts: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HERD_FAULT": fault, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command += ["--max-restarts", str(restarts), str(SCRIPT), str(folder), *MESH]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return (folder / "result.txt").read_text()


def test_a_killed_worker_is_restarted_and_the_end_is_the_undisturbed_one(tmp_path, undisturbed):
    done = torchrun(tmp_path, "kill:rank=2:step=7", restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "exitcode: -9" in done.stderr  # it was killed
    assert (tmp_path / "result.txt").read_text() == undisturbed


def test_without_restarts_a_killed_worker_ends_the_run_and_starting_again_goes_on(tmp_path, undisturbed):
    assert torchrun(tmp_path, "kill:rank=0:step=5").returncode != 0
    assert not (tmp_path / "result.txt").exists()
    assert torchrun(tmp_path).returncode == 0
    assert (tmp_path / "result.txt").read_text() == undisturbed
