"""What was saved comes back bit for bit; a damaged checkpoint costs the steps since the one before it, not the run."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, init_weights
from herd.recipe import Optimizer
from herd.recipe_compute import Saving
from herd.train.checkpoint import Checkpoints
from herd.train.checkpoints import storage
from herd.train.checkpoints.format import Reader, open_checkpoint
from herd.train.optim import adamw

CONFIG = ModelConfig(1, 8, 2, 1, 16, 20, 4, 8, tied_embeddings=True)
FACTS = {"loss": [3.5, 0.1], "step": 3}
FILES = ["rank-00000.safetensors", "metadata.json", "manifest.json", "COMPLETE"]
KEEP = Saving().keep
AT_ONCE = Saving(asynchronous=False)

State = tuple[Transformer, torch.optim.AdamW]


def new(seed: int) -> State:
    model = Transformer(CONFIG)
    init_weights(model, seed)
    return model, adamw(model, Optimizer())


def some_steps(model: Transformer, optimizer: torch.optim.AdamW, seed: int, count: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
        optimizer.step()


def state(model: Transformer, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = [optimizer.state[p][key] for p in trained for key in ("step", "exp_avg", "exp_avg_sq")]
    return [t.detach().clone() for t in (*model.parameters(), *moments)]


def save(checkpoints: Checkpoints, step: int, of: State, loss: float | None = None) -> None:
    model, optimizer = of
    checkpoints.save(step, dict(model.named_parameters()), optimizer, {**FACTS, "step": step}, loss)


def load(folder: Path | str, of: State) -> int | None:
    """The step that was restored."""
    model, optimizer = of
    found = Checkpoints(folder).load(dict(model.named_parameters()), optimizer)
    assert found is None or found[1] == {**FACTS, "step": found[0]}
    return found[0] if found else None


def saved(
    folder: Path | str, steps: tuple[int, ...] = (1, 2, 3), saving: Saving | None = None
) -> dict[int, list[torch.Tensor]]:
    """The states saved; the next step of training begins while the last save is still being written."""
    of, states = new(0), {}
    with Checkpoints(folder, saving) as checkpoints:
        for step in steps:
            some_steps(*of, step, 1)
            save(checkpoints, step, of)
            states[step] = state(*of)
        some_steps(*of, 99)
    return states


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_weights_moments_and_facts_come_back_and_further_steps_are_the_same(tmp_path):
    states = saved(tmp_path)
    of = new(5)
    assert load(tmp_path, of) == 3 and same(state(*of), states[3])
    other = new(0)
    for step in (1, 2, 3):
        some_steps(*other, step, 1)
    for each in (of, other):
        some_steps(*each, seed=7)
    assert same(state(*of), state(*other))


def test_what_is_saved_is_the_state_at_the_call(tmp_path, monkeypatch):
    """Training goes on while a save is written, however long that takes."""
    of, expected = new(0), []
    begin = storage.LocalFolder.begin
    monkeypatch.setattr(storage.LocalFolder, "begin", lambda *a: (time.sleep(0.2), begin(*a))[1])
    some_steps(*of, 1)
    with Checkpoints(tmp_path) as checkpoints:
        extra = {**FACTS, "step": 1}
        checkpoints.save(1, dict(of[0].named_parameters()), of[1], extra)
        expected = state(*of)
        some_steps(*of, 2)
        extra["loss"] = []
        assert not list(tmp_path.glob("step-*"))
    other = new(5)
    assert load(tmp_path, other) == 1 and same(state(*other), expected)


def test_an_empty_or_absent_folder_holds_none(tmp_path):
    assert load(tmp_path, new(0)) is None
    assert load(tmp_path / "absent", new(0)) is None
    assert not (tmp_path / "absent").exists()


def test_anyone_can_read_the_files(tmp_path):
    states = saved(tmp_path)
    folder = tmp_path / "step-000000003"
    assert names(folder) == sorted(FILES)
    tensors = load_file(folder / "rank-00000.safetensors")
    model, _ = new(0)
    for (name, _), value in zip(model.named_parameters(), states[3], strict=False):
        assert torch.equal(tensors[f"model.{name}"], value)
    facts = json.loads((folder / "metadata.json").read_text())
    assert facts["extra"] == FACTS and facts["tensors"]["exp_avg.norm.weight"] == {
        "shape": [8],
        "dtype": "F32",
        "chunks": [{"offsets": [0], "sizes": [8], "file": "rank-00000.safetensors", "key": "exp_avg.norm.weight"}],
    }


def test_torch_s_own_load_reads_them_too(tmp_path):
    """Without the class: a reader for torch.distributed.checkpoint, which checks the files all the same."""
    states = saved(tmp_path)
    wanted = {"model.norm.weight": torch.zeros(8)}
    opened = open_checkpoint(storage.open_folder(tmp_path), "step-000000003")
    with Reader(opened) as reader:
        state_dict_loader.load(wanted, storage_reader=reader, no_dist=True)
    model, _ = new(0)
    at = [name for name, _ in model.named_parameters()].index("norm.weight")
    assert torch.equal(wanted["model.norm.weight"], states[3][at])
    flip(tmp_path / "step-000000003" / "rank-00000.safetensors")
    with Reader(opened) as reader, pytest.raises(CheckpointException, match="does not match its SHA-256"):
        state_dict_loader.load(wanted, storage_reader=reader, no_dist=True)


def test_before_the_first_step_there_are_no_moments(tmp_path):
    of, other = new(0), new(1)
    some_steps(*other, 1)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 0, of)
    assert load(tmp_path, other) == 0
    assert same(list(other[0].parameters()), list(of[0].parameters())) and not other[1].state


def test_frozen_parameters_are_saved_without_moments(tmp_path):
    def partly_frozen(seed: int) -> State:
        model, _ = new(seed)
        model.tok_embeddings.requires_grad_(False)
        return model, adamw(model, Optimizer())

    of, other = partly_frozen(0), partly_frozen(1)
    some_steps(*of, 1)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, of)
    assert load(tmp_path, other) == 1 and same(state(*of), state(*other))
    thawed = new(2)
    assert load(tmp_path, thawed) == 1
    assert thawed[0].tok_embeddings.weight not in thawed[1].state


def test_the_random_state_comes_back(tmp_path):
    of = new(0)
    with Checkpoints(tmp_path) as checkpoints:
        torch.manual_seed(3)
        save(checkpoints, 1, of)
        expected = torch.randn(4)
    torch.manual_seed(4)
    assert load(tmp_path, of) == 1
    assert torch.equal(torch.randn(4), expected)


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, tuple(range(8, 13)))  # across a change in the number of digits
    assert names(tmp_path) == ["step-000000011", "step-000000012"] and KEEP == 2
    assert load(tmp_path, new(5)) == 12


def test_the_best_are_kept_too_also_those_of_the_process_before(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 0.5, 5: float("nan"), 6: None, 7: 2.6}
    of = new(0)
    for step, loss in losses.items():
        with Checkpoints(tmp_path, Saving(keep=1, keep_best=2)) as checkpoints:
            save(checkpoints, step, of, loss)
    assert names(tmp_path) == ["step-000000002", "step-000000004", "step-000000007"]


def test_a_roll_back_forgets_what_is_newer(tmp_path):
    states = saved(tmp_path, (1, 2, 3, 4), Saving(keep=4))
    Checkpoints(tmp_path).discard_after(2)
    of = new(5)
    assert load(tmp_path, of) == 2 and same(state(*of), states[2])
    assert names(tmp_path) == ["step-000000001", "step-000000002"]


def test_a_step_saved_again_replaces_the_first(tmp_path):
    saved(tmp_path, (3,))
    of = new(8)
    some_steps(*of, 1)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 3, of)
    other = new(5)
    assert load(tmp_path, other) == 3 and same(state(*of), state(*other))
    assert names(tmp_path) == ["step-000000003"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "missing": lambda path: path.unlink(),
}
HARMLESS = {("COMPLETE", "longer")}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, file, damage):
    states = saved(tmp_path)
    DAMAGES[damage](tmp_path / "step-000000003" / file)
    of = new(5)
    if (file, damage) in HARMLESS:
        assert load(tmp_path, of) == 3
        return
    assert load(tmp_path, of) == 2 and same(state(*of), states[2])
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and said.count("\n") == 1
    assert "step-000000003" in said and file in said and "going on from step-000000002" in said
    assert load(tmp_path, new(6)) == 2 and not capsys.readouterr().err  # said once


def test_where_all_are_damaged_there_is_none_and_the_model_is_untouched(tmp_path, capsys):
    saved(tmp_path)
    for path in tmp_path.glob("step-*/*.safetensors"):
        flip(path)
    of, (fresh, _) = new(5), new(5)
    assert load(tmp_path, of) is None
    assert same(list(of[0].parameters()), list(fresh.parameters())) and not of[1].state
    said = capsys.readouterr().err.splitlines()
    assert len(said) == KEEP and said[-1].endswith("starting anew")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[Path, dict[int, list[torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("sound")
    return folder, saved(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_can_change_unnoticed(tmp_path, sound, data):
    folder, states = sound
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    path = copy / "step-000000003" / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 2))  # the marker's last byte is the end of its line
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    of = new(5)
    assert load(copy, of) == 2 and same(state(*of), states[2])


def test_a_file_that_cannot_be_read_is_an_error_and_nothing_is_lost(tmp_path, monkeypatch):
    """A disk that fails for a moment must not cost the newest checkpoint."""
    saved(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_digest", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(HerdError, match="step-000000003: can't be read"):
            load(tmp_path, new(5))
    assert load(tmp_path, new(5)) == 3


def test_a_later_schema_is_an_error(tmp_path):
    saved(tmp_path)
    path = tmp_path / "step-000000003"
    manifest = json.loads((path / "manifest.json").read_text()) | {"schema": 2}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "COMPLETE").write_text(storage._digest(path / "manifest.json").sha256)
    with pytest.raises(HerdError, match="schema 2, this version of herd reads 1"):
        load(tmp_path, new(5))
    assert path.exists()


@pytest.mark.parametrize("stop", ["begin", "publish", "mark"])
def test_a_save_cut_short_at_any_point_does_not_count(tmp_path, monkeypatch, stop):
    states = saved(tmp_path)
    monkeypatch.setattr(storage.LocalFolder, stop, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(Checkpoints(tmp_path, AT_ONCE), 4, new(5))
    monkeypatch.undo()
    of = new(5)
    assert load(tmp_path, of) == 3 and same(state(*of), states[3])
    assert not list(tmp_path.glob(".draft*"))


def test_after_a_fall_back_the_next_saves_keep_two_that_are_whole(tmp_path):
    """A damaged checkpoint of a later step must not take the place of a whole one."""
    saved(tmp_path, (10, 20, 30))
    flip(tmp_path / "step-000000030" / "rank-00000.safetensors")
    of = new(5)
    assert load(tmp_path, of) == 20
    assert ".damaged-step-000000030" in names(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 25, of)
    assert names(tmp_path) == ["step-000000020", "step-000000025"]


def test_after_another_network_was_found_new_checkpoints_are_kept(tmp_path, capsys):
    """A folder of an older version's network: said, cleared, and the next save is what a resume finds."""
    saved(tmp_path, (7, 8))
    other = Transformer(ModelConfig(1, 16, 2, 1, 32, 32, 8, 16, True))
    optimizer = adamw(other, Optimizer())
    assert load(tmp_path, (other, optimizer)) is None
    assert "another network" in capsys.readouterr().err
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, (other, optimizer))
    assert load(tmp_path, (other, optimizer)) == 1


