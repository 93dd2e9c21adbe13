"""What the steps of a round share: a member's weights, dialogs as training rows, and one fine-tuning run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from herd.artifact import Draft
from herd.console import warn
from herd.data.loader import derive_seed
from herd.model.dialog import Dialog, encode
from herd.model.tokenizer import Tokenizer
from herd.recipe import Compute, Optimizer
from herd.recipe_compute import Mesh
from herd.train.batches import DialogBatch, Row, dialog_batch
from herd.train.hardware import choose_hardware
from herd.train.loop import Plan, TrainState, train
from herd.train.network import Batches
from herd.train.objective import Objective
from herd.train.optim import Schedule

OPTIMIZER = Optimizer(betas=(0.9, 0.95), weight_decay=0.0, clip_norm=1.0)  # short runs from good weights: no decay
WARMUP_SHARE, FINAL_SHARE = 0.1, 0.05


class DialogBatches:
    """Batches of so many dialogs, in an order drawn from the seed; each dialog once an epoch.

    The dialogs of a batch are of like length, or `mixed` at random where short and long ones teach different things.
    At most `micro_tokens` pass through the network at once.
    """

    def __init__(self, rows: Sequence[Row], dialogs: int, seed: int, micro_tokens: int, mixed: bool = False) -> None:
        line = sorted(range(len(rows)), key=lambda index: (len(rows[index].ids), index))
        if mixed:
            line = np.random.default_rng([seed, len(rows)]).permutation(len(rows)).tolist()
        self._rows, self._seed, self._micro_tokens = rows, seed, micro_tokens
        self._groups = [line[start : start + dialogs] for start in range(0, len(line), dialogs)]

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._groups)

    def __getitem__(self, step: int) -> DialogBatch:
        epoch, position = divmod(step, len(self._groups))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._groups))
        batch = dialog_batch([self._rows[index] for index in self._groups[order[position]]])
        return replace(batch, micro_tokens=self._micro_tokens)


def training_rows(dialogs: Sequence[Dialog], tokenizer: Tokenizer, context: int) -> list[Row]:
    """Dialogs as token rows, loss on the assistant's tokens; those longer than the context are left out, counted."""
    encoded = [encode(dialog, tokenizer) for dialog in dialogs]
    rows = [Row(one.ids, one.trained) for one in encoded if len(one.ids) <= context and any(one.trained)]
    if len(rows) < len(encoded):
        warn(f"{len(encoded) - len(rows)} of {len(encoded)} dialogs are longer than {context} tokens or train nothing")
    return rows


def tune(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    steps: int,
    learning_rate: float,
    compute: Compute,
    title: str,
    out: Draft,
) -> TrainState:
    """One fine-tuning run with a short warm-up and a cosine to a twentieth of the peak; resumes from `out.work`."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    schedule = Schedule(learning_rate, FINAL_SHARE * learning_rate, warmup, steps)
    plan = Plan(steps, schedule, OPTIMIZER, compute.model_copy(update={"mesh": Mesh()}))  # trained by one process
    return train(model, objective, batches, plan, choose_hardware(compute), title, out.work)


def facts_of(rows: Sequence[Row], steps: int, learning_rate: float) -> dict[str, Any]:
    """What a run trained on, for `training.json`."""
    return {
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "trained_tokens": sum(sum(row.trained) for row in rows),
        "steps": steps,
        "learning_rate": learning_rate,
    }


def seed_of(seed: int, *names: object) -> int:
    """The seed of one random stream of a round."""
    return derive_seed(seed, "posttrain", *names)
