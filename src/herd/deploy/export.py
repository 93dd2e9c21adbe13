"""Stage `export`: a member in the formats that others load, each proved against the weights it came from.

The proof reads the written files back. Rounding the source weights to bfloat16 first, they must be the same to the
bit, and so must the logits. Against the unrounded weights the difference is what bfloat16 costs. That the layout is
what transformers expects, which our own reader cannot show, is proved in the tests, by transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from herd.artifact import Artifact, Draft
from herd.console import HerdError, progress, say
from herd.evidence import Claim, write_claims
from herd.model.config import ModelConfig
from herd.model.formats.huggingface import read_huggingface, write_huggingface
from herd.model.formats.native import build, load_native
from herd.model.formats.weights import read_tensors
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import Transformer
from herd.recipe import Positive, Section

SCHEMA = 1
MAX_KL_NATS = 0.05  # ours: bfloat16 rounding alone costs well under 0.01 nats a token
WINDOW_TOKENS = 512  # bounds the logits of a 128K vocabulary to 260 MB a model


class ExportSettings(Section):
    member: str
    formats: tuple[Literal["huggingface"], ...] = ("huggingface",)
    parity_tokens: Positive = 2048


@dataclass(frozen=True)
class Parity:
    """How far a model's logits are from a reference's over `tokens` positions of real text.

    `kl_nats` is the mean of KL(reference || model); `top1_agreement` a fraction from 0 to 1.
    """

    tokens: int
    max_abs_logit_error: float
    kl_nats: float
    top1_agreement: float


def export(settings: ExportSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Write inputs["model"] with inputs["tokenizer"] as `huggingface/`, and `parity.json` on text of inputs["shards"].

    Raises HerdError where the written model is not the source: other logits after rounding, or KL above 0.05 nats.
    """
    source = load_native(inputs["model"].path)
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    if tokenizer.vocab_size != source.config.vocab_size:
        raise HerdError(
            f"export: the tokenizer has {tokenizer.vocab_size} tokens, the model {source.config.vocab_size} rows"
        )
    tokens = _held_out(inputs["shards"].file("heldout.safetensors"), settings.parity_tokens, source.config)
    report = {}
    for name in settings.formats:
        write_huggingface(out.folder / name, source.config, source.state_dict(), tokenizer, torch.bfloat16)
        report[name] = prove(source, out.folder / name, tokens)
    out.write_json("parity.json", {"schema": SCHEMA, "formats": report})
    write_claims(
        out.folder / "claims.json", [c for form in report for c in _claims(settings.member, form, report[form])]
    )


def _claims(member: str, form: str, figures: dict[str, dict[str, float]]) -> list[Claim]:
    cost, stem = figures["against_float32"], f"{member}.export.{form}"
    against = f"of {member} written as {form} in bfloat16 against its float32 weights"
    n, of = int(cost["tokens"]), "held-out tokens"
    return [
        Claim(f"{stem}.kl", f"KL divergence {against}", cost["kl_nats"], "nats/token", n, of),
        Claim(
            f"{stem}.top1-agreement",
            f"agreement on the likeliest token {against}",
            cost["top1_agreement"],
            "fraction",
            n,
            of,
        ),
    ]


def prove(source: Transformer, folder: Path, tokens: Tensor) -> dict[str, dict[str, float]]:
    """Read a written folder back and compare it with its source, both computed in float32.

    Raises HerdError naming the folder and the figure that is out of bounds.
    """
    config, state = read_huggingface(folder)
    if config != source.config:
        raise HerdError(f"{folder}: read back, the config is {config}, not {source.config}; not published")
    written = build(config, state)
    rounded = {name: weight.to(torch.bfloat16) for name, weight in source.state_dict().items()}
    damaged = [name for name, weight in state.items() if not torch.equal(weight, rounded[name])]
    exact = parity(build(config, rounded), written, tokens)
    if damaged or exact.max_abs_logit_error != 0:
        raise HerdError(
            f"{folder}: not the source weights rounded to bfloat16; logits differ by up to "
            f"{exact.max_abs_logit_error:g}, tensors: {', '.join(damaged[:3])} ({len(damaged)} in all); not published"
        )
    cost = parity(source, written, tokens)
    if not cost.kl_nats <= MAX_KL_NATS:  # so that NaN fails too
        raise HerdError(
            f"{folder}: bfloat16 costs {cost.kl_nats:.3g} nats a token, more than {MAX_KL_NATS} is not published"
        )
    say(
        f"export: {folder.name} written and read back: exact after rounding; "
        f"bfloat16 costs KL {cost.kl_nats:.2g} nats, top-1 agrees on {cost.top1_agreement:.2%} of {cost.tokens} tokens"
    )
    return {"after_rounding": asdict(exact), "against_float32": asdict(cost)}


@torch.inference_mode()
def parity(reference: Transformer, model: Transformer, tokens: Tensor) -> Parity:
    """Compare two models' logits on a 1-D tensor of token ids, in windows that fit context and memory."""
    window = min(reference.config.context, WINDOW_TOKENS)
    worst, kl, agreed = 0.0, 0.0, 0
    with progress("export: comparing logits", len(tokens)) as bar:
        done = 0
        for part in tokens.split(window):
            want, have = reference(part[None])[0], model(part[None])[0]
            error = (want - have).abs().max()
            worst = max(worst, float(error)) if not error.isnan() else float("nan")
            logp_want, logp_have = want.log_softmax(-1), have.log_softmax(-1)
            kl += float(F.kl_div(logp_have, logp_want, reduction="sum", log_target=True))
            agreed += int((want.argmax(-1) == have.argmax(-1)).sum())
            done += len(part)
            bar.update(done, "tokens")
    return Parity(len(tokens), worst, kl / len(tokens), agreed / len(tokens))


def _held_out(path: Path, count: int, config: ModelConfig) -> Tensor:
    """The first `count` held-out tokens, or all where there are fewer."""
    tokens = read_tensors(path).get("tokens")
    if tokens is None or tokens.dim() != 1 or not len(tokens):
        raise HerdError(f"{path}: no tokens; a 1-D tensor 'tokens' is expected")
    tokens = tokens[:count].to(torch.int64)
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < config.vocab_size:
        raise HerdError(f"{path}: 'tokens' holds ids outside the model's vocabulary of {config.vocab_size}")
    return tokens
