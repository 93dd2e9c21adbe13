"""What the tests of herd.data share: a draft to write into, and a way to publish what a stage makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from herd.artifact import Artifact, Draft, find, publish

Stage = Callable[[Any, Mapping[str, Artifact], Draft], None]


@pytest.fixture(scope="session")
def run_stage(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Runs a stage into a run folder of its own and returns what it published."""

    def run(stage: Stage, settings: Any, inputs: Mapping[str, Artifact] | None = None) -> Artifact:
        folder = tmp_path_factory.mktemp("run")
        with publish(folder, "stage", "0" * 64, {}, {}) as draft:
            stage(settings, inputs or {}, draft)
        artifact = find(folder, "stage", "0" * 64)
        assert artifact is not None
        return artifact

    return run
