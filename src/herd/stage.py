"""A stage of a plan: what it is called, what it needs, and what its key hashes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from herd.artifact import Artifact, stage_key
from herd.recipe import Section


@dataclass(frozen=True)
class Stage:
    """One stage of a plan. `inputs` maps the names its function knows to the stages that make them.

    function: "module:name" of a function (settings, inputs, out), imported only when it runs. facts: what else the
    artifact depends on (installed packages, files of a folder). alone: runs in this process, with nothing beside it.
    parallel: trains on the recipe's mesh, where it has more than one process.
    """

    name: str
    function: str
    version: int
    settings: Section
    inputs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    member: str | None = None
    alone: bool = True
    parallel: bool = False

    @property
    def kind(self) -> str:
        return self.name.removesuffix(f"-{self.member}") if self.member else self.name

    def load(self) -> Callable[..., None]:
        """Its function, imported now."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)

    def key(self, inputs: Mapping[str, Artifact]) -> str:
        """Key of the artifact that it makes of these inputs."""
        asked = self.asked(inputs)
        return stage_key(self.kind, self.version, asked["settings"], asked["inputs"])

    def asked(self, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
        """What the key hashes."""
        settings = self.settings.model_dump(mode="json") | ({"facts": self.facts} if self.facts else {})
        return {
            "version": self.version,
            "settings": settings,
            "inputs": {name: a.content for name, a in inputs.items()},
        }


def same(*names: str) -> dict[str, str]:
    """Inputs that a stage's function knows by the names of the stages that make them."""
    return {name: name for name in names}
