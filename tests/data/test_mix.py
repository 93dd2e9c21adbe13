"""The mix: what was asked where the text allows it, never more than max_epochs, and people are told."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from herd.console import HerdError
from herd.data.mix import Mixture, asked_lines, mix_lines, natural_mixture, plan_mix
from herd.recipe_data import GROUPS, Group, Mix

PAPER: dict[Group, float] = {"general": 50, "reasoning": 25, "code": 17, "multilingual": 8}
PLENTY = {
    "general/docs": 600_000,
    "general/prose": 400_000,
    "reasoning/prose": 500_000,
    "code/code": 900_000,
    "multilingual/prose": 300_000,
}


def group_shares(side: dict[str, float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for stream, share in side.items():
        group = stream.split("/")[0]
        sums[group] = sums.get(group, 0.0) + share
    return sums


def test_with_text_enough_every_group_gets_what_was_asked_and_streams_share_it_by_tokens():
    mixture, rows = plan_mix(PLENTY, Mix(shares=PAPER), 1_000_000)
    assert group_shares(mixture.start) == pytest.approx({g: s / 100 for g, s in PAPER.items()})
    assert mixture.start["general/docs"] == pytest.approx(0.3)
    assert mixture.start == mixture.end
    assert {row.rule for row in rows} == {"as asked"}
    assert next(row for row in rows if row.group == "reasoning").epochs == pytest.approx(0.5)


def test_without_shares_proportions_are_natural():
    mixture, rows = plan_mix(PLENTY, Mix(shares={}), 1e9)
    assert mixture == natural_mixture(PLENTY)
    assert all(row.epochs == pytest.approx(1e9 / 2_700_000) for row in rows)


def test_a_group_with_little_text_is_capped_and_the_others_take_the_rest_in_proportion():
    tokens = PLENTY | {"reasoning/prose": 10_000}
    mixture, rows = plan_mix(tokens, Mix(shares=PAPER, max_epochs=4), 1_000_000)
    got = group_shares(mixture.start)
    assert got["reasoning"] == pytest.approx(0.04)
    assert got["general"] / got["code"] == pytest.approx(50 / 17)
    said = {row.group: row for row in rows}
    assert said["reasoning"].epochs == pytest.approx(4)
    assert said["reasoning"].asked == pytest.approx((0.25, 0.25))
    assert "read 4 times at most" in said["reasoning"].rule
    assert said["general"].rule == "takes part of what others left"
    line = next(line for line in mix_lines(rows) if "reasoning" in line)
    assert "asked 25.0%" in line and "given 4.0%" in line and "4.00 epochs" in line


def test_capping_one_can_cap_the_next():
    """Code alone would stay below its cap; with what general leaves it would not."""
    tokens = {"general/docs": 100, "code/code": 120, "multilingual/prose": 10_000}
    _, rows = plan_mix(tokens, Mix(shares={"general": 70, "code": 20, "multilingual": 10}, max_epochs=2), 1000)
    epochs = {row.group: row.epochs for row in rows}
    assert epochs["general"] == pytest.approx(2)
    assert epochs["code"] == pytest.approx(2)
    assert sum(row.read for row in rows) == pytest.approx(1000)


def test_shares_move_from_start_to_end():
    late: dict[Group, float] = {"general": 30, "reasoning": 45, "code": 17, "multilingual": 8}
    mixture, rows = plan_mix(PLENTY, Mix(shares=PAPER, late_shares=late), 1_000_000)
    assert [group_shares(mixture.at(x))["reasoning"] for x in (0, 0.5, 1)] == pytest.approx([0.25, 0.35, 0.45])
    assert mixture.part(0.25, 0.75).at(0.5) == pytest.approx(mixture.at(0.5))
    assert "25.0% → 45.0%" in "\n".join(mix_lines(rows))


def test_a_group_without_text_and_one_nobody_asked_for():
    tokens = {"general/docs": 1000, "code/code": 1000, "multilingual/prose": 1000}
    mixture, rows = plan_mix(tokens, Mix(shares={"general": 1, "code": 1, "reasoning": 2}), 1000)
    assert group_shares(mixture.start) == pytest.approx({"general": 0.5, "code": 0.5, "multilingual": 0})
    said = {row.group: row.rule for row in rows}
    assert said["reasoning"] == "no text; its share went to the others"
    assert said["multilingual"] == "not asked for, so not read"
    with pytest.raises(HerdError, match=r"no text of reasoning; there is text of general"):
        plan_mix({"general/docs": 1000}, Mix(shares={"reasoning": 1}), 1000)


def test_too_little_text_for_any_cap_is_read_evenly_and_said():
    tokens = {"general/docs": 100, "code/code": 300, "multilingual/prose": 500}
    mixture, rows = plan_mix(tokens, Mix(shares={"general": 90, "code": 10}, max_epochs=2), 10_000)
    assert group_shares(mixture.start) == pytest.approx({"general": 0.25, "code": 0.75, "multilingual": 0})
    assert sum("all text is too little" in row.rule for row in rows) == 2


shares = st.dictionaries(st.sampled_from(GROUPS), st.floats(0.01, 100), min_size=1)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(GROUPS), st.integers(1, 10_000), min_size=1),
    shares,
    st.one_of(st.just({}), shares),
    st.floats(0.5, 10),
    st.integers(1, 100_000),
)
def test_no_group_is_read_too_often_where_the_text_suffices(tokens, early, late, max_epochs, training):
    wanted = {g: n for g, n in tokens.items() if g in early or g in late}
    assume(set(tokens) & set(early) and (not late or set(tokens) & set(late)))
    mix = Mix(shares=early, late_shares=late, max_epochs=max_epochs)
    mixture, rows = plan_mix({f"{g}/prose": n for g, n in tokens.items()}, mix, training)
    for progress in (0, 0.3, 1):
        at = mixture.at(progress)
        assert sum(at.values()) == pytest.approx(1)
        assert min(at.values()) >= 0
    assert sum(row.read for row in rows) == pytest.approx(training)
    if max_epochs * sum(wanted.values()) > training:
        assert all(row.epochs <= max_epochs * (1 + 1e-6) for row in rows)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shares": {}, "late_shares": {"code": 1}}, "late_shares without shares"),
        (
            {"shares": {"code": 1}, "search": {"candidates": {"a": {}, "b": {}}, "budgets_flops": [1, 2, 3]}},
            "shares and search",
        ),
    ],
)
def test_a_mix_that_says_two_things_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Mix.model_validate(keys)


def test_weights_by_stream_kind_and_group():
    mixture = Mixture(*[{"code/code": 0.25, "code/docs": 0.25, "general/docs": 0.5}] * 2)
    assert mixture.weighed({"docs": 3}).start == pytest.approx(
        {"code/code": 0.1, "code/docs": 0.3, "general/docs": 0.6}
    )
    assert mixture.weighed({"code": 3}).start["general/docs"] == pytest.approx(0.25)
    assert mixture.weighed({"code/docs": 2, "docs": 2}).start == pytest.approx(
        {"code/code": 1 / 9, "code/docs": 4 / 9, "general/docs": 4 / 9}
    )
    with pytest.raises(HerdError, match="weights name 'poems'"):
        mixture.weighed({"poems": 2})
    with pytest.raises(HerdError, match="no tokens"):
        mixture.weighed({"code": 0, "general": 0})


def test_what_a_recipe_asks_is_shown_before_tokens_are_counted():
    line = asked_lines(Mix(shares=PAPER, late_shares={**PAPER, "reasoning": 50}))[0]
    assert "general 50.0% → 40.0%" in line and "no text read more than 4 times" in line
    assert "as much as it has tokens" in asked_lines(Mix(shares={}))[0]
    assert "general 50.0%" in asked_lines(Mix())[0]  # the paper's
