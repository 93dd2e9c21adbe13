"""The mix: how much of each stream training reads, at its start and at its end (paper 3.1.2).

The recipe asks for shares of groups (general, reasoning, code, multilingual); within a group every stream weighs as
much as it has tokens. A group that would be read more often than `max_epochs` gets what its text allows, and the
others share out the rest in proportion to what was asked of them. What came of it is a table that people see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from herd.console import HerdError, human_count
from herd.recipe_data import GROUPS, Mix


_Ends = tuple[float, float]  # of the training


@dataclass(frozen=True)
class Mixture:
    """Shares of the streams at the start and at the end, each summing to 1; in between they move linearly."""

    start: dict[str, float]
    end: dict[str, float]

    def at(self, progress: float) -> dict[str, float]:
        """Shares where `progress` (0 to 1) of the training is done."""
        return {name: self.start[name] + progress * (self.end[name] - self.start[name]) for name in self.start}

    def part(self, begin: float, end: float) -> Mixture:
        """The mixture of one stretch of the training, from one progress to another."""
        return Mixture(self.at(begin), self.at(end))

    def weighed(self, weights: Mapping[str, float]) -> Mixture:
        """The mixture with some streams' shares multiplied (1 where not named), as annealing up-samples good text.

        A weight names a stream (`code/docs`), a kind (`docs`) or a group (`code`); a stream that several name gets
        their product. Where a word is both a group and a kind, such as `code`, a stream that is both gets it once.
        Raises HerdError where a weight names no stream, or nothing is left.
        """
        factors = dict.fromkeys(self.start, 1.0)
        for name, weight in weights.items():
            named = [stream for stream in factors if name in {stream, *stream.split("/")}]
            if not named:
                raise HerdError(f"weights name '{name}', which no stream of tokens is; there are {sorted(self.start)}")
            for stream in named:
                factors[stream] *= weight
        return Mixture(*(_scaled({k: v * factors[k] for k, v in side.items()}) for side in (self.start, self.end)))


class MixRow(NamedTuple):
    """What one group was asked to be and what it is. Shares are fractions of the tokens read; `epochs` is the mean
    over its text, and `rule` says why `given` is not what was asked."""

    group: str
    tokens: int
    asked: _Ends
    given: _Ends
    read: float
    epochs: float
    rule: str


def natural_mixture(tokens: Mapping[str, int]) -> Mixture:
    """Every stream weighs as much as it has tokens. Raises HerdError where there are none."""
    shares = _scaled(tokens)
    return Mixture(shares, shares)


def plan_mix(tokens: Mapping[str, int], mix: Mix, training_tokens: float) -> tuple[Mixture, list[MixRow]]:
    """The mixture for training on so many tokens, from the tokens that each stream (`group/kind`) has.

    Without `mix.shares` it is the natural one. Where even all text is too little for `max_epochs`, no cap can be
    kept and the mixture is the natural one too. Raises HerdError where no group that has text is asked for.
    """
    groups: dict[str, int] = {}
    for stream, count in sorted(tokens.items()):
        groups[_group(stream)] = groups.get(_group(stream), 0) + count
    capped: set[str] = set()
    if mix.shares:
        asked = [_scaled(side) for side in _sides(mix)]
        if not any(side.get(group) for side in asked for group, count in groups.items() if count):
            raise HerdError(f"data.mix.shares: no text of {', '.join(mix.shares)}; there is text of {', '.join(groups)}")
        given, capped = _fill(groups, asked, mix.max_epochs, training_tokens)
    else:
        given = asked = [_scaled(groups)] * 2
    rows = []
    for group in sorted({*groups, *asked[0], *asked[1]}, key=_place):
        count = groups.get(group, 0)
        wanted, got = ((side[0].get(group, 0.0), side[1].get(group, 0.0)) for side in (asked, given))
        read = sum(got) / 2 * training_tokens
        epochs = read / count if count else 0.0
        rows.append(
            MixRow(group, count, wanted, got, read, epochs, _rule((count, epochs), wanted, got, mix, group in capped))
        )
    if not mix.shares:
        return natural_mixture(tokens), rows
    start, end = (
        {stream: side[_group(stream)] * count / max(1, groups[_group(stream)]) for stream, count in tokens.items()}
        for side in given
    )
    return Mixture(start, end), rows


def mix_lines(rows: Sequence[MixRow]) -> list[str]:
    """The table of a mix as lines of text."""
    return [
        f"mix: {row.group:<12} asked {_moving(row.asked):<12} given {_moving(row.given):<12} "
        f"{human_count(row.read):>7} of {human_count(row.tokens)} tokens, {row.epochs:.2f} epochs: {row.rule}"
        for row in rows
    ]


def asked_lines(mix: Mix) -> list[str]:
    """What a recipe asks for, where nobody knows yet how many tokens there are."""
    if not mix.shares:
        return ["mix: every group weighs as much as it has tokens"]
    start, end = (_scaled(side) for side in _sides(mix))
    names = sorted({*start, *end}, key=_place)
    shares = ", ".join(f"{name} {_moving((start.get(name, 0.0), end.get(name, 0.0)))}" for name in names)
    return [f"mix: {shares}; no text read more than {mix.max_epochs:g} times"]


def _group(stream: str) -> str:
    return stream.partition("/")[0]


def _sides(mix: Mix) -> tuple[Mapping[str, float], Mapping[str, float]]:
    return mix.shares, mix.late_shares or mix.shares


def _fill(
    tokens: Mapping[str, int], asked: Sequence[Mapping[str, float]], max_epochs: float, training_tokens: float
) -> tuple[list[dict[str, float]], set[str]]:
    """Shares of groups at start and end, none above its cap on average, and which of them are at it: water-filling.

    A capped group keeps the ratio of its two shares. Where moving shares can't keep all caps, they stand still.
    Groups without text and groups nobody asked for get nothing.
    """
    wanted = {g: count for g, count in tokens.items() if count and any(side.get(g) for side in asked)}
    caps = {group: max_epochs * count / training_tokens for group, count in wanted.items()}
    nothing = {group: 0.0 for group in tokens if group not in wanted}
    if sum(caps.values()) <= 1:
        natural = _scaled(wanted) | nothing
        return [natural, natural], set(wanted)
    moving = [{group: side.get(group, 0.0) for group in wanted} for side in asked]
    still = {group: (moving[0][group] + moving[1][group]) / 2 for group in wanted}
    for sides in (moving, [still, still]):
        capped: set[str] = set()
        while True:  # each round caps at least one more group
            given = [_share_out(side, sides, capped, caps, wanted) for side in sides]
            over = {g for g in wanted if (given[0][g] + given[1][g]) / 2 > caps[g] * (1 + 1e-9)}
            if not over:
                return [side | nothing for side in given], capped
            if over <= capped:
                break
            capped |= over
    raise AssertionError("shares that stand still can always be capped")


def _share_out(
    side: Mapping[str, float],
    sides: Sequence[Mapping[str, float]],
    capped: set[str],
    caps: Mapping[str, float],
    tokens: Mapping[str, int],
) -> dict[str, float]:
    """One end's shares: capped groups so that their mean is the cap, the others in proportion to what was asked of
    them, or to their tokens where at this end nothing was."""
    fixed = {group: side[group] * 2 * caps[group] / sum(s[group] for s in sides) for group in capped}
    rest = {group: share for group, share in side.items() if group not in capped}
    if rest and not sum(rest.values()):
        rest = {group: float(tokens[group]) for group in rest}
    left = max(0.0, 1 - sum(fixed.values()))
    total = sum(rest.values())
    return _scaled({group: fixed[group] if group in fixed else rest[group] / total * left for group in side})


def _rule(row: tuple[int, float], asked: _Ends, given: _Ends, mix: Mix, capped: bool) -> str:
    count, epochs = row
    if not mix.shares:
        return "as much as it has tokens"
    if not sum(asked):
        return "not asked for, so not read"
    if not count:
        return "no text; its share went to the others"
    if epochs > mix.max_epochs * (1 + 1e-6):
        return f"more than {mix.max_epochs:g} epochs: all text is too little, so every group by its tokens"
    if capped:
        return f"read {mix.max_epochs:g} times at most; the rest of its share went to the others"
    if max(abs(a - g) for a, g in zip(asked, given, strict=True)) > 1e-9:
        return "takes part of what others left"
    return "as asked"


def _scaled(values: Mapping[str, float]) -> dict[str, float]:
    total = float(sum(values.values()))
    if not total > 0:
        raise HerdError(f"no tokens in any of {', '.join(values) or 'no streams'}: add text")
    return {name: value / total for name, value in values.items()}


def _moving(shares: _Ends) -> str:
    start, end = (f"{share:.1%}" for share in shares)
    return start if start == end else f"{start} → {end}"


def _place(group: str) -> tuple[int, str]:
    return (GROUPS.index(group) if group in GROUPS else len(GROUPS), group)
