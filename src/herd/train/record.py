"""What a training run leaves beside its weights."""

from __future__ import annotations

from typing import Any

from herd.artifact import Draft, canonical_json
from herd.train.loop import TrainState


def write_training(out: Draft, state: TrainState, facts: dict[str, Any]) -> None:
    """Write `metrics.jsonl` and `training.json`; how long it took goes beside them, unhashed."""
    rows = "".join(canonical_json(row) + "\n" for row in state.metrics)
    (out.folder / "metrics.jsonl").write_text(rows, encoding="utf-8")
    out.write_json("training.json", facts)
    speed = state.tokens / max(state.seconds, 1e-9)
    (out.recorded / "speed.json").write_text(canonical_json({"seconds": state.seconds, "tokens_per_second": speed}))
