"""Stage `quantize`: a member with matrices in fewer bits, run as it will be run, with what that costs.

Three things are measured against the unquantized weights: the KL divergence and the agreement on the likeliest token
over real text, which the mean loss hides; and a gate on what the member then writes. Benchmarks can look fine while
some answers are corrupt, as the paper found with FP8 (6.2): so answers to the same prompts, by both, are scored by the
unquantized weights (mean log-probability a token), and the two distributions of scores are compared as wholes and at
their low ends.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from herd.artifact import Artifact, Draft
from herd.console import HerdError, human_bytes, progress, say, warn
from herd.deploy.export import text_of
from herd.deploy.parity import WINDOW_TOKENS, Parity, compared
from herd.evidence import Claim, write_claims
from herd.infer.engine import Engine
from herd.infer.quantize import Scheme, quantize
from herd.infer.quantized_files import save_quantized
from herd.intervals import kolmogorov_smirnov
from herd.model.formats.native import load_native
from herd.model.generation import Sampling
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import Transformer
from herd.recipe import Compute, Positive, Section
from herd.train.hardware import choose_hardware

SCHEMA = 1
PROMPT_TOKENS, ANSWER_TOKENS = 48, 48
SCORED_AT_ONCE = 32
WORST_P = 0.01  # two halves of one distribution get a smaller one in 1 of 100 gates
LOOP = 4  # tokens


class QuantizeSettings(Section):
    member: str
    scheme: Scheme
    parity_tokens: Positive = 2048
    answers: Positive = 128
    seed: int = 0
    hardware: dict[str, str]
    compute: Compute = Field(exclude=True)


@dataclass(frozen=True)
class Gate:
    """Scores of answers before and after (nats a token), by the unquantized weights, and what they say.

    `distance` is the largest between the two distribution functions, `p` how often chance alone makes a larger one.
    `corrupt`: answers with a score twice as far below the median as the lowest hundredth of those before, or that
    repeat four tokens over and over.
    """

    answers: int
    mean_before: float
    mean_after: float
    distance: float
    p: float
    corrupt_before: int
    corrupt_after: int

    @property
    def passed(self) -> bool:
        """Whether the scores may be of one distribution, and no more answers are corrupt than chance explains."""
        excess = self.corrupt_after - self.corrupt_before
        return self.p >= WORST_P and excess <= 2 * (self.corrupt_before + 1) ** 0.5


def quantize_member(settings: QuantizeSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Write inputs["model"] in a scheme, with `quality.json`; tokenizer and text are those of the `export` stage.

    A failed gate is said and recorded; the model is written, since someone may want it.
    """
    hardware = choose_hardware(settings.compute)
    exact = load_native(inputs["model"].path).requires_grad_(False)
    adopted = inputs.get("adopt")
    tokenizer = Tokenizer.load(adopted.path / "tokenizer" if adopted else inputs["tokenizer"].path)
    text, tokens = text_of(inputs, settings.parity_tokens, exact.config, tokenizer)
    small = quantize(exact, settings.scheme).to(hardware.device, hardware.dtype)
    save_quantized(out.folder, small, settings.scheme)
    exact = exact.to(hardware.device)
    cost = executed_parity(exact, small, tokens)
    plain = copy.deepcopy(exact).to(hardware.dtype)
    floor = executed_parity(exact, plain, tokens)
    del exact
    gate = compare(Engine(plain, tokenizer), Engine(small, tokenizer), tokens, settings.answers, settings.seed)
    quality = {
        "schema": SCHEMA,
        "text": text,
        "scheme": settings.scheme,
        "against_exact": asdict(cost),
        "unquantized_against_exact": asdict(floor),
        "gate": asdict(gate) | {"passed": gate.passed},
    }
    out.write_json("quality.json", quality)
    write_claims(out.folder / "claims.json", claims(settings, cost, gate, text))
    _say(settings, out.folder, cost, floor, gate)


@torch.inference_mode()
def executed_parity(exact: Transformer, model: Transformer, tokens: Tensor) -> Parity:
    """How far a model as it runs is from exact weights in float32, over a 1-D tensor of token ids."""
    windows = tokens.split(min(exact.config.context, WINDOW_TOKENS))
    with progress("comparing logits", len(tokens)) as bar:

        def logits() -> Iterator[tuple[Tensor, Tensor]]:
            for window in windows:
                at = window[None].to(exact.norm.weight.device)
                yield exact(at)[0].float(), model(at)[0].float()
                bar.update(len(window))

        return compared(logits())


