"""The long-context step: the same network on longer sequences, its RoPE wavelengths stretched (paper 3.4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from herd.artifact import Artifact, Draft
from herd.data.loader import derive_seed
from herd.data.shards import load_shards
from herd.evaluate.perplexity import DocumentLosses, score_documents
from herd.evidence import write_claims
from herd.model.formats.native import build, open_native, save_native
from herd.model.transformer import Transformer
from herd.pretrain.initial import StepSettings, plan_facts
from herd.pretrain.plan import (
    PlannedBatches,
    Stretch,
    TrainingPlan,
    bytes_per_token,
    late_mixture,
    long_context_scaling,
    training_mix,
)
from herd.train.hardware import choose_hardware
from herd.train.launch import open_network, whole_model
from herd.train.loop import Plan, train
from herd.train.objective import next_token
from herd.train.optim import Schedule
from herd.train.record import write_training


def long_context(settings: StepSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: continue inputs["pretrain"] at the long context, at the learning rate that it ended with.

    Measures the loss at the long context after it and before, there with RoPE stretched or not, whichever is better.
    """
    long = settings.pretrain.long_context
    assert long is not None
    shards = load_shards(inputs["shards"].path)
    before = inputs["pretrain"].json("training.json")
    hardware = choose_hardware(settings.compute)
    original, weights = open_native(inputs["pretrain"].path)
    config = original.stretched(long.context_tokens, long_context_scaling(settings.pretrain))
    network = open_network(config, weights.__getitem__, settings.compute, hardware)

    sequences = max(1, round(before["batch_tokens"] / long.context_tokens))
    steps = max(1, round(long.share * before["tokens"] / (sequences * long.context_tokens)))
    rate = before["learning_rate"]["final"]
    plan = TrainingPlan(
        config,
        (Stretch(steps, sequences, long.context_tokens),),
        Schedule(rate, rate, max(1, steps // 20), steps),
        steps * sequences * long.context_tokens * config.train_flops_per_token(),
    )

    def score(candidate: Transformer) -> DocumentLosses:
        return score_documents(candidate, shards.heldout, long.context_tokens, hardware.dtype, settings.max_documents)

    start = None
    if network.leads:
        shapes = config, replace(config, rope_scaling=None)
        candidates = (build(shape, weights).to(hardware.device) for shape in shapes)
        start = min(map(score, candidates), key=lambda losses: losses.nats_per_token)
    mixture = late_mixture(shards, training_mix(settings.mix, inputs), before["tokens"])
    batches = PlannedBatches(shards, plan.stretches, derive_seed(settings.seed, "long-context"), mixture=mixture)
    title = f"{settings.member}: context {long.context_tokens}"
    how = Plan(steps, plan.schedule, settings.pretrain.optimizer, settings.compute, bytes_per_token(shards))
    state = train(network, next_token, batches, how, hardware, title, out.work)
    model = whole_model(network, config, hardware)
    if model is None or start is None:
        return  # the first rank writes and measures
    save_native(out.folder, config, model.state_dict())
    write_training(out, state, plan_facts(plan, shards))
    after = score(model)
    name, at = settings.member, f"held-out loss of {settings.member} in windows of {long.context_tokens} tokens"
    claims = [
        start.claim(f"{name}.long-context.loss-before", f"{at}, before the long-context step"),
        after.claim(f"{name}.long-context.loss", f"{at}, after the long-context step"),
        after.change_claim(
            start,
            f"{name}.long-context.change",
            f"what the long-context step changed in the {at}",
            derive_seed(settings.seed, "long-context change"),
        ),
    ]
    write_claims(out.folder / "claims.json", claims)
