"""The planner: published measurements it was calibrated on, its memory, its bubbles, its choice of meshes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from herd.console import HerdError
from herd.model.config import LLAMA3, ModelConfig
from herd.recipe_compute import Compute, Mesh, Pipeline
from herd.train.gpus import CARDS, find_card
from herd.train.parallel.schedule import interleaved, most_in_flight, one_forward_one_backward, simulate
from herd.train.planner import StepPlan, differences, meshes, plan_step, recipe_setting, search
from herd.train.planner_rows import CALIBRATION, PAPER, Row
from herd.train.planner_setting import Setting, in_flight, rank_layers, rounds, stage_layers
from herd.train.planner_time import FITTED, bandwidth

H100 = CARDS["h100"]


def planned(row: Row) -> StepPlan:
    setting = replace(row.setting, attention=FITTED.paper_attention) if row.paper else row.setting
    return plan_step(setting, CARDS[row.card])


@pytest.mark.parametrize("row", CALIBRATION, ids=lambda row: row.name)
def test_published_rows_are_met_within_five_percent(row):
    plan = planned(row)
    if row.teraflops is not None:
        assert plan.flops_per_gpu == pytest.approx(row.teraflops * 1e12, rel=0.05)
    else:
        assert plan.tokens_per_second / row.setting.mesh.size == pytest.approx(row.tokens_per_second, rel=0.05)
    if row.gibibytes is not None:
        assert plan.memory.total / 2**30 == pytest.approx(row.gibibytes, rel=0.02)


def test_the_papers_meshes_fit_its_cards():
    assert all(planned(row).fits for row in PAPER)
    assert not plan_step(replace(PAPER[0].setting, mesh=Mesh(tp=8, pp=2, dp=64)), H100).fits


def pipelined(pp: int, v: int, m: int, n: int | None = None) -> Setting:
    return Setting(LLAMA3["405B"], Mesh(pp=pp), 8192, m, stages_per_rank=v, group=n)


@pytest.mark.parametrize(
    ("pp", "v", "m", "n"),
    [(4, 1, 8, 4), (4, 1, 2, 4), (4, 2, 8, 4), (4, 2, 8, 8), (4, 4, 3, 4), (8, 2, 5, 8), (4, 2, 10, 4), (4, 2, 9, 3)],
)
def test_a_step_is_as_long_as_the_schedule_played_and_holds_no_less(pp, v, m, n):
    order = interleaved(pp, v, m, n) if v > 1 else one_forward_one_backward(pp, m)
    slots = simulate(order, [1.0] * (pp * v), [2.0] * (pp * v))
    setting = pipelined(pp, v, m, n)
    assert rounds(setting) == pytest.approx(max(rank[-1].end for rank in slots) / (3 * v))
    for rank, actions in enumerate(order):
        held = most_in_flight(actions)
        assert held <= in_flight(setting, rank) <= held + 1


def test_the_papers_bubble_ratio():
    assert rounds(pipelined(16, 8, 32)) / 32 - 1 == pytest.approx(15 / (8 * 32))


def test_layers_of_the_405b_on_128_stages_leave_the_ends_to_embedding_and_head():
    setting = replace(pipelined(16, 8, 32), ends_apart=True)
    assert stage_layers(setting) == (0, *([1] * 126), 0)
    assert rank_layers(setting) == (7, *([8] * 14), 7)


def test_each_dimension_costs_what_it_moves():
    base = Setting(LLAMA3["8B"], Mesh(dp=8), 8192, 1)
    assert plan_step(base, H100).seconds.tp == plan_step(base, H100).seconds.cp == 0
    tp = plan_step(replace(base, mesh=Mesh(tp=8)), H100).seconds
    half = plan_step(replace(base, mesh=Mesh(tp=8), asynchronous_tp=True), H100).seconds
    assert half.tp == pytest.approx(tp.tp * (1 - FITTED.async_tp)) and half.matrix == tp.matrix
    short, long = (plan_step(replace(base, mesh=Mesh(cp=8), context=c), H100).seconds.cp for c in (8192, 16384))
    assert long == pytest.approx(2 * short) and short > 0
    full = plan_step(replace(base, recompute="full"), H100)
    assert full.seconds.total > 1.2 * plan_step(base, H100).seconds.total
    assert full.memory.activations < 0.5 * plan_step(base, H100).memory.activations


def test_a_ring_uses_the_network_cards_of_all_its_members_in_a_node():
    inside, one, four = bandwidth(H100, 8, 1), bandwidth(H100, 8, 8), bandwidth(H100, 64, 2)
    assert one == pytest.approx(45e9) and four == pytest.approx(4 * one) and inside == pytest.approx(360e9)


def test_training_state_is_what_fsdp_shards():
    """One data-parallel group of a whole step: 4 bytes of weights and 8 of moments a parameter, shared by all."""
    memory = plan_step(Setting(LLAMA3["8B"], Mesh(dp=8), 8192, 1, reshard=True), H100).memory
    shared = LLAMA3["8B"].parameters / 8
    assert memory.weights == pytest.approx(4 * shared, rel=1e-3)
    assert memory.moments == pytest.approx(8 * shared, rel=1e-3)
    assert memory.gradients == pytest.approx(4 * shared, rel=1e-3)
    accumulated = plan_step(Setting(LLAMA3["8B"], Mesh(dp=8), 8192, 2, reshard=True), H100).memory
    assert accumulated.gradients == pytest.approx(8 * memory.gradients)


def test_the_search_finds_the_fastest_that_fits():
    found = search(LLAMA3["8B"], 8192, 64, 16, H100)
    assert found.best == sorted(found.best, key=lambda plan: plan.seconds.total) and found.tried > 100
    for plan in found.best:
        mesh = plan.setting.mesh
        assert plan.fits and mesh.size == 16 and 64 % mesh.dp == 0 and mesh.tp <= H100.per_node
    by_hand = plan_step(Setting(LLAMA3["8B"], Mesh(tp=8, dp=2), 8192, 32, recompute="full"), H100)
    assert by_hand.fits and by_hand.seconds.total > found.best[0].seconds.total
    name, more = differences(by_hand, found.best[0])[0]
    assert more > 0 and name in ("tp", "matrix")
    if found.too_big is not None:
        assert not found.too_big.fits and found.too_big.seconds.total < found.best[0].seconds.total


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_networks_of_few_layers_are_searched_too(layers):
    config = ModelConfig(layers, 64, 4, 4, 128, 1000, 16, 128)
    for ranks in (1, 3, 4, 8):
        assert all(plan.setting.mesh.size == ranks for plan in search(config, 128, 24, ranks, H100).best)


def test_memory_decides_where_little_of_it_is():
    small = replace(H100, memory_bytes=30e9)
    roomy, narrow = (search(LLAMA3["8B"], 8192, 64, 16, card).best[0] for card in (H100, small))
    assert narrow.memory.total <= 30e9 < roomy.memory.total
    assert narrow.seconds.total > roomy.seconds.total


def test_meshes_divide_heads_batch_and_context():
    config = ModelConfig(6, 96, 6, 3, 256, 1000, 16, 96)
    found = list(meshes(config, 96, 6, 12, H100))
    assert found and {mesh.tp for mesh in found} == {1}  # 3 key-value heads are not divided by 2
    assert all(6 % mesh.dp == 0 and mesh.size == 12 for mesh in found)
    assert not list(meshes(config, 96, 5, 7, H100)) or all(m.pp == 7 for m in meshes(config, 96, 5, 7, H100))


def test_a_recipes_compute_is_planned_as_it_says():
    pipeline = Pipeline(stages_per_rank=8, group=16, ends_apart=True)
    compute = Compute(mesh=Mesh(tp=8, pp=16, dp=64), pipeline=pipeline, micro_sequences=1, compile=True)
    setting = recipe_setting(LLAMA3["405B"], compute, 8192, 2048)
    assert setting == replace(PAPER[0].setting, group=16, chunked_loss=True)


def test_an_unknown_card_names_those_there_are():
    with pytest.raises(HerdError, match="h100-96"):
        find_card("tpu")
