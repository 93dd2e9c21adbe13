"""Cards that the planner knows, by public figures: dense peaks, memory, links of one GPU."""

from __future__ import annotations

from dataclasses import dataclass

from herd.console import HerdError


@dataclass(frozen=True)
class Card:
    """One GPU and its share of the links. Rates are a second; links in bytes, in one direction.

    `attention`: share of the bf16 peak that FlashAttention-2 reaches over forward and backward. FlashAttention-3's
    abstract puts it at 35% on an H100; FlashAttention-2's paper at 50 to 73% on an A100.
    """

    name: str
    bf16_flops: float
    float8_flops: float | None
    memory_bytes: float
    hbm_bytes: float
    nvlink_bytes: float
    network_bytes: float
    attention: float
    watts: int
    per_node: int = 8


CARDS = {
    card.name: card
    for card in (
        # NVIDIA's data sheet of the SXM part; 400 Gb/s of network for each GPU (paper 3.3.1)
        Card("h100", 989e12, 1979e12, 80e9, 3.35e12, 450e9, 50e9, 0.35, 700),
        # as torchtitan's benchmark pages describe theirs: 96 GB of HBM2e at 2.4 TB/s (95 GiB), limited to 500 W
        Card("h100-96", 989e12, 1979e12, 95 * 2**30, 2.4e12, 450e9, 50e9, 0.35, 500),
        Card("h200", 989e12, 1979e12, 141e9, 4.8e12, 450e9, 50e9, 0.35, 700),
        # no published row calibrates this one; 200 Gb/s of network is what most clusters gave each GPU
        Card("a100", 312e12, None, 80e9, 2.04e12, 300e9, 25e9, 0.60, 400),
    )
}


def find_card(name: str) -> Card:
    """A card by name. Raises HerdError for one that isn't known."""
    if name not in CARDS:
        raise HerdError(f"--gpu {name}: unknown; expected one of {', '.join(CARDS)}")
    return CARDS[name]
