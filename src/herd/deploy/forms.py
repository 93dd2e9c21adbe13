"""The formats a member is exported in, and their names: FORMAT-KIND, as in `gguf-q8_0`. A kind is how matrices lie."""

from __future__ import annotations

from typing import NamedTuple, cast

from herd.console import HerdError
from herd.model.formats.gguf_write import GgufKind
from herd.recipe import ExportForm

KINDS: dict[str, tuple[GgufKind, ...]] = {  # the first is what a name without a kind means
    "huggingface": ("BF16", "F16", "F32"),
    "meta": ("BF16", "F16", "F32"),
    "gguf": ("F16", "BF16", "F32", "Q8_0", "Q4_0"),
}
SHORT = {"hf": "huggingface"}


class Form(NamedTuple):
    """A format and how its matrices are stored."""

    to: str
    kind: GgufKind


def form_of(name: ExportForm) -> Form:
    """What a recipe's name stands for."""
    to, _, kind = name.partition("-")
    return Form(to, next(one for one in KINDS[to] if not kind or one.lower() == kind))


def form_name(to: str, quant: str | None) -> ExportForm:
    """The name of what `herd export` was asked for. Raises HerdError for a kind that the format does not have."""
    to = SHORT.get(to, to)
    kinds = [kind.lower() for kind in KINDS[to]]
    kind = kinds[0] if quant is None else quant.lower()
    if kind not in kinds:
        raise HerdError(f"--quant {quant}: {to} is written as {', '.join(kinds)}")
    plain = to != "gguf" and kind == kinds[0]
    return cast(ExportForm, to if plain else f"{to}-{kind}")
