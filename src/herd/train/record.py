"""What a training run leaves beside its weights."""

from __future__ import annotations

import shutil
from typing import Any

from herd.artifact import Draft, canonical_json
from herd.train.loop import TrainState
from herd.train.metrics import SPEED, TENSORBOARD


def write_training(out: Draft, state: TrainState, facts: dict[str, Any]) -> None:
    """Write `metrics.jsonl` and `training.json`, there also what went wrong at which step; how long it took goes beside
    them, unhashed.

    So does what a `Log` in the work folder wrote by the clock: `speed.jsonl` and the files of TensorBoard.
    """
    rows = "".join(canonical_json(row) + "\n" for row in state.metrics)
    (out.folder / "metrics.jsonl").write_text(rows, encoding="utf-8")
    out.write_json("training.json", facts | ({"events": state.events} if state.events else {}))
    speed = state.tokens / max(state.seconds, 1e-9)
    (out.recorded / "speed.json").write_text(canonical_json({"seconds": state.seconds, "tokens_per_second": speed}))
    if (out.work / SPEED).is_file():
        shutil.copyfile(out.work / SPEED, out.recorded / SPEED)
    if (out.work / TENSORBOARD).is_dir():
        shutil.copytree(out.work / TENSORBOARD, out.recorded / TENSORBOARD, dirs_exist_ok=True)
