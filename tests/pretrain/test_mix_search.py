"""The mix search finds the best of laws it does not know, says when it can't tell, and goes on where it stopped."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from herd.artifact import Artifact, Draft, publish
from herd.console import HerdError
from herd.pretrain.mix_search import MixSearchSettings, ProxyRun, choose_mix, run_proxies, search_mix
from herd.recipe import Architecture, Batch, Compute, LearningRate, Pretrain, Scaling, Size
from herd.recipe_data import Group, Mix, MixSearch
from herd.scaling.power_law import fit_power_law
from herd.train.hardware import choose_hardware

BUDGETS = (1e9, 3e9, 9e9, 2.7e10)
TARGET = 1e12
# Loss = level * (C / 1e9)^-exponent by group. `late` is behind on every budget tried and ahead at the target.
LAWS = {
    "even": {"code": (3.0, 0.050), "general": (3.4, 0.050)},
    "late": {"code": (3.1, 0.070), "general": (3.5, 0.070)},
    "worst": {"code": (3.6, 0.045), "general": (3.3, 0.045)},
}


def loss(mix: str, group: str, flops: float) -> float:
    level, exponent = LAWS[mix][group]
    return level * (flops / 1e9) ** -exponent


def observed(seed: int, own: float, shared: float = 0.0, mixes=tuple(LAWS)) -> list[ProxyRun]:
    """Runs with noise of their own and noise that the runs of a budget share."""
    random = np.random.default_rng(seed)
    luck = {(group, flops): shared * random.normal() for group in ("code", "general") for flops in BUDGETS}
    return [
        ProxyRun(
            mix,
            flops,
            {g: loss(mix, g, flops) * float(np.exp(own * random.normal() + luck[g, flops])) for g in LAWS[mix]},
        )
        for mix in mixes
        for flops in BUDGETS
    ]


def test_the_best_at_the_target_is_found_though_it_is_behind_on_every_budget_tried():
    for seed in range(20):
        choice = choose_mix(observed(seed, own=0.001), {}, TARGET, seed)
        assert all(loss("late", "code", flops) > loss("even", "code", flops) for flops in BUDGETS[:2])
        assert [one.mix for one in choice.ranking] == ["late", "even", "worst"]
        assert choice.separated
        assert choice.ranking[0].losses["code"] == pytest.approx(loss("late", "code", TARGET), rel=0.02)


def test_luck_that_a_budgets_runs_share_does_not_blur_the_comparison():
    """The shared part is ten times a run's own: the forecasts are wide, their difference is not."""
    found = [choose_mix(observed(seed, own=0.001, shared=0.02), {}, TARGET, seed) for seed in range(20)]
    assert sum(choice.best == "late" and choice.separated for choice in found) >= 19
    wide = [choice.ranking[0].interval.high - choice.ranking[0].interval.low for choice in found]
    lead = [choice.lead_interval.high - choice.lead_interval.low for choice in found]
    assert np.median(wide) > 3 * np.median(lead)


def test_equal_mixes_are_seldom_called_separated(monkeypatch):
    """At 90% confidence a lead of nothing may look like one in one search of ten."""
    monkeypatch.setitem(LAWS, "twin", LAWS["even"])
    found = [choose_mix(observed(seed, 0.005, mixes=("even", "twin")), {}, TARGET, seed) for seed in range(100)]
    assert sum(choice.separated for choice in found) <= 18
    assert 25 <= sum(choice.best == "twin" for choice in found) <= 75


def test_noise_as_large_as_the_difference_is_not_separated():
    found = [choose_mix(observed(seed, own=0.05), {}, TARGET, seed) for seed in range(20)]
    assert sum(choice.separated for choice in found) <= 6
    assert all(choice.lead >= 0 and choice.lead_interval.low < choice.lead_interval.high for choice in found)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(100):
        choice = choose_mix(observed(seed, own=0.003, shared=0.005), {"code": 1}, TARGET, seed)
        low, high = next(one.interval for one in choice.ranking if one.mix == "even")
        hits += low <= loss("even", "code", TARGET) <= high
    assert 75 <= hits <= 99


def test_a_forecast_is_that_of_the_ladders_power_law():
    runs = observed(0, own=0.01)
    mine = [run for run in runs if run.mix == "even"]
    law = fit_power_law([run.flops for run in mine], [run.losses["code"] for run in mine])
    found = next(one for one in choose_mix(runs, {}, TARGET, 0).ranking if one.mix == "even")
    assert found.losses["code"] == pytest.approx(law(TARGET))


def test_weights_decide_what_counts(monkeypatch):
    monkeypatch.setitem(LAWS, "coder", {"code": (2.5, 0.05), "general": (4.5, 0.05)})
    runs = observed(0, own=1e-4, mixes=("even", "coder"))
    assert choose_mix(runs, {"code": 1}, TARGET, 0).best == "coder"
    assert choose_mix(runs, {"general": 1}, TARGET, 0).best == "even"
    assert choose_mix(runs, {"code": 9, "general": 1}, TARGET, 0).best == "coder"


def test_what_is_missing_is_named():
    runs = observed(0, 0.001)
    with pytest.raises(HerdError, match=r"no loss on code, general of 'even' at 2\.7e\+10"):
        choose_mix([run for run in runs if run[:2] != ("even", 2.7e10)], {}, TARGET, 0)
    with pytest.raises(HerdError, match="weights name poems; losses are of code, general"):
        choose_mix(runs, {"poems": 1}, TARGET, 0)
    with pytest.raises(HerdError, match="3 candidates on 2 budgets"):
        choose_mix([run for run in runs if run.flops < 9e9], {}, TARGET, 0)
    with pytest.raises(HerdError, match="0 candidates"):
        choose_mix([], {}, TARGET, 0)


