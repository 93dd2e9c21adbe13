"""What a finished member is worth: bits per byte on held-out documents with intervals, speed and memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from herd.artifact import Artifact, Draft
from herd.data.loader import derive_seed
from herd.data.shards import load_shards
from herd.evaluate.perplexity import DocumentLosses, score_documents
from herd.evaluate.usage import usage_claims
from herd.evidence import Claim, write_claims
from herd.infer.engine import Engine
from herd.model.formats.native import load_native
from herd.model.tokenizer import Tokenizer
from herd.recipe import Compute, Evaluate, Section
from herd.train.hardware import choose_hardware

FEWEST_DOCUMENTS = 5  # a slice of fewer documents gets no number


class MemberEvaluation(Section):
    seed: int
    member: str
    context_tokens: int
    evaluate: Evaluate
    hardware: dict[str, str]
    compute: Compute = Field(exclude=True)


def evaluate_member(settings: MemberEvaluation, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: score inputs["model"] on held-out documents overall, by kind and by language.

    Losses of each document go to `documents.parquet`, so that members can be compared document by document.
    """
    shards = load_shards(inputs["shards"].path)
    hardware = choose_hardware(settings.compute)
    model = load_native(inputs["model"].path).to(hardware.device)
    losses = score_documents(
        model, shards.heldout, settings.context_tokens, hardware.dtype, settings.evaluate.max_documents
    )
    columns = {
        "id": losses.ids,
        "kind": losses.kinds,
        "language": losses.languages,
        "nats": losses.nats,
        "tokens": losses.tokens,
        "bytes": losses.bytes,
    }
    pq.write_table(pa.table(columns), out.folder / "documents.parquet", compression="zstd")
    write_claims(out.folder / "claims.json", [_claim(settings, losses, ""), *_slices(settings, losses)])

    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    usage = usage_claims(settings.member, Engine(model, tokenizer))
    write_claims(out.recorded / "claims.json", usage)


def _claim(settings: MemberEvaluation, losses: DocumentLosses, slice_name: str) -> Claim:
    rules = settings.evaluate
    seed = derive_seed(settings.seed, "evaluate") % 2**32
    low, high = losses.bits_per_byte_interval(seed, rules.bootstrap_samples, rules.confidence)
    return Claim(
        f"{settings.member}.bits-per-byte{slice_name}",
        f"bits per byte of {settings.member} on held-out documents{slice_name.replace('.', ', ')}",
        losses.bits_per_byte,
        "bits/byte",
        len(losses.ids),
        "held-out documents",
        low,
        high,
        rules.confidence,
        "bootstrap over documents",
    )


def _slices(settings: MemberEvaluation, losses: DocumentLosses) -> list[Claim]:
    claims = []
    for label, values in (("kind", losses.kinds), ("language", losses.languages)):
        for value in sorted(set(values)):
            keep = np.array([v == value for v in values])
            if keep.sum() >= FEWEST_DOCUMENTS:
                claims.append(_claim(settings, losses.select(keep), f".{label}.{value}"))
    return claims
