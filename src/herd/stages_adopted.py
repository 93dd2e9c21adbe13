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
    return Stage("questions", "herd.posttrain.questions:write_all", 2, settings, facts=facts)


class _Steps:
    """What the stages of one member's round have in common: their names, inputs and settings."""

    def __init__(self, recipe: Recipe, posttrain: Posttrain, name: str) -> None:
        from herd.train.hardware import choose_hardware
        from herd.train.launch import describe

        self.name, self.confidence = name, recipe.evaluate.confidence
        hardware = choose_hardware(recipe.compute).describe() | describe(recipe.compute)
        self.where: dict[str, Any] = {"member": name, "threads": posttrain.threads}
        self.where |= {"hardware": hardware, "compute": recipe.compute}
        self.running: dict[str, Any] = self.where | {"seed": recipe.family.seed, "sandbox": recipe.tools.sandbox}
        self.tuning: dict[str, Any] = self.where | {"seed": recipe.family.seed, "micro_tokens": posttrain.micro_tokens}

    def stage(self, step: str, function: str, settings: Any, *others: str, **inputs: str) -> Stage:
        """A stage that reads the adopted member and, by the name of their step, `inputs`; `others` are shared ones."""
        read = {"adopt": "adopt"} | inputs
        named = {name: f"{source}-{self.name}" for name, source in read.items()} | dict(
            zip(others, others, strict=True)
        )
        return Stage(f"{step}-{self.name}", f"herd.{function}", 1, settings, named, member=self.name)

    def measured(self, model: str, step: str, before: str | None = None) -> Stage:
        from herd.evaluate.executed import ExecutedSettings

        settings = ExecutedSettings(step=step, confidence=self.confidence, **self.running)
        inputs = {"model": model, "chats": "chats"} | ({"before": f"executed-{before}"} if before else {})
        function = "evaluate.executed:evaluate_executed"
        return self.stage(f"executed-{step}", function, settings, "questions", **inputs)


def _round(recipe: Recipe, posttrain: Posttrain, name: str) -> Iterator[Stage]:
    steps = _Steps(recipe, posttrain, name)
    yield from _first_tuning(steps, posttrain)
    yield from _choosing(steps, posttrain)
    yield from _preferring(steps, posttrain)
    if recipe.safety is not None:
        yield _dial(recipe.safety, steps.where, name)


def _first_tuning(steps: _Steps, posttrain: Posttrain) -> Iterator[Stage]:
    from herd.posttrain.chats import ChatSettings
    from herd.posttrain.sft import SftSettings

    chats = ChatSettings(synthesis=posttrain.synthesis, **steps.where)
    yield steps.stage("chats", "posttrain.chats:write_chats", chats)
    yield steps.measured("adopt", "zero-shot")
    tuning = SftSettings(
        learning_rate=posttrain.sft_learning_rate,
        epochs=posttrain.sft_epochs,
        batch_dialogs=posttrain.batch_dialogs,
        context_tokens=posttrain.context_tokens,
        **steps.tuning,
    )
    yield steps.stage("sft", "posttrain.sft:sft", tuning, "questions", chats="chats")
    yield steps.measured("sft", "after-sft", "zero-shot")


def _choosing(steps: _Steps, posttrain: Posttrain) -> Iterator[Stage]:
    from herd.posttrain.rejection import RejectionSettings
    from herd.posttrain.reward import RewardSettings
    from herd.posttrain.samples import SampleSettings

    sampling = SampleSettings(
        samples_per_prompt=posttrain.samples_per_prompt, temperature=posttrain.sample_temperature, **steps.running
    )
    yield steps.stage("samples", "posttrain.samples:sample", sampling, "questions", model="sft")
    judging = RewardSettings(
        learning_rate=posttrain.reward_learning_rate,
        pairs=posttrain.reward_pairs,
        batch_pairs=posttrain.batch_pairs,
        **steps.tuning,
    )
    yield steps.stage("reward", "posttrain.reward:train_reward", judging, "questions", samples="samples")
    choosing = RejectionSettings(
        learning_rate=posttrain.rejection_learning_rate or posttrain.sft_learning_rate,
        context_tokens=posttrain.context_tokens,
        **steps.tuning,
    )
    inputs = {"model": "sft", "samples": "samples", "reward": "reward"}
    yield steps.stage("rejection", "posttrain.rejection:rejection", choosing, "questions", **inputs)
    yield steps.measured("rejection", "after-rejection", "after-sft")


def _preferring(steps: _Steps, posttrain: Posttrain) -> Iterator[Stage]:
    from herd.posttrain.dpo import DpoSettings

    preferring = DpoSettings(
        learning_rate=posttrain.dpo_learning_rate,
        beta=posttrain.dpo_beta,
        nll_weight=posttrain.dpo_nll_weight,
        pairs=posttrain.dpo_pairs,
        batch_pairs=posttrain.batch_pairs,
        sandbox=steps.running["sandbox"],
        **steps.tuning,
    )
    yield steps.stage("dpo", "posttrain.dpo:dpo", preferring, "questions", model="rejection", samples="samples")
    yield steps.measured("dpo", "after-dpo", "after-rejection")


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
