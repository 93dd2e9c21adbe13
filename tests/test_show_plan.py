"""`herd plan`: tables, reasons, lines for the recipe, pictures, and one line for what can't be planned."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from herd.cli import main
from herd.model.config import LLAMA3
from herd.pretrain.plan import Stretch, TrainingPlan
from herd.recipe_compute import Mesh
from herd.show_plan import days, schedule_lines, timeline
from herd.show_plan_picture import draw_plan
from herd.train.gpus import CARDS
from herd.train.optim import Schedule
from herd.train.planner import plan_step
from herd.train.planner_setting import Setting

H100 = CARDS["h100"]
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def plan(capsys: Any, *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_the_papers_mesh_is_among_the_best_on_8192_gpus(capsys: Any) -> None:
    printed = plan(capsys, str(RECIPES / "llama3.toml"), "--member", "405b", "--gpus", "8192")
    assert "405b: 406B parameters, 15.6T tokens; 16.8M a step" in printed and "8,192 h100 of 80.0 GB" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert any(row[1:6] == ["8", "1", "16", "64", "8"] for row in rows)  # Table 4's TP, CP, PP, DP, and V
    assert "slower: " in printed and "long-context step, 131,072 tokens" in printed and "70b" not in printed


def test_every_member_is_planned_and_its_compute_loads_again(capsys: Any, tmp_path: Path) -> None:
    text = (RECIPES / "llama3.toml").read_text()
    printed = plan(capsys, str(RECIPES / "llama3.toml"), "--gpus", "64")
    for member in ("8b", "70b", "405b"):
        assert f"{member}: " in printed
    compute = printed[printed.index("[compute]") :].split("\n\n")[0]
    start, end = text.index("\n[compute]"), text.index("\n[provenance]")
    (tmp_path / "recipe.toml").write_text(text[:start] + "\n" + compute + "\n" + text[end:])
    again = plan(capsys, str(tmp_path / "recipe.toml"), "--member", "8b")
    assert "64 h100" in again  # as many as its mesh has
    rows = [line.split() for line in again.splitlines()]
    best, own = (next(row for row in rows if row and row[0] == name) for name in ("1", "recipe"))
    assert best[1:] == own[1:]


def test_what_cannot_be_planned_is_said_in_a_line(capsys: Any) -> None:
    printed = plan(capsys, str(RECIPES / "laptop.toml"))
    assert "wait for the ladder's forecast" in printed
    assert "nothing fits 80.0 GB" in plan(capsys, str(RECIPES / "llama3.toml"), "--member", "405b", "--gpus", "8")
    for arguments, said in (
        (["--member", "9b"], "members: 8b, 70b, 405b"),
        (["--gpu", "abacus"], "expected one of h100"),
        (["--gpus", "0"], "expected at least 1"),
    ):
        assert main(["plan", str(RECIPES / "llama3.toml"), *arguments]) == 1
        assert said in capsys.readouterr().err


def size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_pictures_are_drawn_one_for_each_member_that_fits(capsys: Any, tmp_path: Path) -> None:
    recipe = str(RECIPES / "llama3.toml")
    plan(capsys, recipe, "--member", "8b", "--gpus", "8", "--picture", str(tmp_path / "new" / "one.png"))
    assert "drawn: " in plan(capsys, recipe, "--gpus", "32", "--picture", str(tmp_path / "all.png"))
    assert {path.name for path in tmp_path.rglob("*.png")} == {"one.png", "all-8b.png", "all-70b.png"}


def test_a_pipeline_has_its_timeline_above_a_bar_for_each_rank(tmp_path: Path) -> None:
    flat, piped = (plan_step(Setting(LLAMA3["8B"], mesh, 8192, 4), H100) for mesh in (Mesh(tp=8), Mesh(tp=2, pp=4)))
    for name, one in (("flat", flat), ("piped", piped)):
        draw_plan(one, timeline(one), name, tmp_path / f"{name}.png")
    assert size(tmp_path / "piped.png")[1] > 2 * size(tmp_path / "flat.png")[1]


def test_a_small_schedule_is_drawn_as_text() -> None:
    lines = [line.plain for line in schedule_lines(plan_step(Setting(LLAMA3["8B"], Mesh(tp=8, pp=4), 8192, 6), H100))]
    assert lines[1:] == [
        " 0 0123······0<41<52<·3<·4<·5<",
        " 1 ·012····0<31<42<53<·4<·5<··",
        " 2 ··01··0<21<32<43<54<·5<····",
        " 3 ···00<11<22<33<44<55<······",
    ]
    assert not schedule_lines(plan_step(Setting(LLAMA3["8B"], Mesh(tp=8), 8192, 6), H100))


def test_the_timeline_lasts_as_long_as_the_planned_pipeline() -> None:
    one = plan_step(Setting(LLAMA3["70B"], Mesh(tp=8, pp=4), 8192, 8, stages_per_rank=2), H100)
    pipeline = one.seconds.total - one.seconds.jitter - one.seconds.dp
    assert max(slots[-1].end for slots in timeline(one)) == pytest.approx(pipeline, rel=0.05)


def test_days_count_each_stretch_of_the_ramp_at_its_own_speed() -> None:
    one = plan_step(Setting(LLAMA3["8B"], Mesh(dp=8), 8192, 2), H100)
    short = plan_step(Setting(LLAMA3["8B"], Mesh(dp=8), 4096, 2), H100)
    ramp = (Stretch(100, 16, 4096), Stretch(100, 16, 8192), Stretch(100, 15, 8192))  # 8 ranks do not divide the last
    training = TrainingPlan(LLAMA3["8B"], ramp, Schedule(1e-3, 1e-4, 1, 300), 1.0)
    seconds = 100 * short.seconds.total + (1 + 15 / 16) * 100 * one.seconds.total
    assert days(one, training) == pytest.approx(seconds / 86_400)


def test_a_recipe_that_cuts_one_member_well_says_so_of_the_others(capsys: Any) -> None:
    """One [compute] for all members: the 405B's 128 stages are more than the 8B has layers."""
    printed = plan(capsys, str(RECIPES / "llama3.toml"), "--member", "8b")
    assert "recipe  [compute] pipeline: 128 stages do not fit 32 layers" in printed and "16,384 h100" in printed
