"""What was saved comes back bit for bit; a damaged checkpoint costs the steps since the one before it, not the run."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, init_weights
from herd.recipe import Optimizer
from herd.train.checkpoint import KEEP, load_checkpoint, save_checkpoint
from herd.train.optim import adamw

CONFIG = ModelConfig(1, 8, 2, 1, 16, 20, 4, 8, tied_embeddings=True)


def new(seed: int) -> tuple[Transformer, torch.optim.AdamW]:
    model = Transformer(CONFIG)
    init_weights(model, seed)
    return model, adamw(model, Optimizer())


def some_steps(model: Transformer, optimizer: torch.optim.AdamW, seed: int, count: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def state(model: Transformer, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    moments = [optimizer.state[p][key] for p in model.parameters() for key in ("step", "exp_avg", "exp_avg_sq")]
    return [t.detach().clone() for t in (*model.parameters(), *moments)]


def saved(folder: Path, steps: tuple[int, ...] = (1, 2, 3)) -> dict[int, list[torch.Tensor]]:
    model, optimizer = new(0)
    states = {}
    for step in steps:
        some_steps(model, optimizer, step, 1)
        save_checkpoint(folder, step, model, optimizer, {"loss": [3.5, 0.1], "step": step})
        states[step] = state(model, optimizer)
    return states


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_weights_moments_and_facts_come_back_and_further_steps_are_the_same(tmp_path):
    states = saved(tmp_path)
    model, optimizer = new(5)
    assert load_checkpoint(tmp_path, model, optimizer) == (3, {"loss": [3.5, 0.1], "step": 3})
    assert same(state(model, optimizer), states[3])
    other, other_optimizer = new(0)
    for step in (1, 2, 3):
        some_steps(other, other_optimizer, step, 1)
    for each in ((model, optimizer), (other, other_optimizer)):
        some_steps(*each, seed=7)
    assert same(state(model, optimizer), state(other, other_optimizer))


def test_an_empty_or_absent_folder_holds_none(tmp_path):
    model, optimizer = new(0)
    assert load_checkpoint(tmp_path, model, optimizer) is None
    assert load_checkpoint(tmp_path / "absent", model, optimizer) is None


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, tuple(range(8, 13)))  # across a change in the number of digits
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.safetensors"))) == KEEP
    model, optimizer = new(5)
    found = load_checkpoint(tmp_path, model, optimizer)
    assert found is not None and found[0] == 12


def flip(path: Path) -> None:
    data = bytearray(path.with_suffix(".safetensors").read_bytes())
    data[-3] ^= 1
    path.with_suffix(".safetensors").write_bytes(data)


def cut(path: Path) -> None:
    data = path.with_suffix(".safetensors").read_bytes()
    path.with_suffix(".safetensors").write_bytes(data[: len(data) // 2])


def without_tensors(path: Path) -> None:
    path.with_suffix(".safetensors").unlink()


def marker(text: str):
    def damage(path: Path) -> None:
        path.write_text(text)

    return damage


DAMAGES = {
    "bit": flip,
    "cut": cut,
    "no tensors": without_tensors,
    "empty marker": marker(""),
    "cut marker": marker('{"schema": 1'),
    "no hash": marker("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, damage):
    states = saved(tmp_path)
    newest = max(tmp_path.glob("*.json"))
    DAMAGES[damage](newest)
    model, optimizer = new(5)
    found = load_checkpoint(tmp_path, model, optimizer)
    assert found is not None and found[0] == 2 and same(state(model, optimizer), states[2])
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and newest.stem in said and said.count("\n") == 1


def test_where_all_are_damaged_there_is_none_and_the_model_is_untouched(tmp_path, capsys):
    saved(tmp_path)
    for path in tmp_path.glob("*.json"):
        flip(path)
    (model, optimizer), (fresh, _) = new(5), new(5)
    assert load_checkpoint(tmp_path, model, optimizer) is None
    assert same(list(model.parameters()), list(fresh.parameters())) and not optimizer.state
    assert capsys.readouterr().err.count("warning") == KEEP


def test_a_save_cut_short_before_its_marker_does_not_count(tmp_path, monkeypatch):
    states = saved(tmp_path)
    model, optimizer = new(5)
    monkeypatch.setattr("herd.train.checkpoint.write_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 4, model, optimizer, {})
    assert load_checkpoint(tmp_path, model, optimizer) == (3, {"loss": [3.5, 0.1], "step": 3})
    assert same(state(model, optimizer), states[3])


def test_after_a_fall_back_the_next_saves_keep_two_that_are_whole(tmp_path):
    """A damaged checkpoint of a later step must not take the place of a whole one."""
    saved(tmp_path, (10, 20, 30))
    flip(max(tmp_path.glob("*.json")))
    model, optimizer = new(5)
    assert load_checkpoint(tmp_path, model, optimizer) is not None
    save_checkpoint(tmp_path, 25, model, optimizer, {})
    whole = [json.loads(p.read_text())["step"] for p in sorted(tmp_path.glob("*.json"))]
    assert whole == [20, 25]


def test_after_another_network_was_found_new_checkpoints_are_kept(tmp_path, capsys):
    """A folder of an older version's network: said, cleared, and the next save is what a resume finds."""
    saved(tmp_path, (7, 8))
    other = Transformer(ModelConfig(1, 16, 2, 1, 32, 32, 8, 16, True))
    optimizer = adamw(other, Optimizer())
    assert load_checkpoint(tmp_path, other, optimizer) is None
    assert "another network" in capsys.readouterr().err
    save_checkpoint(tmp_path, 1, other, optimizer, {})
    found = load_checkpoint(tmp_path, other, optimizer)
    assert found is not None and found[0] == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_is_an_error_of_the_disk(tmp_path):
    """So that the command line explains it; safetensors itself raises an error of its own kind."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        model, optimizer = new(0)
        with pytest.raises(OSError) as caught:
            save_checkpoint(tmp_path, 1, model, optimizer, {})
        assert caught.value.errno == errno.ENOSPC
        assert not list(tmp_path.glob("*.json"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=False)
