"""A recipe's mesh, by the command that a cluster would run: torchrun ... -m herd run RECIPE."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke.toml"


@pytest.mark.slow
def test_a_member_is_trained_on_the_recipe_s_mesh_and_goes_on_on_another(tmp_path):
    def herd(recipe: Path, ranks: int, *options: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command += ["-m", "herd", "run", str(recipe), "--out", str(tmp_path / "run"), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HERD_FAULT": fault}
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=600, env=environment, check=False
        )

    def recipe(mesh: str) -> Path:
        path = tmp_path / "smoke.toml"
        compute = f'[compute]\ndevice = "cpu"\nmesh = {mesh}\ncheckpoints = {{ every_seconds = 0.5 }}\n'
        path.write_text(f"{SMOKE.read_text()}\n{compute}")
        return path

    assert herd(recipe("{ cp = 4 }"), 1, "--until", "forecast").returncode == 0
    alone = herd(recipe("{ cp = 4 }"), 1, "--only", "pretrain", "--member", "small")
    assert alone.returncode == 1 and "4 processes asked for, 1 started" in alone.stderr
    other = herd(recipe("{ cp = 4 }"), 2, "--only", "pretrain", "--member", "small")
    assert other.returncode == 1 and "4 processes asked for, 2 started" in other.stderr
    killed = herd(recipe("{ cp = 4 }"), 4, "--only", "pretrain", "--member", "small", fault="kill:rank=1:step=400")
    assert killed.returncode == 1
    done = herd(recipe("{ cp = 2 }"), 2, "--member", "small")
    assert done.returncode == 0, done.stderr[-2000:]
    (manifest,) = tmp_path.glob("run/pretrain-small-*/manifest.json")
    assert json.loads(manifest.read_text())["recorded"]["ranks"] == 2
    speed = manifest.parent / "recorded" / "speed.jsonl"
    steps = [json.loads(line)["step"] for line in speed.read_text().splitlines()]
    assert steps == sorted(set(steps))  # none twice, though some were trained twice
    assert (tmp_path / "run" / "report.html").exists()
