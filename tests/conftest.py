"""What many tests share: one finished run of the smoke recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of recipes/smoke.toml, made once for all test processes. Read it, don't change it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if shared.name.startswith("popen-") else shared
    with FileLock(shared / "smoke.lock"):
        run = shared / "smoke"
        command = [sys.executable, "-m", "herd", "run", "recipes/smoke.toml", "--out", str(run)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
    return run
