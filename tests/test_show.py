"""Tables in the terminal of runs that have adopted members, which have no plan of pre-training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from herd.cli import main

SPEC = importlib.util.spec_from_file_location(
    "test_report_assistant", Path(__file__).with_name("test_report_assistant.py")
)
assert SPEC is not None and SPEC.loader is not None
fakes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fakes)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_members_shows_an_adopted_one_with_licence_memory_and_last_accuracy(tmp_path: Path, capsys: Any) -> None:
    run = fakes.FakeAssistant(tmp_path / "run").adopt().ask().round()
    assert main(["members", "--run", str(run.path)]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    memory = 2 * 134_515_008 + 8192 * 2 * 30 * 3 * 64 * 2  # bf16 weights, and keys and values of a whole context
    for part in (
        "analyst",
        "135M",
        "8192",
        "apache-2.0",
        "66.7% [48.8%, 80.8%]",
        "after-dpo",
        f"{memory / 1e6:.1f} MB",
    ):
        assert part in row


def test_members_of_both_kinds_before_anything_was_trained(tmp_path: Path, capsys: Any) -> None:
    run = fakes.FakeAssistant(tmp_path / "run").adopt(fakes.RECIPE + fakes.SCRATCH)
    assert main(["members", "--run", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not trained yet") == 2 and "apache-2.0" in printed
    assert main(["status", "--verify", "--run", str(run.path)]) == 0
    assert "adopt-analyst" in capsys.readouterr().out


def test_a_recipe_of_adopted_members_only_is_checked_without_a_ladder(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(fakes.RECIPE)
    assert main(["recipe", "check", str(path)]) == 0
    assert "240 dialogs of up to 8 questions" in capsys.readouterr().out
