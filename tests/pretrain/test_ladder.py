"""The ladder widens until it has seen each minimum from both sides, and goes on where it was stopped."""

from __future__ import annotations

import pytest

from herd.artifact import Draft
from herd.console import HerdError
from herd.pretrain.ladder import LadderSettings, ladder
from herd.recipe import Architecture, Batch, Compute, ExpectedOptimum, LearningRate, Pretrain, Scaling, Size
from herd.train.hardware import choose_hardware

PRETRAIN = Pretrain(
    context_tokens=16,
    architecture=Architecture(head_dim=4, ffn_multiple_of=4),
    learning_rate=LearningRate(peak=0.02),
    batch=Batch(tokens=64),
)


def settings(processes: int = 2, **scaling) -> LadderSettings:
    compute = Compute(device="cpu", dtype="float32", processes=processes)
    given = {
        "budgets_flops": [1e7, 2e7, 4e7],
        "forecast_flops": 1.2e8,
        "cells_per_budget": 4,
        "extra_cells": 2,
        "grid": [Size(layers=1, dim=dim) for dim in (4, 8, 12, 16, 24, 32, 40)],
    }
    return LadderSettings(
        seed=0,
        scaling=Scaling(**(given | scaling)),
        pretrain=PRETRAIN,
        max_documents=10,
        hardware=choose_hardware(compute).describe(),
        compute=compute,
    )


@pytest.fixture
def draft(tmp_path):
    folders = tmp_path / "draft", tmp_path / "work"
    for folder in folders:
        folder.mkdir()
    return Draft(*folders)


def read(draft: Draft, name: str):
    import json

    return json.loads((draft.folder / name).read_text())


def test_a_budget_whose_lowest_loss_is_at_the_edge_gets_more_cells(shards, draft, capsys):
    """Started at the largest sizes, which tiny budgets cannot train, the ladder must walk towards small ones."""
    started = ExpectedOptimum(flops=1e7, parameters=40_000, exponent=0.5)
    ladder(settings(expected_optimum=started), {"shards": shards}, draft)
    cells = read(draft, "cells.json")
    for budget in (1e7, 2e7, 4e7):
        mine = [c for c in cells if c["budget_flops"] == budget]
        losses = [c["loss"] for c in mine]
        bracketed = 0 < losses.index(min(losses)) < len(losses) - 1
        lowest = mine[losses.index(min(losses))]
        assert bracketed or len(mine) == 6 or lowest["dim"] in (4, 40)  # more cells, or no sizes left to add
        assert mine == sorted(mine, key=lambda c: c["parameters"])
    assert len(cells) > 12
    assert "lowest loss at an edge" in capsys.readouterr().err
    assert all(c["spent_flops"] <= c["budget_flops"] for c in cells)


def test_a_stopped_ladder_goes_on_and_ends_the_same(shards, draft, tmp_path):
    """Some cells are there from before; one process or two make no difference."""
    ladder(settings(), {"shards": shards}, draft)
    whole = (draft.folder / "cells.json").read_bytes()
    kept = sorted(draft.work.glob("cell-*.json"))
    for path in kept[::2]:
        path.unlink()
    untouched = {path: path.stat().st_mtime_ns for path in kept[1::2]}
    again = Draft(tmp_path / "again", draft.work)
    again.folder.mkdir()
    ladder(settings(processes=1), {"shards": shards}, again)
    assert (again.folder / "cells.json").read_bytes() == whole
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_a_grid_out_of_order_is_an_error(shards, draft):
    grid = [Size(layers=1, dim=16), Size(layers=1, dim=8), Size(layers=1, dim=4)]
    with pytest.raises(HerdError, match="small to large"):
        ladder(settings(grid=grid), {"shards": shards}, draft)


def test_an_error_in_a_worker_reaches_the_person(shards, draft):
    with pytest.raises(HerdError, match="less than one batch"):
        ladder(settings(budgets_flops=[1e4, 2e7, 4e7]), {"shards": shards}, draft)