def test_a_network_of_fewer_layers_is_another(tmp_path, capsys):
    two = Transformer(ModelConfig(2, 8, 2, 1, 16, 20, 4, 8, tied_embeddings=True))
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, (two, adamw(two, Optimizer())))
    assert load(tmp_path, new(0)) is None
    assert "another network" in capsys.readouterr().err


def test_checkpoints_of_an_older_version_are_said_to_be_there(tmp_path, capsys):
    for name in ("step-000000003.json", "step-000000003.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    assert load(tmp_path, new(0)) is None
    said = capsys.readouterr().err
    assert "older version" in said and said.count("\n") == 1 and not names(tmp_path)


def full(self, name, pieces):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_said_and_harms_no_older_checkpoint(tmp_path, monkeypatch, capsys, asynchronous):
    of = new(0)
    with Checkpoints(tmp_path, Saving(asynchronous=asynchronous)) as checkpoints:
        save(checkpoints, 1, of)
        checkpoints.finish()
        expected = state_of_weights(of)
        with monkeypatch.context() as patch:
            patch.setattr(storage.LocalFolder, "write", full)
            some_steps(*of, 1)
            save(checkpoints, 2, of)
            checkpoints.finish()
        said = capsys.readouterr().err
        assert "No space left" in said and str(tmp_path) in said and said.count("\n") == 1
        assert names(tmp_path) == ["step-000000001"]  # the draft's room is free again
        other = new(5)
        assert load(tmp_path, other) == 1 and same(state_of_weights(other), expected)
        save(checkpoints, 3, of)
    assert load(tmp_path, other) == 3


def state_of_weights(of: State) -> list[torch.Tensor]:
    return [p.detach().clone() for p in of[0].parameters()]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_at_the_first_save_is_an_error(tmp_path, monkeypatch, asynchronous):
    """Training on would be for nothing."""
    monkeypatch.setattr(storage.LocalFolder, "write", full)
    checkpoints = Checkpoints(tmp_path, Saving(asynchronous=asynchronous))
    with pytest.raises(HerdError, match="No space left on device"):
        save(checkpoints, 1, new(0))
        checkpoints.finish()


def test_a_limit_on_the_size_of_files_is_an_error_like_any_other(tmp_path, capsys):
    """What the system's own limit raises, in a process of its own: the limit can't be taken back."""
    saved(tmp_path)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        of = new(5)
        assert load(tmp_path, of) == 3
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.load(dict(of[0].named_parameters()), of[1])
            save(checkpoints, 4, of)

    assert ended(limited) == 0
    assert load(tmp_path, new(5)) == 3 and names(tmp_path) == ["step-000000002", "step-000000003"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_disk_that_is_really_full(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        with pytest.raises(HerdError, match="No space left on device"):
            save(Checkpoints(tmp_path, AT_ONCE), 1, new(0))
        assert not names(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=False)


def ended(work: Callable[[], None], after: float | None = None) -> int | None:
    """Exit status of `work` in a forked process, which is killed after so many seconds."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    if after is not None:
        time.sleep(after)
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    return process.exitcode


def test_a_killed_process_leaves_the_state_of_some_step_that_it_saved(tmp_path):
    """Killed 30 times, at random moments and most of them in a save; each process goes on from the one before."""
    wait = torch.Generator().manual_seed(0)
    last = 0

    def states_up_to(step: int) -> list[torch.Tensor]:
        of = new(0)
        for each in range(1, step + 1):
            some_steps(*of, each, 1)
        return state(*of)

    def train() -> None:
        of = new(0)
        with Checkpoints(tmp_path, Saving(keep=1)) as checkpoints:
            found = checkpoints.load(dict(of[0].named_parameters()), of[1])
            for step in range(1 + (found[0] if found else 0), 100_000):
                some_steps(*of, step, 1)
                save(checkpoints, step, of)

    moved = 0
    for _ in range(30):
        assert ended(train, 0.05 + 0.25 * torch.rand((), generator=wait).item()) == -signal.SIGKILL
        of = new(5)
        step = load(tmp_path, of)
        if step is not None:
            assert step >= last and same(state(*of), states_up_to(step))
            moved, last = moved + (step > last), step
    assert moved >= 5, "the processes were killed before they had saved anything"


def test_an_object_store_without_rename(capsys):
    """By fsspec's memory:// as by s3://: the marker decides, and what is unfinished is passed over."""
    address = "memory://bucket/run"
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)
    states = saved(address, (1, 2, 3))
    assert sorted(path.rpartition("/")[2] for path in system.ls("/bucket/run", detail=False)) == [
        "step-000000002",
        "step-000000003",
    ]
    of = new(5)
    assert load(address, of) == 3 and same(state(*of), states[3])
    system.rm("/bucket/run/step-000000003/COMPLETE")
    assert load(address, of) == 2 and same(state(*of), states[2])
    said = capsys.readouterr().err
    assert "COMPLETE is missing" in said and said.count("\n") == 1
    system.pipe_file("/bucket/run/step-000000002/rank-00000.safetensors", b"x")
    assert load(address, of) is None and not system.exists("/bucket/run/step-000000002")


def test_an_address_that_nothing_reads_is_an_error():
    with pytest.raises(HerdError, match="nosuch://bucket: checkpoints can't be kept there"):
        Checkpoints("nosuch://bucket")
