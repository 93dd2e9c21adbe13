"""Meshes give the numbers of one process, and the check itself finds what is wrong (the whole matrix: herd parity)."""

from __future__ import annotations

import math
import re
from typing import get_args

import pytest
import torch
from torch import distributed

from herd.cli import main
from herd.train.parallel import network, norm, parity, tensor
from herd.train.parallel.parity import Case, Errors, Result, cases, check

CHOSEN = (
    "tp 2 cp 2 pp 2 dp 2",
    "zbv-zero-bubble, V 2",
    "ragged: PP 2, V 3, M 7, N 4",
    "embedding and head apart, tied",
    "tied head across stages, dp",
    "adapters, cp pp dp",
    "recompute some, cp dp",
)


def case(name: str) -> Case:
    return next(one for one in cases() if one.name == name and one.dtype == "float64")


@pytest.mark.parametrize("name", CHOSEN)
def test_a_mesh_gives_the_numbers_of_one_process(name):
    (result,) = check([case(name)])
    assert result.passed, result


def test_the_matrix_has_each_dimension_alone_and_together_and_every_schedule():
    degrees = {tuple(degree > 1 for _, degree in one.mesh) for one in cases()}
    assert len(degrees) == 16  # one rank, too
    schedules = {one.pipeline.schedule for one in cases()}
    assert schedules == set(get_args(parity.ScheduleName))
    assert {one.dtype for one in cases()} == {"float64", "float32"}


def dropped(name: str, monkeypatch: pytest.MonkeyPatch, module: object, only: int | None = None) -> None:
    """Leave out the all-reduces of a module (or its n-th call alone)."""
    calls = iter(range(10**9))
    real = distributed.all_reduce

    def all_reduce(*arguments, **named):
        if only is not None and next(calls) != only:
            return real(*arguments, **named)
        return None

    class Without:
        def __getattr__(self, what: str):
            return all_reduce if what == "all_reduce" else getattr(distributed, what)

    monkeypatch.setattr(module, "dist", Without())


@pytest.mark.parametrize(
    ("what", "mesh", "module", "wrong"),
    [
        ("norm", "tp 2 dp 2", norm, {"norm", "clipped", "next_loss"}),
        ("loss head", "tp 2", tensor, {"loss", "norm", "gradient", "clipped", "next_loss"}),
    ],
)
def test_a_missing_all_reduce_is_found(monkeypatch, what, mesh, module, wrong):
    dropped(what, monkeypatch, module)
    (result,) = check([case(mesh)])
    assert not result.passed
    assert {name for name, error in result.errors._asdict().items() if error > result.limit} == wrong


def test_a_tied_head_whose_gradients_are_not_summed_is_found(monkeypatch, capsys):
    """By the command, which then exits with a status of 1 and names the parameter."""
    monkeypatch.setattr(network.Sharded, "_sum_tied", lambda self: None)
    assert main(["parity", "--only", "tied head across stages"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^MISS +tied head across stages, dp .* worst: tok_embeddings.weight$", out, re.MULTILINE)
    assert "1 of 1 past their limit" in out


def test_a_logged_loss_that_is_not_of_all_ranks_is_found(monkeypatch):
    """The gradients are right then: only what is logged is wrong."""
    dropped("loss", monkeypatch, network, only=0)
    (result,) = check([case("dp 2")])
    assert result.errors.gradient <= result.limit < result.errors.loss


def test_the_command_prints_a_line_a_case(capsys):
    assert main(["parity", "--only", "cp 4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ok +cp 4 +4( +\d\.\de[+-]\d\d){5}$", out, re.MULTILINE) and "all 1 within their limit" in out


def test_an_unknown_case_is_refused_with_the_names_there_are(capsys):
    assert main(["parity", "--only", "five dimensions"]) == 1
    assert "--only five dimensions: no case is called so; there are: tp 2, cp 2" in capsys.readouterr().err


def test_a_nan_never_passes():
    assert not Result(case("dp 2"), Errors(loss=math.nan)).passed
    bad = torch.tensor([1.0, math.nan])
    assert parity.relative(bad, torch.ones(2), torch.ones(2)) == math.inf
    assert parity.relative(torch.ones(3), torch.ones(2), torch.ones(2)) == math.inf
