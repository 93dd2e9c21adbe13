"""The verbs: what is offered, how fast help is, and what a person sees of a recipe."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from herd.cli import main, parser
from herd.model.config import LLAMA3
from herd.recipe import load_recipe
from herd.show import leaves, origin

ROOT = Path(__file__).resolve().parents[1]


def test_help_imports_nothing_heavy():
    """What keeps `herd --help` under 0.3 s."""
    code = "import sys; from herd.cli import parser; parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "pyarrow", "rich", "matplotlib"} & set(loaded)


def test_the_verbs_of_the_readme_parse():
    lines = [line.split("#")[0] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("herd ")]
    assert len(lines) >= 8
    for line in lines:
        assert callable(parser().parse_args(shlex.split(line)[1:]).verb)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_checks(recipe, capsys):
    assert main(["recipe", "check", str(recipe)]) == 0
    assert capsys.readouterr().out


def test_the_papers_recipe_prints_exact_parameter_counts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipe", "check", str(ROOT / "recipes" / "llama3.toml")]) == 0
    printed = capsys.readouterr().out
    for name in ("8B", "70B", "405B"):
        assert f"{LLAMA3[name].parameters:,}" in printed
    assert "405,853,388,800" in printed


def test_every_value_of_the_papers_recipe_says_where_it_comes_from():
    recipe = load_recipe(ROOT / "recipes" / "llama3.toml")
    given = [key for key, _, given in leaves(recipe) if given]
    assert [key for key in given if origin(recipe, key, True) == "recipe"] == []
    known = set(given) | {".".join(key.split(".")[:n]) for key in given for n in range(1, 9)}
    assert [mark for mark in recipe.provenance if mark not in known] == []
