"""What torchrun starts in test_torchrun.py: a small training on a mesh, checkpointed after every step."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import torch

from herd.data.loader import Loader
from herd.model.config import ModelConfig
from herd.recipe import Optimizer
from herd.recipe_compute import Compute, Mesh, Pipeline, Saving
from herd.train import loop
from herd.train.hardware import Hardware
from herd.train.launch import fresh, open_network
from herd.train.loop import Plan, train
from herd.train.objective import next_token
from herd.train.optim import Schedule

CONFIG = ModelConfig(4, 16, 2, 2, 24, 64, 8, 16, tied_embeddings=True)


def main(folder: Path, mesh: Mesh) -> None:
    loop.CHECKPOINT_SHARE = math.inf  # a checkpoint after every step, however long it takes
    stream = np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint16)
    batches = Loader({"text": stream}, CONFIG.context, 8, 12, 1, 0)
    saving = Saving(every_seconds=1e-9)
    compute = Compute(mesh=mesh, pipeline=Pipeline(stages_per_rank=2), micro_sequences=1, checkpoints=saving)
    hardware = Hardware(torch.device("cpu"), torch.float32)
    network = open_network(CONFIG, fresh(CONFIG, 0), compute, hardware)
    plan = Plan(12, Schedule(0.01, 0.001, 3, 12), Optimizer(), compute)
    state = train(network, next_token, batches, plan, hardware, "elastic", folder)
    if (weights := network.gather()) is not None:
        digest = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)))
        rows = [(row["step"], row["loss"], row["gradient_norm"]) for row in state.metrics]
        (folder / "result.txt").write_text(f"{digest.hexdigest()} {rows}")


if __name__ == "__main__":
    degrees = dict(zip(("tp", "cp", "pp", "dp"), map(int, sys.argv[2:6]), strict=True))
    main(Path(sys.argv[1]), Mesh(**degrees))
