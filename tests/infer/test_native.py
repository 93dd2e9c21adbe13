"""The C decode step against the network itself in float64, and what it refuses."""

import os
import platform
import shutil
import stat

import pytest
import torch

from herd.console import HerdError
from herd.infer import native
from herd.infer.quantize import quantize
from herd.model.cache import PagedCache, Part
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

BLOCK = 8
LONG = 150  # tokens: attention goes by 128 places


@pytest.fixture(scope="module", params=["", "-mno-avx512f", "-DHERD_PORTABLE"], ids=["native", "avx2", "portable"])
def kernel(request, tmp_path_factory):
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "cc", "gcc", "clang")):
        pytest.skip("no C compiler")
    if request.param.startswith("-m") and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("not an x86 processor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield native.build(*filter(None, [request.param]))


def small(tied=True, heads=4, kv_heads=2, head_dim=32, layers=2):
    return ModelConfig(layers, 64, heads, kv_heads, 96, 130, head_dim, 200, tied, rope_theta=10_000.0)


def random_codes(shape, bits, generator):
    groups = (shape[0], shape[1] // 32)
    scales = torch.rand(groups, generator=generator) * 0.02 * (1 if bits == 4 else 1 / 16) + 0.001
    scales = (scales * torch.randint(0, 2, groups, generator=generator).mul(2).sub(1)).half()
    if bits == 4:
        return torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8), scales
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8), scales


def quantized(config, layer_bits=4, end_bits=8):
    """A float64 network with random weights of few bits, and the same packed."""
    generator = torch.Generator().manual_seed(7)
    model, packed = Transformer(config).double().requires_grad_(False), {}
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.copy_(1 + 0.2 * torch.randn(weight.shape, generator=generator))
            continue
        bits = layer_bits if name.startswith("layers") else end_bits
        codes, scales = random_codes(weight.shape, bits, generator)
        plain = codes.double() - (8 if bits == 4 else 0)
        weight.copy_((plain.unflatten(-1, (-1, 32)) * scales.double()[..., None]).flatten(-2))
        packed[name] = (native.pack4 if bits == 4 else native.pack8)(codes, scales)
    return model, packed


def decoder(kernel, model, packed, blocks, dtype=torch.float32):
    norms = {name: weight for name, weight in model.named_parameters() if weight.dim() == 1}
    cache = PagedCache(model.config, blocks, BLOCK, dtype, torch.device("cpu"))
    return native.NativeDecoder(model.config, packed, norms, (model._cos_TF, model._sin_TF), cache, kernel), cache


def decoded(decoder, tokens, blocks, threads=1):
    """Logits of one sequence, token after token, (T, V)."""
    rows = [decoder.logits([token], [Part(blocks, at, at + 1)], threads) for at, token in enumerate(tokens)]
    return torch.cat(rows)


def with_rounded_inputs(model):
    """The same network, each matrix's inputs rounded to 8 bits in groups of 32."""

    def rounded(module, args):
        groups = args[0].unflatten(-1, (-1, 32))
        scales = groups.abs().amax(-1, keepdim=True) / 127
        return ((groups / scales).round() * scales).flatten(-2)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)
    return model


def shuffled(count):
    return torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def random_tokens(count, seed=0):
    return torch.randint(0, 130, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


BITS = pytest.mark.parametrize("tied, layer_bits, end_bits", [(True, 4, 8), (True, 8, 4), (False, 4, 8), (False, 8, 8)])


@BITS
@torch.no_grad()
def test_logits_differ_from_the_networks_by_inputs_of_8_bits(kernel, tied, layer_bits, end_bits):
    model, packed = quantized(small(tied), layer_bits, end_bits)
    tokens, blocks = random_tokens(LONG), shuffled(25)
    found = decoded(decoder(kernel, model, packed, 25)[0], tokens, blocks)
    assert relative_error(found, model(torch.tensor([tokens]))[0]) < 0.025  # 0.009 to 0.018


@BITS
@torch.no_grad()
def test_logits_are_those_of_the_network_with_inputs_of_8_bits(kernel, tied, layer_bits, end_bits):
    """After each of many lengths, over random keys and values: one whose inputs round otherwise spoils no other."""
    model, packed = quantized(small(tied), layer_bits, end_bits)
    model, blocks = with_rounded_inputs(model), shuffled(25)
    run, cache = decoder(kernel, model, packed, 25)
    cache.values.normal_(generator=torch.Generator().manual_seed(3))
    reference = PagedCache(model.config, 25, BLOCK, torch.float64, torch.device("cpu"))
    errors = []
    for position in (0, 1, 7, 8, 9, 15, 16, 100, 126, 127, 128, 129, 143, 144, 199):
        parts = [Part(blocks, position, position + 1)]
        reference.values.copy_(cache.values)
        reference.begin(parts)
        wanted = model(torch.tensor([[position % 130]]), cache=reference)[0]
        errors.append(relative_error(run.logits([position % 130], parts, 2), wanted))
    assert sorted(errors)[-4] < 1e-6
    assert max(errors) < 0.025  # an input half-way between two codes falls to either side


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(2, 2, 64), (9, 3, 64), (4, 1, 128), (2, 1, 16), (6, 2, 48)])
@torch.no_grad()
def test_heads_of_any_grouping_and_width(kernel, heads, kv_heads, head_dim):
    model, packed = quantized(small(True, heads, kv_heads, head_dim))
    tokens = random_tokens(20)
    wanted = with_rounded_inputs(model)(torch.tensor([tokens]))[0]
    exact = decoded(decoder(kernel, model, packed, 3)[0], tokens, [2, 0, 1])
    assert relative_error(exact, wanted) < 1e-5
    rounded = decoded(decoder(kernel, model, packed, 3, torch.bfloat16)[0], tokens, [2, 0, 1])
    assert relative_error(rounded, wanted) < 0.03  # 8 bits of a key or value, and then inputs that round otherwise


