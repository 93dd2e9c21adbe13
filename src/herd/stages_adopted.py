"""The stages of members that are adopted: one round of post-training, measured after each step, and the dial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.console import HerdError
from herd.recipe import Recipe
from herd.recipe_posttrain import Posttrain, Safety
from herd.stage import Stage, same

STEPS = {"sft": "after-sft", "rejection": "after-rejection", "dpo": "after-dpo"}  # stage -> what claims call it


def adopted_stages(recipe: Recipe, base: Path) -> list[Stage]:
    """The stages in order. Raises HerdError for more rounds than this version runs."""
    from herd.pretrain.adopt import AdoptSettings, fingerprint

    plan = []
    for member in recipe.member:
        if member.adopted:
            settings = AdoptSettings(member=member.name, source=member.from_, base=base)
            facts = fingerprint(member.from_, base)
            name = f"adopt-{member.name}"
            plan.append(Stage(name, "herd.pretrain.adopt:adopt", 1, settings, facts=facts, member=member.name))
    if recipe.posttrain is None or not recipe.assistants:
        return plan
    if recipe.posttrain.rounds > 1:
        raise HerdError(f"posttrain.rounds: {recipe.posttrain.rounds}; this version runs one round")
    plan.append(_questions(recipe, recipe.posttrain, base))
    if recipe.safety is not None:
        plan.append(_guard(recipe, recipe.safety, base))
    for member in recipe.assistants:
        plan += _round(recipe, recipe.posttrain, member.name)
    return plan


def _questions(recipe: Recipe, posttrain: Posttrain, base: Path) -> Stage:
    from herd.posttrain.questions import QuestionSettings
    from herd.posttrain.sources import fingerprint

    settings = QuestionSettings(
        seed=recipe.family.seed,
        source=posttrain.source,
        synthesis=posttrain.synthesis,
        sandbox=recipe.tools.sandbox,
        base=base,
    )
    facts = fingerprint(posttrain.source, base)
    return Stage("questions", "herd.posttrain.questions:write_all", 1, settings, facts=facts)


def _round(recipe: Recipe, posttrain: Posttrain, name: str) -> Iterator[Stage]:
    from herd.evaluate.executed import ExecutedSettings
    from herd.posttrain.chats import ChatSettings
    from herd.posttrain.dpo import DpoSettings
    from herd.posttrain.rejection import RejectionSettings
    from herd.posttrain.reward import RewardSettings
    from herd.posttrain.samples import SampleSettings
    from herd.posttrain.sft import SftSettings
    from herd.train.hardware import choose_hardware

    where: dict[str, Any] = {
        "member": name,
        "threads": posttrain.threads,
        "hardware": choose_hardware(recipe.compute).describe(),
        "compute": recipe.compute,
    }
    common: dict[str, Any] = where | {"seed": recipe.family.seed}
    running: dict[str, Any] = common | {"sandbox": recipe.tools.sandbox}
    adopt, samples = f"adopt-{name}", f"samples-{name}"
    base = {"adopt": adopt, "questions": "questions"}

    def stage(step: str, function: str, settings: Any, **inputs: str) -> Stage:
        return Stage(f"{step}-{name}", f"herd.{function}", 1, settings, base | inputs, member=name)

    def measured(model: str, step: str, before: str | None) -> Stage:
        settings = ExecutedSettings(step=step, confidence=recipe.evaluate.confidence, **running)
        inputs = {"model": f"{model}-{name}", "chats": f"chats-{name}"}
        inputs |= {"before": f"executed-{before}-{name}"} if before else {}
        return stage(f"executed-{step}", "evaluate.executed:evaluate_executed", settings, **inputs)

    chats = ChatSettings(synthesis=posttrain.synthesis, **where)
    yield Stage(f"chats-{name}", "herd.posttrain.chats:write_chats", 1, chats, {"adopt": adopt}, member=name)
    yield measured("adopt", "zero-shot", None)
    tuning = SftSettings(
        learning_rate=posttrain.sft_learning_rate,
        epochs=posttrain.sft_epochs,
        batch_dialogs=posttrain.batch_dialogs,
        context_tokens=posttrain.context_tokens,
        micro_tokens=posttrain.micro_tokens,
        **common,
    )
    yield stage("sft", "posttrain.sft:sft", tuning, chats=f"chats-{name}")
    yield measured("sft", "after-sft", "zero-shot")
    sampling = SampleSettings(
        samples_per_prompt=posttrain.samples_per_prompt, temperature=posttrain.sample_temperature, **running
    )
    yield stage("samples", "posttrain.samples:sample", sampling, model=f"sft-{name}")
    judging = RewardSettings(
        learning_rate=posttrain.reward_learning_rate,
        pairs=posttrain.reward_pairs,
        batch_pairs=posttrain.batch_pairs,
        **common,
    )
    yield stage("reward", "posttrain.reward:train_reward", judging, samples=samples)
    choosing = RejectionSettings(
        learning_rate=posttrain.rejection_learning_rate or posttrain.sft_learning_rate,
        context_tokens=posttrain.context_tokens,
        micro_tokens=posttrain.micro_tokens,
        **common,
    )
    inputs = {"model": f"sft-{name}", "samples": samples, "reward": f"reward-{name}"}
    yield stage("rejection", "posttrain.rejection:rejection", choosing, **inputs)
    yield measured("rejection", "after-rejection", "after-sft")
    preferring = DpoSettings(
        learning_rate=posttrain.dpo_learning_rate,
        beta=posttrain.dpo_beta,
        nll_weight=posttrain.dpo_nll_weight,
        pairs=posttrain.dpo_pairs,
        batch_pairs=posttrain.batch_pairs,
        **running,
    )
    yield stage("dpo", "posttrain.dpo:dpo", preferring, model=f"rejection-{name}", samples=samples)
    yield measured("dpo", "after-dpo", "after-rejection")
    if recipe.safety is not None:
        yield _dial(recipe.safety, where, name)


def _guard(recipe: Recipe, safety: Safety, base: Path) -> Stage:
    from herd.safety.measure import GuardSettings
    from herd.safety.prompts import fingerprint

    settings = GuardSettings(prompts=safety.prompts, base=base, false_refusal_budget=safety.false_refusal_budget)
    facts = fingerprint(safety.prompts, base)
    return Stage("guard", "herd.safety.measure:train", 1, settings, same("questions"), facts=facts)


def _dial(safety: Safety, where: dict[str, Any], name: str) -> Stage:
    from herd.safety.measure import DialSettings

    settings = DialSettings(per_source=safety.per_source, **where)
    inputs = {"model": f"dpo-{name}", "adopt": f"adopt-{name}", "guard": "guard"}
    return Stage(f"dial-{name}", "herd.safety.measure:measure_dial", 1, settings, inputs, member=name)
