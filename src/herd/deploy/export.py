"""Stage `export`: a member in the formats that others load, each proved against the weights it came from.

The proof reads the written files back: its tensors must be the source's, rounded as the format rounds, to the bit;
of quantized ones the change must be what that many bits cost. Then logits on real text are compared with the unrounded
weights'. That the layout is what transformers, llama.cpp and Meta's code expect, which our own readers cannot show, is
proved in the tests, by them.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.artifact import Artifact, Draft
from herd.console import HerdError, say
from herd.deploy.forms import Form, form_of
from herd.deploy.parity import Parity, parity
from herd.evidence import Claim, write_claims
from herd.model.config import ModelConfig
from herd.model.formats.gguf import read_gguf
from herd.model.formats.gguf_write import GgufKind, tensor_kind, write_gguf
from herd.model.formats.huggingface import read_huggingface, write_huggingface
from herd.model.formats.meta import read_meta, write_meta
from herd.model.formats.native import open_native
from herd.model.formats.weights import OpenModel, read_tensors, stored
from herd.model.tokenizer import Tokenizer
from herd.recipe import ExportForm, Positive, Section

SCHEMA = 2
DTYPES: dict[GgufKind, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Ours. Rounding to 16 bits costs well under 0.01 nats a token; of SmolLM2-135M Q8_0 0.001 and Q4_0 0.24
MOST_KL_NATS: dict[GgufKind, float] = {"F32": 1e-6, "F16": 0.05, "BF16": 0.05, "Q8_0": 0.05, "Q4_0": 0.6}
MOST_CHANGE: dict[GgufKind, float] = {"Q8_0": 0.02, "Q4_0": 0.2}  # relative, of a tensor's norm; usual: 0.006, 0.09
TEXT_FILES = ("argparse", "statistics", "textwrap", "tarfile")  # of Python's own library: text that everybody has


class ExportSettings(Section):
    member: str
    formats: tuple[ExportForm, ...] = ("huggingface",)
    parity_tokens: Positive = 2048


def export(settings: ExportSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Write inputs["model"] in each format, in a folder of its name, and `parity.json`.

    The tokenizer is inputs["tokenizer"], or that of inputs["adopt"]; the text held-out tokens of inputs["shards"], or
    where there are none files of Python's library. Raises HerdError where the written model is not the source.
    """
    config, weights = open_native(inputs["model"].path)
    adopted = inputs.get("adopt")
    tokenizer = Tokenizer.load(adopted.path / "tokenizer" if adopted else inputs["tokenizer"].path)
    if tokenizer.vocab_size != config.vocab_size:
        raise HerdError(f"export: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size} rows")
    text, tokens = text_of(inputs, settings.parity_tokens, config, tokenizer)
    facts = adopted.json("origin.json") if adopted else {"name": settings.member}
    source, report = OpenModel(config, weights, tokenizer, facts), {}
    for name in settings.formats:
        path = write(out.folder / name, name, source, settings.member)
        report[name] = prove(path, form_of(name), source, tokens)
    out.write_json("parity.json", {"schema": SCHEMA, "text": text, "formats": report})
    claims = [c for name in report for c in _claims(settings.member, name, report[name], text)]
    write_claims(out.folder / "claims.json", claims)


def text_of(
    inputs: Mapping[str, Artifact], count: int, config: ModelConfig, tokenizer: Tokenizer
) -> tuple[str, Tensor]:
    """The name of a text to compare models on, and `count` tokens of it: of inputs["shards"], or Python's library."""
    if "shards" in inputs:
        return "held-out", _held_out(inputs["shards"].file("heldout.safetensors"), count, config)
    return "Python library", _library_tokens(tokenizer, count)


def write(folder: Path, name: ExportForm, model: OpenModel, member: str) -> Path:
    """Write a model in a format; returns the folder, of GGUF the file, which is named by the member."""
    config, state, tokenizer, facts = model
    to, kind = form_of(name)
    if to == "huggingface":
        write_huggingface(folder, config, state, tokenizer, DTYPES[kind])
        return folder
    if to == "meta":
        write_meta(folder, config, state, tokenizer, DTYPES[kind])
        return folder
    folder.mkdir(parents=True)
    path = folder / f"{member}-{kind.lower()}.gguf"
    write_gguf(path, config, state, tokenizer, kind, facts["name"], facts.get("licence"))
    return path


