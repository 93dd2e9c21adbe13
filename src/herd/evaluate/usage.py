"""What a member costs to run here: decoding speed and memory. Facts of a machine, not of an artifact."""

from __future__ import annotations

import time

from herd.evidence import Claim
from herd.infer.engine import Engine
from herd.model.generation import Sampling

TIMED_TOKENS = 96


def usage_claims(name: str, engine: Engine) -> list[Claim]:
    """Claims on a member: tokens a second of one greedy sequence, and bytes of weights and one full context."""
    config = engine.model.config
    device = engine.model.norm.weight.device.type
    speed, count = _decode_speed(engine)
    held = 2 * config.parameters + config.kv_cache_bytes_per_token() * config.context
    what = f"decoding speed of {name}, one sequence, {device}"
    return [
        Claim(f"{name}.decode.tokens-per-second", what, speed, "tokens/s", count, "tokens"),
        Claim(f"{name}.memory.bytes", f"weights of {name} in bf16 and the cache of one full context", held, "bytes"),
    ]


def _decode_speed(engine: Engine) -> tuple[float, int]:
    """Tokens a second, after one short warm-up, and how many were timed."""
    prompt = engine.tokenizer.encode("def main():\n", bos=True)
    engine.generate([prompt], Sampling(temperature=0.0, max_tokens=4))
    started = time.perf_counter()
    done = len(engine.generate([prompt], Sampling(temperature=0.0, max_tokens=TIMED_TOKENS))[0].ids)
    return done / (time.perf_counter() - started), done
