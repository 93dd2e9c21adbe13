"""Averaged weights are the mean of the files, in float64, and files that do not belong together are refused."""

import pytest
import torch
from safetensors.torch import save_file

from herd.train.average import average_checkpoints


def write(folder, states):
    files = [folder / f"{i}.safetensors" for i in range(len(states))]
    for file, state in zip(files, states, strict=True):
        save_file(state, file)
    return files


def test_the_mean_is_that_of_float64(tmp_path):
    generator = torch.Generator().manual_seed(0)
    states = [
        {"a": torch.randn(5, 3, generator=generator) * 10**i, "b": torch.randn(2, generator=generator)}
        for i in range(5)
    ]
    found = average_checkpoints(write(tmp_path, states))
    assert found.keys() == {"a", "b"}
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, torch.stack([s[name].double() for s in states]).mean(0).float())


def test_equal_files_average_to_themselves_bit_for_bit(tmp_path):
    state = {"a": torch.randn(100)}
    assert torch.equal(average_checkpoints(write(tmp_path, [state] * 3))["a"], state["a"])
    assert torch.equal(average_checkpoints(write(tmp_path, [state]))["a"], state["a"])


def test_small_changes_to_large_weights_are_not_lost(tmp_path):
    """2^24 + 1 is no float32: summed in float32, the ones would vanish."""
    states = [{"a": torch.tensor([2.0**24])}] + [{"a": torch.tensor([4.0])}] * 3
    assert average_checkpoints(write(tmp_path, states))["a"].item() == (2**24 + 12) / 4


@pytest.mark.parametrize(
    "other", [{"a": torch.zeros(2)}, {"b": torch.zeros(3)}, {"a": torch.zeros(3), "b": torch.zeros(1)}]
)
def test_files_that_differ_are_refused_by_name(tmp_path, other):
    with pytest.raises(ValueError, match=r"1\.safetensors: tensors differ"):
        average_checkpoints(write(tmp_path, [{"a": torch.zeros(3)}, other]))


def test_no_files_are_refused():
    with pytest.raises(ValueError, match="nothing to average"):
        average_checkpoints([])
