"""Weight averaging: the last step of annealing (paper 3.4.3), and within a round of post-training (paper 4.1.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def average_checkpoints(files: Sequence[Path]) -> dict[str, Tensor]:
    """Uniform mean of the weights in safetensors files, summed in float64 in the order given.

    Raises ValueError for no files or files whose tensors differ in name or shape.
    """
    if not files:
        raise ValueError("nothing to average")
    total = {name: value.double() for name, value in load_file(files[0]).items()}
    shapes = {name: value.shape for name, value in total.items()}
    for file in files[1:]:
        state = load_file(file)
        if {name: value.shape for name, value in state.items()} != shapes:
            raise ValueError(f"{file}: tensors differ from those of {files[0]}")
        for name, value in state.items():
            total[name] += value
    return {name: (value / len(files)).to(torch.float32) for name, value in total.items()}


def mean_of(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean of two sets of weights of the same names, on the CPU."""
    return {name: (value.cpu() + second[name].cpu()) / 2 for name, value in first.items()}
