"""Which checkpoints there are, which are kept, and what killed processes left. Only the first process keeps books."""

from __future__ import annotations

import re

from herd.console import warn
from herd.train.checkpoints.format import Damaged, checkpoint_name, read_manifest
from herd.train.checkpoints.storage import ASIDE, DRAFT, Folder

NAME = re.compile(r"step-(\d{9,})")
OLD_NAME = re.compile(r"step-\d{9,}\.(json|safetensors)")


class Books:
    """The checkpoints of a folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._losses: dict[int, float | None] = {}

    def steps(self) -> list[int]:
        """Steps of the checkpoints, the newest first, whether whole or not."""
        found = (NAME.fullmatch(name) for name in self.folder.names())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def forget(self, step: int) -> None:
        """Delete a checkpoint."""
        self._losses.pop(step, None)
        self.folder.remove(checkpoint_name(step))

    def set_aside(self, step: int) -> None:
        """Take a damaged checkpoint out of the count."""
        self._losses.pop(step, None)
        self.folder.set_aside(checkpoint_name(step))

    def clean(self, all_: bool = False) -> None:
        """Delete unfinished drafts; `all_`: and damaged checkpoints, which a later one that is whole has replaced."""
        for name in self.folder.names():
            if name.startswith(DRAFT) or (all_ and name.startswith(ASIDE)):
                self.folder.remove(name)

    def of_older_version(self) -> bool:
        """Delete checkpoints of herd 0.1's format, one file of tensors each; whether there were any."""
        old = [name for name in self.folder.names() if OLD_NAME.fullmatch(name)]
        for name in old:
            self.folder.remove(name)
        return bool(old)

    def prune(self, saved: int, loss: float | None, keep: int, keep_best: int) -> None:
        """After a save of step `saved`: delete all but the newest `keep` and the `keep_best` of the lowest loss."""
        steps = self.steps()
        self._losses[saved] = loss
        best = []
        if keep_best:
            losses = {step: value for step in steps if (value := self._loss(step)) is not None}
            best = sorted(losses, key=lambda step: (losses[step], -step))[:keep_best]
        for step in {step for step in steps if step < saved} - set(steps[:keep]) - set(best):
            self.forget(step)
        self.clean(all_=True)

    def _loss(self, step: int) -> float | None:
        if step not in self._losses:
            try:
                self._losses[step] = read_manifest(self.folder, checkpoint_name(step))["loss"]
            except Damaged as damage:
                warn(f"{self.folder}/{checkpoint_name(step)}: damaged, {damage}; not kept as one of the best")
                self._losses[step] = None
        return self._losses[step]