def prove(path: Path, form: Form, source: OpenModel, tokens: Tensor) -> dict[str, Any]:
    """Read what was written back and compare it with its source.

    Raises HerdError naming the folder and the figure that is out of bounds.
    """
    written = _read(path, form, source)
    if written.config != source.config:
        raise HerdError(f"{path}: read back, the config is {written.config}, not {source.config}; not published")
    changed = _compare_tensors(path, form, source, written.state)
    cost = parity(source.config, source.state, written.state, tokens)
    if not cost.kl_nats <= MOST_KL_NATS[form.kind]:  # so that NaN fails too
        most = f"more than {MOST_KL_NATS[form.kind]} is not published"
        raise HerdError(f"{path}: {form.kind} costs {cost.kl_nats:.3g} nats a token, {most}")
    exact = "weights equal to the bit after rounding" if not changed else f"weights changed by up to {changed:.2%}"
    say(
        f"export: {path.name} written and read back: {exact}; {form.kind} costs KL {cost.kl_nats:.2g} nats, "
        f"top-1 agrees on {cost.top1_agreement:.2%} of {cost.tokens} tokens"
    )
    return {"exact_after_rounding": not changed, "largest_change": changed, "against_source": asdict(cost)}


def _read(path: Path, form: Form, source: OpenModel) -> OpenModel:
    """The written model. Raises HerdError where its tokenizer is another one."""
    if form.to == "gguf":
        found = read_gguf(path)
    elif form.to == "meta":
        config, state = read_meta(path)
        config = replace(config, context=source.config.context)  # which Meta's format leaves to whoever loads it
        found = OpenModel(config, state, Tokenizer.load(path), {})
    else:
        found = OpenModel(*read_huggingface(path), Tokenizer.load(path), {})
    ours, theirs = source.tokenizer, found.tokenizer
    if (ours.ranks, ours.special, ours.pattern) != (theirs.ranks, theirs.special, theirs.pattern):
        raise HerdError(f"{path}: read back, the tokenizer is another one; not published")
    return found


def _compare_tensors(path: Path, form: Form, source: OpenModel, written: Mapping[str, Tensor]) -> float:
    """The largest change of a quantized tensor, relative to its norm; 0 where all are the source's, rounded.

    Raises HerdError naming tensors that are neither.
    """
    largest, damaged = 0.0, list[str]()
    for name, one in stored(source.state).items():
        before, after = one.read().float(), written[name].float()
        kind = tensor_kind(name, one.shape, form.kind, source.config) if form.to == "gguf" else form.kind
        if kind in DTYPES:
            if not torch.equal(after, before.to(DTYPES[kind]).float()):
                damaged.append(name)
            continue
        change = float((after - before).norm() / before.norm().clamp(min=1e-30))
        largest = max(largest, change)
        if not change <= MOST_CHANGE[kind]:
            damaged.append(name)
    if damaged:
        raise HerdError(
            f"{path}: not the source weights as {form.kind}; "
            f"tensors: {', '.join(damaged[:3])} ({len(damaged)} in all); not published"
        )
    return largest


def _claims(member: str, name: str, figures: Mapping[str, Any], text: str) -> list[Claim]:
    cost, stem = Parity(**figures["against_source"]), f"{member}.export.{name}"
    against, n, of = f"of {member} written as {name} against its own weights", cost.tokens, f"{text} tokens"
    return [
        Claim(f"{stem}.kl", f"KL divergence {against}", cost.kl_nats, "nats/token", n, of),
        Claim(
            f"{stem}.top1-agreement",
            f"agreement on the likeliest token {against}",
            cost.top1_agreement,
            "fraction",
            n,
            of,
        ),
    ]


def _held_out(path: Path, count: int, config: ModelConfig) -> Tensor:
    """The first `count` held-out tokens, or all where there are fewer."""
    tokens = read_tensors(path).get("tokens")
    if tokens is None or tokens.dim() != 1 or not len(tokens):
        raise HerdError(f"{path}: no tokens; a 1-D tensor 'tokens' is expected")
    tokens = tokens[:count].to(torch.int64)
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < config.vocab_size:
        raise HerdError(f"{path}: 'tokens' holds ids outside the model's vocabulary of {config.vocab_size}")
    return tokens


def _library_tokens(tokenizer: Tokenizer, count: int) -> Tensor:
    """Tokens of Python's own library: code and its documentation, the same share of each file."""
    library = Path(sysconfig.get_path("stdlib"))
    share = -(-count // len(TEXT_FILES))
    texts = ((library / f"{name}.py").read_text(encoding="utf-8")[: share * 12] for name in TEXT_FILES)
    return torch.tensor([token for text in texts for token in tokenizer.encode(text)[:share]])
