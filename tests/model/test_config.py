"""Sizes are exact: the paper's, and those of the networks that are really built."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from herd.console import HerdError
from herd.model.cache import PagedCache
from herd.model.config import LLAMA3, ModelConfig, RopeScaling, ffn_width, released_ffn_width
from herd.model.transformer import Transformer


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    kv_heads = draw(st.integers(1, 3))
    return ModelConfig(
        layers=draw(st.integers(1, 3)),
        dim=draw(st.integers(1, 24)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        ffn_dim=draw(st.integers(1, 40)),
        vocab_size=draw(st.integers(1, 50)),
        head_dim=2 * draw(st.integers(1, 6)),
        context=draw(st.integers(1, 16)),
        tied_embeddings=draw(st.booleans()),
        rope_scaling=draw(st.none() | st.builds(RopeScaling, st.floats(1, 32))),
    )


@pytest.mark.parametrize(
    ("name", "total", "body"),
    [  # spec 2.1, counted from the released weights
        ("1B", 1_235_814_400, None),
        ("3B", 3_212_749_824, None),
        ("8B", 8_030_261_248, 6_979_588_096),
        ("70B", 70_553_706_496, 68_452_360_192),
        ("405B", 405_853_388_800, 401_650_696_192),
    ],
)
def test_the_papers_sizes_are_exact(name, total, body):
    assert LLAMA3[name].parameters == total
    assert body is None or LLAMA3[name].body_parameters == body


@pytest.mark.parametrize(
    ("name", "kibibytes", "full_gibibytes"), [("8B", 128, 16), ("70B", 320, 40), ("405B", 504, 63)]
)
def test_the_cache_of_a_token_is_the_tables(name, kibibytes, full_gibibytes):
    assert LLAMA3[name].kv_cache_bytes_per_token() == kibibytes * 1024
    assert LLAMA3[name].kv_cache_bytes_per_token() * LLAMA3[name].context == full_gibibytes * 2**30


@pytest.mark.parametrize(
    ("name", "multiplier", "multiple_of"), [("8B", 1.3, 1024), ("70B", 1.3, 4096), ("405B", 1.2, 4096)]
)
def test_the_released_rule_gives_the_released_widths(name, multiplier, multiple_of):
    assert released_ffn_width(LLAMA3[name].dim, multiplier, multiple_of) == LLAMA3[name].ffn_dim


@given(st.integers(1, 20_000), st.floats(0.5, 8), st.integers(1, 4096))
def test_a_width_is_the_next_multiple(dim, ratio, multiple_of):
    width = ffn_width(dim, ratio, multiple_of)
    assert width % multiple_of == 0 and width - multiple_of < int(ratio * dim) <= width


@settings(max_examples=40, deadline=None)
@given(configs())
def test_counts_are_those_of_the_network_that_is_built(config):
    model = Transformer(config)
    counts = {name: p.numel() for name, p in model.named_parameters()}  # a tied head is listed once
    assert config.parameters == sum(counts.values())
    assert config.body_parameters == sum(
        n for name, n in counts.items() if not name.startswith(("tok_embeddings", "output"))
    )
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert config.matmul_parameters == matrices


@given(configs(), st.integers(1, 5))
def test_the_cache_is_as_large_as_it_says(config, tokens):
    cache = PagedCache(config, 1, tokens, torch.bfloat16, torch.device("cpu"))
    assert cache.values.nbytes == tokens * config.kv_cache_bytes_per_token()


@settings(max_examples=15, deadline=None)
@given(configs())
def test_training_flops_are_those_that_torch_counts(config):
    """Forward FLOPs of the matrices by torch's counter, times three; attention over half the context on average."""
    model = Transformer(config).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model.forward(torch.zeros(1, config.context, dtype=torch.long))
    counted = counter.get_flop_counts()["Global"]
    matrices = sum(flops for op, flops in counted.items() if "attention" not in str(op) and "bmm" not in str(op))
    assert 3 * matrices / config.context == 6 * config.matmul_parameters
    full_attention = config.train_flops_per_token() - 6 * config.matmul_parameters
    assert full_attention == 3 * 0.5 * (2 * 2 * config.context * config.heads * config.head_dim) * config.layers


@given(configs())
def test_a_config_survives_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_bad_configs_are_named():
    good = LLAMA3["8B"].to_dict()
    for change, message in [
        ({"kv_heads": 5}, "32 attention heads do not divide into 5"),
        ({"head_dim": 3}, "head_dim 3 is odd"),
    ]:
        with pytest.raises(HerdError, match=message):
            ModelConfig.from_dict(good | change)
    with pytest.raises(HerdError, match=r"model config.*'experts'"):
        ModelConfig.from_dict(good | {"experts": 8})
    with pytest.raises(HerdError, match=r"model config.*'layers'"):
        ModelConfig.from_dict({k: v for k, v in good.items() if k != "layers"})