@torch.no_grad()
def test_cache_holds_what_the_network_would_store(kernel):
    model, packed = quantized(small())
    tokens = random_tokens(20)
    (run, plain), (rounded_run, rounded) = (
        decoder(kernel, model, packed, 3),
        decoder(kernel, model, packed, 3, torch.bfloat16),
    )
    decoded(run, tokens, [2, 0, 1])
    decoded(rounded_run, tokens, [2, 0, 1])
    assert torch.equal(rounded.values[0], plain.values[0].bfloat16())
    wanted = PagedCache(model.config, 3, BLOCK, torch.float64, torch.device("cpu"))
    wanted.begin([Part([2, 0, 1], 0, 20)])
    with_rounded_inputs(model).hidden(torch.tensor([tokens]), cache=wanted)
    torch.testing.assert_close(plain.values.double(), wanted.values, rtol=0, atol=1e-2 * float(wanted.values.std()))


@torch.no_grad()
def test_rows_and_threads_change_no_bit(kernel):
    model, packed = quantized(small())
    lengths = [5, 8, 9, 1, 140, 17, 3, 16, 33, 2]
    prompts = [random_tokens(length, seed) for seed, length in enumerate(lengths)]
    tables, at = [], 0
    for length in lengths:
        tables.append(list(range(at, at + -(-length // BLOCK))))
        at += len(tables[-1])
    run, cache = decoder(kernel, model, packed, at, torch.bfloat16)
    alone = [decoded(run, prompt, table)[-1] for prompt, table in zip(prompts, tables, strict=True)]
    parts = [Part(table, length - 1, length) for table, length in zip(tables, lengths, strict=True)]
    before = cache.values.clone()
    for count in range(1, len(lengths) + 1):
        for threads in (1, 2, 3):
            together = run.logits([prompt[-1] for prompt in prompts[:count]], parts[:count], threads)
            assert torch.equal(together, torch.stack(alone[:count]))
    assert torch.equal(cache.values, before)


@torch.no_grad()
def test_a_beginning_in_common_is_read_by_both(kernel):
    model, packed = quantized(small())
    run, _ = decoder(kernel, model, packed, 4)
    first, second = [*random_tokens(BLOCK), 1], [*random_tokens(BLOCK), 2]
    alone = [decoded(run, first, [0, 1])[-1], decoded(run, second, [2, 3])[-1]]
    both = run.logits([1, 2], [Part([0, 1], BLOCK, BLOCK + 1), Part([0, 3], BLOCK, BLOCK + 1)])
    assert torch.equal(both, torch.stack(alone))


@torch.no_grad()
def test_what_is_not_a_number_stays_seen(kernel):
    model, packed = quantized(small())
    model.get_parameter("layers.1.ffn_norm.weight")[3] = torch.nan
    run, _ = decoder(kernel, model, packed, 1)
    assert run.logits([1], [Part([0], 0, 1)]).isnan().all()


@torch.no_grad()
def test_exact_sums_are_exact(kernel):
    """Inputs of whole numbers up to 127 are their own codes: the head's sums are then integers times scales."""
    config = small(tied=False, layers=1)
    model, packed = quantized(config)
    shapes = {name: weight.shape for name, weight in model.named_parameters() if weight.dim() == 2}
    for name, shape in shapes.items():
        if name.startswith("layers"):  # layers that add nothing
            packed[name] = native.pack4(
                torch.full(shape, 8, dtype=torch.uint8), torch.ones(shape[0], shape[1] // 32).half()
            )
    signs = torch.randint(0, 2, (130, 64)) * 2 - 1
    packed["tok_embeddings.weight"] = native.pack8(signs.to(torch.int8), torch.ones(130, 2).half())
    codes = torch.randint(-127, 128, (130, 64), dtype=torch.int8)
    packed["output.weight"] = native.pack8(codes, torch.full((130, 2), 0.25).half())
    for norm in ("norm", "layers.0.attention_norm", "layers.0.ffn_norm"):
        model.get_parameter(f"{norm}.weight").fill_(127.0)
    run, _ = decoder(kernel, model, packed, 1)
    found = run.logits([5], [Part([0], 0, 1)])[0]
    torch.testing.assert_close(found, 0.25 * 127 * (codes.float() @ signs[5].float()), rtol=1e-5, atol=1e-3)


def test_packing_refuses_what_it_cannot_hold():
    with pytest.raises(HerdError, match="width of 48 is not a multiple of 32"):
        native.pack4(torch.zeros(4, 48, dtype=torch.uint8), torch.ones(4, 1).half())
    with pytest.raises(HerdError, match="4 bits"):
        native.pack4(torch.full((4, 32), 16, dtype=torch.uint8), torch.ones(4, 1).half())
    with pytest.raises(HerdError, match="-128"):
        native.pack8(torch.full((4, 32), -128, dtype=torch.int8), torch.ones(4, 1).half())
    with pytest.raises(HerdError, match="finite"):
        native.pack8(torch.zeros(4, 32, dtype=torch.int8), torch.full((4, 1), torch.inf).half())
    with pytest.raises(HerdError, match=r"expected torch\.int8"):
        native.pack8(torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, 1).half())


@torch.no_grad()
def test_networks_it_cannot_run_are_refused(kernel):
    model, packed = quantized(small())
    with pytest.raises(HerdError, match=r"norm\.weight"):
        native.NativeDecoder(
            model.config,
            packed,
            {},
            (model._cos_TF, model._sin_TF),
            PagedCache(model.config, 1, 8, torch.float32, torch.device("cpu")),
            kernel,
        )
    with pytest.raises(HerdError, match=r"layers.0.attention.wq.weight is missing"):
        decoder(kernel, model, {}, 1)
    with pytest.raises(HerdError, match="64 x 96, the model's 64 x 128"):
        decoder(kernel, model, packed | {"layers.1.attention.wo.weight": packed["layers.1.feed_forward.w2.weight"]}, 1)
    with pytest.raises(HerdError, match="float64"):
        decoder(kernel, model, packed, 1, torch.float64)
    narrow = Transformer(ModelConfig(1, 48, 4, 2, 96, 130, 16, 64, True))
    with pytest.raises(HerdError, match="dim 48 is not a multiple of 32"):
        decoder(kernel, narrow, {}, 1)
    with pytest.raises(HerdError, match="head_dim 24"):
        decoder(kernel, Transformer(small(head_dim=24)), {}, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    "tokens, parts",
    [
        ([], []),
        ([1, 2], [Part([0], 0, 1)]),
        ([130], [Part([0], 0, 1)]),
        ([-1], [Part([0], 0, 1)]),
        ([1], [Part([0], 0, 2)]),
        ([1], [Part([0], -1, 0)]),
        ([1], [Part([0], 8, 9)]),
        ([1], [Part([], 0, 1)]),
        ([1], [Part([2], 0, 1)]),
        ([1], [Part([-1], 0, 1)]),
        ([1], [Part([0] * 26, 200, 201)]),
        ([1, 2], [Part([0], 0, 1), Part([0], 1, 2)]),
        ([1, 2], [Part([0], 0, 1), Part([0, 1], 8, 9)]),
    ],
)
def test_steps_that_would_leave_the_memory_are_refused(kernel, tokens, parts):
    model, packed = quantized(small())
    with pytest.raises(ValueError):
        decoder(kernel, model, packed, 2)[0].logits(tokens, parts)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_without_a_compiler_there_is_none_and_it_is_said_once(fresh, monkeypatch):
    said = []
    monkeypatch.setattr(native, "say", said.append)
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    assert native.library() is None and native.library() is None
    assert said == ["native decoding is off: no C compiler (cc, gcc or clang)"]


def test_a_compiler_that_fails_is_named_with_its_error(fresh, monkeypatch):
    said = []
    monkeypatch.setattr(native, "say", said.append)
    broken = fresh / "broken"
    broken.write_text("#!/bin/sh\necho 'decode.c:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert native.library() is None
    assert said == [f"native decoding is off: {broken}: decode.c:1: error: no such thing"]


def test_compiled_once_and_kept_where_only_the_user_writes(fresh, monkeypatch):
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler")
    assert native.library() is not None
    kept = list((fresh / "herd" / "native").iterdir())
    assert len(kept) == 1 and not list(kept[0].parent.glob("tmp*"))
    assert stat.S_IMODE(kept[0].parent.stat().st_mode) == 0o700
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    native.library.cache_clear()
    assert native.library() is not None


def test_only_a_quantized_model_asks_for_the_kernel(kernel, monkeypatch):
    asked = []
    monkeypatch.setattr(native, "library", lambda: asked.append(1) or kernel)
    config = small()
    cache = PagedCache(config, 2, 8, torch.float32, torch.device("cpu"))
    plain = Transformer(config).requires_grad_(False)
    assert native.decoder_of(plain, cache) is None and not asked
    assert native.decoder_of(quantize(plain, "w8a8"), cache) is None and not asked
    found = native.decoder_of(quantize(plain, "int4"), cache)
    assert found is not None and asked
    assert found.logits([1], [Part([0], 0, 1)]).isfinite().all()
