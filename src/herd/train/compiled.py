"""Opt-in compilation of a network's blocks."""

from __future__ import annotations

from herd.model.transformer import Transformer


def compile_blocks(model: Transformer) -> None:
    for block in model.layers:
        block.compile()
