"""Saving and restoring the state of a training run, so that a killed run goes on bit for bit, on any mesh.

One format for one process and for thousands: torch.distributed.checkpoint plans who writes and reads which chunk of
which tensor, `checkpoints/format.py` says what lies on disk. A checkpoint counts only when its marker is there and
every hash holds; the newest that counts is used.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.tensor import DTensor

from herd.artifact import canonical_json
from herd.console import HerdError, one_line, warn
from herd.recipe_compute import Saving
from herd.train.checkpoints.books import Books
from herd.train.checkpoints.format import Damaged, Opened, Reader, Writer, checkpoint_name, open_checkpoint
from herd.train.checkpoints.ranks import Ranks, cause
from herd.train.checkpoints.state import (
    RANDOM,
    WEIGHT,
    local_part,
    moments,
    random_states,
    room_for_moments,
    room_for_random,
    weights,
)
from herd.train.checkpoints.storage import open_folder

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one training run in a folder, or at an address that fsspec reaches.

    Where torch.distributed is initialised, all its processes make this, save and load at the same points, each with
    its part of the network: tensors (equal in all processes that name them) or DTensors. Parameters have the same
    names whatever the mesh. Weights, the optimizer's state, and random states are kept bit for bit. A `with` block
    ends with the last save done.
    """

    def __init__(
        self,
        folder: str | Path,
        saving: Saving | None = None,
        before_write: Callable[[str], None] = lambda name: None,
        together: bool | None = None,
    ) -> None:
        """`saving.to` is not looked at: the caller decides on `folder`. `before_write` is called with the name of each
        file to be written; what it raises fails the save. `together`: with all processes of torch.distributed (absent:
        where it is initialised). Raises HerdError for an unknown address.
        """
        self._before_write = before_write
        self.folder = open_folder(folder)
        self.saving = saving or Saving()
        self._books = Books(self.folder)
        self._ranks = Ranks(together)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._any_whole = False
        self.seconds = 0.0  # that the last save took to write, while training went on or not
        # Torch says at each save of one process that it is one.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

    def save(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
        loss: float | None = None,
    ) -> None:
        """Save the state after `step` steps; with `saving.asynchronous` only a copy to memory is waited for.

        `extra` must be JSON without NaN (else ValueError), `loss` decides which are the best; those of the first
        process are kept. A save that failed is said in one line, here where it is not
        asynchronous, else at the next call or `finish`, and harms no older checkpoint. Raises HerdError where there
        is none.
        """
        self.finish()
        kept = json.loads(canonical_json(extra))  # the caller goes on changing it
        loss = loss if loss is not None and math.isfinite(loss) else None
        live = {**weights(parameters), **moments(parameters, optimizer), **random_states(self._ranks.rank)}
        local = {name: local_part(value, self.saving.asynchronous) for name, value in live.items()}
        planned = {name: value if isinstance(value, DTensor) else local[name] for name, value in live.items()}
        if self.saving.asynchronous:
            arguments = (step, planned, local, kept, loss)
            self._thread = threading.Thread(target=self._write, args=arguments, name=f"checkpoint of step {step}")
            self._thread.start()
        else:
            self._write(step, planned, local, kept, loss)
            self.finish()

    def finish(self) -> None:
        """Wait for a save in progress. Raises HerdError where it failed and there is no other whole checkpoint."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if not isinstance(failure, OSError | HerdError):
            raise failure
        text = str(failure) if isinstance(failure, HerdError) else f"{self.folder}: {one_line(failure)}"
        if not self._any_whole:
            raise HerdError(f"the first checkpoint can't be saved: {text}") from failure
        if self._ranks.rank == 0:
            warn(f"a checkpoint can't be saved, those before it stay: {text}")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """As `finish`; where an error ends the block, a save that fails as well is not worth another."""
        with contextlib.suppress(HerdError) if kind else contextlib.nullcontext():
            self.finish()

    def load(
        self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> tuple[int, dict[str, Any]] | None:
        """Restore the newest whole checkpoint in place; (steps done, extra), or None where none is of this network.

        A damaged one is named in a warning and set aside, and the one before it is used. Where it is of another
        network, all are deleted, with a warning. Random states come back on as many processes as saved them; on
        another number, the first process's alone. Raises HerdError where a file is there but can't be read: nothing is
        lost then.
        """
        self.finish()
        steps = self._from_first(self._found)
        for at, step in enumerate(steps):
            name = checkpoint_name(step)
            try:
                opened = self._ranks.agree(lambda name=name: open_checkpoint(self.folder, name, self._ranks.rank == 0))
                if not self._fits(opened, parameters):
                    self._from_first(lambda name=name: self._start_anew(name))
                    return None
                self._read(opened, parameters, optimizer)
            except Damaged as damage:
                self._from_first(lambda at=at, text=str(damage): self._set_aside(steps[at : at + 2], text))
                continue
            except OSError as error:
                raise HerdError(f"{self.folder}/{name}: can't be read ({one_line(error)})") from error
            self._any_whole = True
            return opened.step, opened.extra
        return None

    def any_before(self, step: int) -> bool:
        """Whether there is a checkpoint of an earlier step."""
        self.finish()
        return self._from_first(lambda: any(each < step for each in self._books.steps()))

    def discard_after(self, step: int) -> None:
        """Forget the checkpoints of later steps, as when a run is rolled back."""
        self.finish()
        self._from_first(lambda: [self._books.forget(each) for each in self._books.steps() if each > step])
        self._any_whole = bool(self._from_first(self._books.steps))

    def _write(
        self,
        step: int,
        planned: dict[str, Tensor],
        local: dict[str, Tensor],
        extra: dict[str, Any],
        loss: float | None,
    ) -> None:
        """Write what `save` collected, and delete what need not be kept. A failure is left for `finish` to tell."""
        begun, writer = time.monotonic(), Writer(self.folder, step, extra, loss, self._before_write)
        try:
            state_dict_saver.save(
                planned,
                storage_writer=writer,
                planner=_SavePlanner(local),
                process_group=self._ranks.group,
                no_dist=not self._ranks.together,
            )
            self._any_whole = True
        except CheckpointException as error:
            self._failure = cause(error)
            if writer.begun:
                with contextlib.suppress(OSError):
                    self.folder.remove(writer.draft)  # a full disk needs the room
        except Exception as error:
            self._failure = error
        else:
            if self._ranks.rank == 0:
                self._prune(step, loss)
            self.seconds = time.monotonic() - begun

    def _prune(self, step: int, loss: float | None) -> None:
        try:
            self._books.prune(step, loss, self.saving.keep, self.saving.keep_best)
        except OSError as error:
            warn(f"{self.folder}: older checkpoints can't be deleted ({one_line(error)})")

    def _found(self) -> list[int]:
        self._books.clean()
        steps = self._books.steps()
        if self._books.of_older_version() and not steps:
            warn(f"{self.folder}: checkpoints of an older version of herd, which are not read; starting anew")
        return steps

    def _fits(self, opened: Opened, parameters: Mapping[str, Tensor]) -> bool:
        """Whether the checkpoint holds exactly the weights that all processes have together."""
        known = {name: tuple(value.shape) for name, value in parameters.items()}

        def same(all_known: list[dict[str, tuple[int, ...]]]) -> bool:
            saved = {n: tuple(facts["shape"]) for n, facts in opened.tensors.items() if n.startswith(WEIGHT)}
            return saved == {WEIGHT + name: shape for each in all_known for name, shape in each.items()}

        everything = self._ranks.gather(known)
        return self._ranks.from_first(lambda: same(everything))

    def _start_anew(self, name: str) -> None:
        warn(f"{self.folder}/{name}: holds another network, of an older version of herd; starting this training anew")
        for step in self._books.steps():
            self._books.forget(step)

    def _set_aside(self, steps: list[int], damage: str) -> None:
        step, *older = steps
        then = f"going on from {checkpoint_name(older[0])}" if older else "starting anew"
        warn(f"{self.folder}/{checkpoint_name(step)}: damaged, {damage}; {then}")
        self._books.set_aside(step)

    def _read(self, opened: Opened, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        room, random = room_for_moments(opened, parameters, optimizer), room_for_random(opened, self._ranks)
        wanted = {**weights(parameters), **random}
        wanted |= {f"{key}.{name}": value for name, state in room.items() for key, value in state.items()}
        with Reader(opened, self._ranks.count) as reader:
            try:
                state_dict_loader.load(
                    wanted,
                    storage_reader=reader,
                    planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                    process_group=self._ranks.group,
                    no_dist=not self._ranks.together,
                )
            except CheckpointException as error:
                raise cause(error) from None
        for name, parameter in parameters.items():
            optimizer.state.pop(parameter, None)
            if name in room:
                optimizer.state[parameter] = room[name]
        for name, value in random.items():
            (torch.cuda if name.startswith(f"{RANDOM}cuda.") else torch).set_rng_state(value)

    def _from_first(self, work: Callable[[], T]) -> T:
        try:
            return self._ranks.from_first(work)
        except OSError as error:
            raise HerdError(f"{self.folder}: {one_line(error)}") from error


class _SavePlanner(DefaultSavePlanner):
    """Plans by the tensors as they are spread over processes; what is written is `local`, this process's parts."""

    def __init__(self, local: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.local = local

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.local[index.fqn]
