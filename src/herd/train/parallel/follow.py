"""Stages of a run on many ranks: the first walks the plan, the others take part in the stages that train on a mesh.

What is sent is which function to call and where its inputs lie; every rank must reach the run's folder.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist

from herd import console
from herd.artifact import Draft, open_artifact
from herd.console import Event
from herd.train.parallel.world import start
from herd.train.workers import set_threads

LONGEST_WAIT = datetime.timedelta(days=7)  # for what the first rank does alone, such as curating a corpus


class Call(NamedTuple):
    """A stage's function, its settings, its inputs' folders, and the work folder that ranks share."""

    function: Callable[..., None]
    settings: Any
    inputs: Mapping[str, Path]
    work: Path


class Channel:
    """Calls from the first rank to the others. Making one joins torchrun's process group."""

    def __init__(self, device: torch.device) -> None:
        start(device)
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=LONGEST_WAIT))

    def send(self, call: Call | None) -> None:
        """On the first rank: let the others make a call, or (None) end."""
        dist.broadcast_object_list([call], 0, self._group)

    def follow(self) -> None:
        """On the others: make the first rank's calls until it ends. Only the first rank speaks."""
        console.redirect(_silent)
        while True:
            received: list[Any] = [None]
            dist.broadcast_object_list(received, 0, self._group)
            if received[0] is None:
                return
            _take_part(received[0])


def _take_part(call: Call) -> None:
    """Train on this rank what the first rank's stage trains; what this rank writes besides is thrown away."""
    set_threads(call.settings.compute.threads)
    inputs = {name: open_artifact(path) for name, path in call.inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        call.function(call.settings, inputs, Draft(Path(folder), call.work))


def _silent(event: Event) -> None:
    """Takes progress and lines away."""
