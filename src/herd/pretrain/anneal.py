"""Annealing: the learning rate falls to zero on a mix of better sources; checkpoints are averaged (paper 3.4.3)."""

from __future__ import annotations

from collections.abc import Mapping

from herd.artifact import Artifact, Draft
from herd.data.loader import derive_seed
from herd.data.shards import load_shards
from herd.evaluate.perplexity import DocumentLosses, score_documents
from herd.evidence import write_claims
from herd.model.formats.native import build, open_native, save_native
from herd.model.formats.weights import write_tensors
from herd.model.transformer import Transformer
from herd.pretrain.initial import StepSettings, plan_facts
from herd.pretrain.plan import (
    PlannedBatches,
    Stretch,
    TrainingPlan,
    bytes_per_token,
    late_mixture,
    training_mix,
    upsampling,
)
from herd.train.average import average_checkpoints
from herd.train.hardware import choose_hardware
from herd.train.launch import open_network, whole_model
from herd.train.loop import Plan, train
from herd.train.objective import next_token
from herd.train.optim import Schedule
from herd.train.record import write_training


def anneal(settings: StepSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: anneal inputs["model"]; the member's final weights are the mean of evenly spaced checkpoints.

    `tokens` of the recipe, or else `share` of initial pre-training's (inputs["pretrain"]), sets the length.
    """
    rules = settings.pretrain.anneal
    assert rules is not None
    shards = load_shards(inputs["shards"].path)
    initial = inputs["pretrain"].json("training.json")
    config, weights = open_native(inputs["model"].path)
    hardware = choose_hardware(settings.compute)
    network = open_network(config, weights.__getitem__, settings.compute, hardware)
    sequences = max(1, round(initial["batch_tokens"] / config.context))
    tokens = rules.tokens or (rules.share or 0.1) * initial["tokens"]
    steps = max(rules.checkpoints, round(tokens / (sequences * config.context)))
    rate = initial["learning_rate"]["final"]
    plan = TrainingPlan(
        config,
        (Stretch(steps, sequences, config.context),),
        Schedule(rate, 0.0, 0, steps, linear=True),
        steps * sequences * config.context * config.train_flops_per_token(),
    )
    mixture = late_mixture(shards, training_mix(settings.mix, inputs), initial["tokens"])
    factors = upsampling({**rules.upsample}, shards)
    batches = PlannedBatches(shards, plan.stretches, derive_seed(settings.seed, "anneal"), factors, mixture)
    moments = [round(steps * (i + 1) / rules.checkpoints) for i in range(rules.checkpoints)]
    kept = [out.work / f"average-{step}.safetensors" for step in moments]

    def keep(step: int) -> None:
        if (state := network.gather()) is not None:
            partial = out.work / "average.partial"
            write_tensors(partial, state)
            partial.replace(out.work / f"average-{step}.safetensors")

    def score(candidate: Transformer) -> DocumentLosses:
        return score_documents(candidate, shards.heldout, config.context, hardware.dtype, settings.max_documents)

    before = score(build(config, weights).to(hardware.device)) if network.leads else None
    title = f"{settings.member}: annealing"
    state = train(
        network,
        next_token,
        batches,
        Plan(steps, plan.schedule, settings.pretrain.optimizer, settings.compute, bytes_per_token(shards)),
        hardware,
        title,
        out.work,
        moments,
        keep,
    )
    model = whole_model(network, config, hardware)
    if model is None or before is None:
        return  # the first rank writes and measures
    averaged = build(config, average_checkpoints(kept)).to(hardware.device)
    save_native(out.folder, config, averaged.state_dict())
    write_training(out, state, plan_facts(plan, shards))
    last, mean = score(model), score(averaged)
    name, seed = settings.member, derive_seed(settings.seed, "anneal change")
    of = f"the held-out loss of {name}"
    claims = [
        last.claim(f"{name}.anneal.loss-last", f"{of} after annealing, last checkpoint"),
        mean.claim(f"{name}.anneal.loss-average", f"{of} after annealing, mean of {rules.checkpoints} checkpoints"),
        last.change_claim(before, f"{name}.anneal.change", f"what annealing changed in {of}", seed),
        mean.change_claim(last, f"{name}.anneal.averaging-change", f"what averaging changed in {of}", seed),
    ]
    write_claims(out.folder / "claims.json", claims)
