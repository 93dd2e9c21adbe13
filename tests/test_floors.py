"""The house's one structural rule: a room imports only from floors below, a single file from those to its left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "herd"

FLOORS: list[list[str]] = [  # rooms (folders) of one floor don't know each other
    [
        "process",
        "console",
        "intervals",
        "artifact",
        "evidence",
        "recipe_errors",
        "recipe_section",
        "recipe_compute",
        "recipe_data",
        "recipe_posttrain",
        "recipe",
    ],
    ["model", "scaling"],
    ["data"],
    ["train", "infer", "tools"],
    ["evaluate", "safety"],
    ["pretrain", "posttrain"],
    ["deploy"],
    ["report", "stages", "run", "prove", "show", "cli"],
]
IN_ORDER = {0, 7}  # floors of single files, each importing those to its left


def place(module: str) -> tuple[int, int, str]:
    """Floor, position on it, and room of a module path below herd."""
    room = module.split(".")[0]
    several = ("report", "show", "cli")  # one room, several files
    room = next((name for name in several if room.startswith(f"{name}_")), room)
    room = "stages" if room == "stage" or room.startswith("stages_") else room
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor, rooms.index(room), room
    raise AssertionError(f"herd.{module} lives on no floor")


def imports(path: Path) -> set[str]:
    """Modules below herd that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("herd"):
            tail = node.module.removeprefix("herd").lstrip(".")
            found |= {tail} if tail else {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("herd.") for alias in node.names if alias.name.startswith("herd.")}
    return found


def modules() -> list[str]:
    files = [p for p in SOURCE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    return sorted(p.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for p in files)


def allowed(importer: str, imported: str) -> bool:
    floor, position, room = place(importer)
    other_floor, other_position, other_room = place(imported)
    if room == other_room:
        return True
    if floor == other_floor:
        return floor in IN_ORDER and other_position < position
    return other_floor < floor


@pytest.mark.parametrize("module", modules())
def test_imports_only_from_below(module):
    path = SOURCE / (module.replace(".", "/") + ".py")
    wrong = sorted(other for other in imports(path) if not allowed(module, other))
    assert not wrong, f"herd.{module} may not import {wrong}"


def test_the_check_sees_a_wrong_import():
    assert not allowed("data.curate", "train.loop")
    assert not allowed("model.config", "scaling.forecast")
    assert not allowed("console", "recipe")
    assert allowed("cli", "run") and not allowed("run", "cli")


def test_no_module_grows_past_a_sitting():
    long = {
        m: n for m in modules() if (n := len((SOURCE / (m.replace(".", "/") + ".py")).read_text().splitlines())) > 500
    }
    assert not long
