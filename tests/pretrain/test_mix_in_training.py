"""The recipe's mix reaches every step of training, and a search's choice takes the place of its shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from herd.artifact import find, publish
from herd.data.shards import load_shards
from herd.pretrain.plan import late_mixture, mixture_for, training_mix
from herd.recipe import load_recipe
from herd.recipe_data import Mix, MixSearch
from herd.stages_scratch import scratch_stages

LAPTOP = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "laptop.toml")
SEARCH = MixSearch(
    candidates={"more-code": {"code": 60, "general": 40}, "even": {"code": 50, "general": 50}},
    budgets_flops=[1e10, 3e10, 9e10],
)


def stages(mix: Mix):
    assert LAPTOP.data is not None
    recipe = LAPTOP.model_copy(update={"data": LAPTOP.data.model_copy(update={"mix": mix})})
    return {stage.name: stage for stage in scratch_stages(recipe, Path.cwd())}


def settings_of(stage) -> str:
    return json.dumps(stage.settings.model_dump(mode="json"), sort_keys=True)


def test_a_search_stands_between_shards_and_all_training():
    without, planned = stages(Mix()), stages(Mix(search=SEARCH))
    assert set(planned) - set(without) == {"mix"}
    users = {name for name, stage in planned.items() if "mix" in stage.inputs}
    steps = ("pretrain", "long-context", "anneal")
    assert users == {"ladder", *(name for name in planned if name.rsplit("-", 1)[0] in steps)}


def test_shares_change_what_trains_and_nothing_else():
    before, after = stages(Mix()), stages(Mix(shares={"code": 1, "general": 2}))
    changed = {name for name in before if settings_of(before[name]) != settings_of(after[name])}
    assert {"ladder", "pretrain-flagship", "anneal-small"} <= changed
    assert not changed & {"sources", "tokenizer", "shards", "forecast"}


def test_the_chosen_shares_are_trained_on(shards, tmp_path):
    with publish(tmp_path, "mix", "0" * 64, {"inputs": {}}, {}) as out:
        out.write_json("mix.json", {"shares": {"code": 10.0, "general": 90.0}})
    artifact = find(tmp_path, "mix", "0" * 64)
    assert artifact is not None
    chosen = training_mix(Mix(search=SEARCH), {"mix": artifact})
    mixture, rows = mixture_for(load_shards(shards.path), chosen, 5_000)
    assert mixture.start == pytest.approx({"code/code": 0.1, "general/docs": 0.9})
    assert {row.rule for row in rows} == {"as asked"}
    assert training_mix(chosen, {}) == chosen


def test_later_steps_go_on_with_the_late_shares(shards):
    mix = Mix(shares={"code": 90, "general": 10}, late_shares={"code": 20, "general": 80}, max_epochs=100)
    late = late_mixture(load_shards(shards.path), mix, 5_000)
    assert late.start == late.end == pytest.approx({"code/code": 0.2, "general/docs": 0.8})