def toy(log: list, mix: str, flops: float) -> dict[str, float]:
    log.append((mix, flops))
    if len(log) == 5:
        raise KeyboardInterrupt
    return {group: loss(mix, group, flops) for group in LAWS[mix]}


def test_a_stopped_search_repeats_no_finished_run(tmp_path):
    log: list = []
    with pytest.raises(KeyboardInterrupt):
        run_proxies(sorted(LAWS), BUDGETS, partial(toy, log), tmp_path)
    runs = run_proxies(sorted(LAWS), BUDGETS, partial(toy, log), tmp_path)
    assert len(log) == len(LAWS) * len(BUDGETS) + 1  # the one that was under way is made again
    assert [flops for _, flops in log] == sorted((flops for _, flops in log), reverse=True)
    assert runs == [ProxyRun(m, c, {g: loss(m, g, c) for g in LAWS[m]}) for m in sorted(LAWS) for c in BUDGETS]


PRETRAIN = Pretrain(
    context_tokens=16,
    architecture=Architecture(head_dim=4, ffn_multiple_of=4),
    learning_rate=LearningRate(peak=0.02),
    batch=Batch(tokens=64),
)
VOCAB = 64


@pytest.fixture(scope="module")
def two_tongues(tmp_path_factory) -> Artifact:
    """Shards of two groups that have nothing in common: one counts in low tokens, the other backwards in high ones."""
    from safetensors.numpy import save_file

    from herd.artifact import find

    random = np.random.default_rng(0)

    def documents(count: int, first: int, sign: int) -> list[np.ndarray]:
        steps = [np.cumsum(random.choice([1, 2], 80, p=[0.9, 0.1])) for _ in range(count)]
        return [np.concatenate(([0], first + sign * s % 30, [1])).astype(np.uint16) for s in steps]

    run = tmp_path_factory.mktemp("tongues")
    with publish(run, "shards", "0" * 64, {"inputs": {}}, {}) as out:
        made = {"code/code": documents(250, 2, 1), "general/docs": documents(250, 33, -1)}
        save_file({name: np.concatenate(some) for name, some in made.items()}, out.folder / "train.safetensors")
        where = {f"{name}.starts": np.cumsum([0, *map(len, some)]) for name, some in made.items()}
        which = {f"{name}.ids": np.arange(len(some), dtype=np.uint64) for name, some in made.items()}
        save_file(where | which, out.folder / "provenance.safetensors")
        held = [pair[i % 2] for i, pair in enumerate([(documents(1, 2, 1)[0], documents(1, 33, -1)[0])] * 12)]
        tensors = {"tokens": np.concatenate(held), "starts": np.cumsum([0, *map(len, held)]), "bytes": np.full(12, 160)}
        save_file(tensors, out.folder / "heldout.safetensors")
        facts = [
            {"id": f"{i:016x}", "kind": "code", "group": ("code", "general")[i % 2], "language": "en"}
            for i in range(12)
        ]
        out.write_json("shards.json", {"schema": 2, "vocab_size": VOCAB, "bos_id": 0, "heldout": facts})
    artifact = find(run, "shards", "0" * 64)
    assert artifact is not None
    return artifact


def test_real_runs_end_to_end(two_tongues, tmp_path, capsys):
    """Three mixes of two languages: with only code's loss counted, the mix of most code wins; by both, the even one."""
    compute = Compute(device="cpu", dtype="float32", processes=2)
    shares: dict[str, dict[Group, float]] = {
        "mostly-code": {"code": 95, "general": 5},
        "even": {"code": 50, "general": 50},
        "mostly-general": {"code": 5, "general": 95},
    }

    def searched(name: str, weights: dict) -> dict:
        settings = MixSearchSettings(
            seed=0,
            mix=Mix(search=MixSearch(candidates=shares, budgets_flops=[1e7, 2e7, 4e7], weights=weights)),
            scaling=Scaling(
                budgets_flops=[1e7, 2e7, 4e7], forecast_flops=1.2e8, grid=[Size(layers=1, dim=d) for d in (8, 12, 16)]
            ),
            pretrain=PRETRAIN,
            max_documents=12,
            hardware=choose_hardware(compute).describe(),
            compute=compute,
        )
        draft = Draft(tmp_path / name, tmp_path / "work")
        draft.folder.mkdir()
        draft.work.mkdir(exist_ok=True)
        search_mix(settings, {"shards": two_tongues}, draft)
        return json.loads((draft.folder / "mix.json").read_text())

    with pytest.raises(HerdError, match="0 held-out documents of reasoning among 12"):
        searched("poor", {"reasoning": 1})
    both = searched("both", {})
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/run-*.json")}
    assert len(kept) == 9
    assert (both["chosen"], both["shares"]) == ("even", shares["even"])
    code = searched("code", {"code": 1})  # from the same runs, which are still there
    assert code["chosen"] == "mostly-code"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    claims = json.loads((tmp_path / "code" / "claims.json").read_text())
    assert {row["id"] for row in claims} == {"mix.lead", *(f"mix.{name}.forecast.loss" for name in shares)}
    assert "mix search: 'mostly-code'" in capsys.readouterr().err