def compare(before: Engine, after: Engine, tokens: Tensor, answers: int, seed: int) -> Gate:
    """Let both continue the same beginnings at temperature 1 and compare the scores of what they write.

    Beginnings are spread over the text. Raises HerdError for a text that is too short for one.
    """
    length = min(PROMPT_TOKENS, before.model.config.context // 2)
    if len(tokens) < length:
        raise HerdError(f"the gate needs a text of {length} tokens at least, this one has {len(tokens)}")
    starts = np.linspace(0, len(tokens) - length, answers).astype(int).tolist()
    prompts = [tokens[start : start + length].tolist() for start in starts]
    sampling = Sampling(1.0, 1.0, max_tokens=min(ANSWER_TOKENS, before.model.config.context - length), seed=seed)
    found: list[list[tuple[int, ...]]] = []
    for title, engine in (("answers before", before), ("answers after", after)):
        with progress(title, answers) as bar:
            written: list[tuple[int, ...]] = []
            for start in range(0, answers, SCORED_AT_ONCE):
                part = engine.generate(prompts[start : start + SCORED_AT_ONCE], sampling)
                written += [one.ids for one in part]
                bar.update(len(part))
            found.append(written)
    scores = [_scores(before, prompts, written) for written in found]
    return judge(scores[0], scores[1], [*map(_loops, found[0])], [*map(_loops, found[1])])


def judge(before: np.ndarray, after: np.ndarray, loops_before: Sequence[bool], loops_after: Sequence[bool]) -> Gate:
    """The gate of scores and of which answers loop."""
    middle, low = np.quantile(before, [0.5, 0.01])
    bound = middle - 2 * (middle - low)
    distance, p = kolmogorov_smirnov(before, after)
    corrupt = [
        int(np.sum((scores < bound) | np.array(loops, dtype=bool)))
        for scores, loops in ((before, loops_before), (after, loops_after))
    ]
    return Gate(len(after), float(before.mean()), float(after.mean()), distance, p, corrupt[0], corrupt[1])


def _scores(engine: Engine, prompts: Sequence[list[int]], answers: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Mean log-probability of each answer's tokens after its prompt."""
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    scored = engine.generate(whole, Sampling(0.0, max_tokens=0, prompt_logprobs=True))
    means = [np.mean(one.prompt_logprobs[-len(answer) :]) for one, answer in zip(scored, answers, strict=True)]
    return np.array(means)


def _loops(ids: Sequence[int]) -> bool:
    """Whether one run of four tokens fills half of an answer."""
    runs = Counter(tuple(ids[at : at + LOOP]) for at in range(len(ids) - LOOP + 1))
    return bool(runs) and len(ids) > 4 * LOOP and runs.most_common(1)[0][1] * LOOP * 2 >= len(ids)


def claims(settings: QuantizeSettings, cost: Parity, gate: Gate, text: str) -> list[Claim]:
    stem, of = f"{settings.member}.quantized.{settings.scheme}", f"{text} tokens"
    against = f"of {settings.member} run as {settings.scheme} against its own weights"
    scores = f"distribution of answers' scores {against}"
    return [
        Claim(f"{stem}.kl", f"KL divergence {against}", cost.kl_nats, "nats/token", cost.tokens, of),
        Claim(
            f"{stem}.top1-agreement",
            f"agreement on the likeliest token {against}",
            cost.top1_agreement,
            "fraction",
            cost.tokens,
            of,
        ),
        Claim(f"{stem}.gate.distance", f"distance of the {scores}", gate.distance, "fraction", gate.answers, "answers"),
        Claim(f"{stem}.gate.p", f"chance of a larger distance of the {scores}", gate.p, "fraction", gate.answers),
        Claim(f"{stem}.gate.corrupt", f"corrupt answers {against}", gate.corrupt_after / gate.answers, "fraction"),
    ]


def _say(settings: QuantizeSettings, folder: Path, cost: Parity, floor: Parity, gate: Gate) -> None:
    size = human_bytes((folder / "model.safetensors").stat().st_size)
    say(
        f"{settings.member} as {settings.scheme}: {size}; KL {cost.kl_nats:.2g} nats a token (unquantized in its "
        f"precision {floor.kl_nats:.2g}), top-1 agrees on {cost.top1_agreement:.2%} of {cost.tokens} tokens "
        f"(unquantized {floor.top1_agreement:.2%})"
    )
    told = (
        f"scores of {gate.answers} answers {gate.mean_before:.3f} before, {gate.mean_after:.3f} after, distance "
        f"{gate.distance:.3f} (p = {gate.p:.3g}); corrupt {gate.corrupt_before} before, {gate.corrupt_after} after"
    )
    if gate.passed:
        say(f"gate passed: {told}")
    else:
        warn(f"gate NOT passed: {told}; what it writes is not what the unquantized weights write")
