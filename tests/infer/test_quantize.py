"""Quantized matrices: bounds of their error, the arithmetic of each scheme against plain float64, files."""

import pathlib
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from herd.console import HerdError
from herd.infer import quantize as module
from herd.infer.engine import Engine
from herd.infer.quantize import (
    ACTIVATION_CAP,
    MODULES,
    SCHEMES,
    QuantizedLinear,
    fp8_activations,
    kinds,
    quantize,
    quantized,
    scaled_product,
    widened,
)
from herd.infer.quantized_files import is_quantized, load_quantized, save_quantized
from herd.model.config import ModelConfig
from herd.model.generation import Sampling
from herd.model.transformer import Transformer

CONFIGS = {
    "tied": ModelConfig(4, 64, 4, 2, 96, 400, 16, 64, tied_embeddings=True),
    "untied, uneven": ModelConfig(3, 48, 4, 2, 96, 400, 12, 64),
}


@pytest.mark.parametrize(
    ("kind", "largest"), [("int8", 0.5 / 127), ("w8a8", 0.5 / 127), ("fp8", 1 / 16), ("int4", 0.1)]
)
def test_no_value_moves_further_than_its_format_allows(kind, largest):
    torch.manual_seed(1)
    weight = torch.randn(40, 96) * torch.logspace(-3, 2, 40)[:, None]
    weight[3] = 0
    weight[4, 5:] = 0
    after = widened(quantized(weight, kind))
    size = weight.abs() if kind == "fp8" else weight.abs().amax(1, keepdim=True)
    if kind == "int4":
        groups = weight.unflatten(1, (-1, 32))
        size = groups.abs().amax(2, keepdim=True).expand_as(groups).flatten(1)
        assert (after - weight).norm() < 0.09 * weight.norm()  # ggml's Q4_0 of normal weights has 0.088 to 0.09
    error = (after - weight).abs()
    floor = weight.abs().amax(1, keepdim=True) / 448 * 2**-10 if kind == "fp8" else 0  # below e4m3's normal range
    allowed = torch.maximum(size * largest * (3 if kind == "int4" else 1.001), torch.as_tensor(floor).expand_as(error))
    assert (error <= allowed + 1e-30).all() and not after[3].any()


def test_int4_is_closer_than_ggmls():
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
    from gguf.quants import quantize as ggml

    torch.manual_seed(2)
    for weight in (torch.randn(64, 256), torch.randn(64, 256) ** 3, torch.rand(64, 256) - 0.5):
        theirs = dequantize(ggml(weight.numpy(), GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
        ours = widened(quantized(weight, "int4"))
        assert (ours - weight).norm() < (torch.from_numpy(theirs) - weight).norm()


@pytest.mark.parametrize("shape", [(48, 64), (40, 24), (6, 96), (33, 100)])
@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SCHEMES)
def test_products_are_those_of_the_values(kind, dtype, rows, shape):
    if kind == "int4" and shape[1] % 32:
        return  # which no scheme asks for
    torch.manual_seed(3)
    x, weight = torch.randn(rows, shape[1], dtype=dtype), torch.randn(shape)
    linear = MODULES[kind](quantized(weight, kind))
    values = widened(linear.matrix).double()
    if kind == "w8a8":
        scales = x.double().abs().amax(1, keepdim=True) / 127
        wanted = (x.double() / scales).round() * scales @ values.T
    elif kind == "fp8":
        codes, scales = fp8_activations(x)
        wanted = codes.double() * scales.double() @ values.T
    else:
        wanted = x.double() @ values.T
    size = x.double().norm(dim=1, keepdim=True) * values.norm(dim=1)
    assert linear(x).dtype == dtype
    assert ((linear(x).double() - wanted).abs() / size).max() < (5e-7 if dtype == torch.float32 else 6e-3)
    assert linear(x[None, :, None]).shape == (1, rows, 1, shape[0])


def test_the_papers_fp8_rule():
    x = torch.tensor([[1.0, -2.0, 0.5], [3000.0, -1200.0, 1.0], [0.0, 0.0, 0.0]])
    codes, scales = fp8_activations(x)
    torch.testing.assert_close(scales[:2, 0], torch.tensor([2 / 448, ACTIVATION_CAP / 448]))
    values = codes.float() * scales
    assert values[0, 1] == -2 and values[1, 0] == ACTIVATION_CAP == -values[1, 1] and not values[2].any()
    # why there is a cap: one input of 1e6 would leave nothing of the others
    x = torch.cat((torch.full((1, 1), 1e6), torch.randn(1, 255)), 1)
    codes, scales = fp8_activations(x)
    assert (codes.float() * scales - x)[0, 1:].norm() < 0.4 * x[0, 1:].norm()
    uncapped = (x / (1e6 / 448)).to(torch.float8_e4m3fn).float() * (1e6 / 448)
    assert (uncapped - x)[0, 1:].norm() > 0.9 * x[0, 1:].norm()


def test_the_product_that_gpus_run_has_the_same_values():
    x, weight = torch.randn(32, 64), quantized(torch.randn(48, 64), "fp8")
    codes, scales = fp8_activations(x)
    kernel = scaled_product(codes, weight.codes, scales, weight.scales, torch.bfloat16)
    plain = MODULES["fp8"](weight)(x)
    torch.testing.assert_close(kernel.float(), plain, atol=0.05, rtol=0.01)


def test_which_matrices_a_scheme_changes():
    config = CONFIGS["tied"]
    fp8, w8a8, int4 = (kinds(config, scheme) for scheme in ("fp8", "w8a8", "int4"))
    assert set(fp8) == {f"layers.{i}.feed_forward.{w}.weight" for i in (1, 2) for w in ("w1", "w2", "w3")}
    assert not any("w2" in name or "layers.0" in name or "tok" in name for name in w8a8) and len(w8a8) == 12
    assert int4["tok_embeddings.weight"] == "int8" and int4["layers.0.attention.wo.weight"] == "int4"
    uneven = kinds(CONFIGS["untied, uneven"], "int4")
    assert uneven["layers.0.feed_forward.w2.weight"] == "int4" and uneven["layers.0.attention.wq.weight"] == "int8"
    assert uneven["output.weight"] == "int8"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_model_is_that_of_its_values_and_is_read_back(scheme, config, tmp_path, tokenizer, untrained):
    model = untrained(config, 0.15)
    small = quantize(model, scheme)
    ids = torch.randint(400, (2, 30))
    values = Transformer(config)
    state = module.round_trip(model.state_dict(), config, scheme)
    if config.tied_embeddings:
        state["output.weight"] = state["tok_embeddings.weight"]
    values.load_state_dict(state)
    with torch.inference_mode():
        have, want = small(ids), values(ids)
    if scheme in ("int8", "int4"):
        torch.testing.assert_close(have, want, atol=2e-3, rtol=1e-3)
    else:  # inputs are rounded too
        assert (have - want).norm() < 0.1 * want.norm()
    save_quantized(tmp_path, small, scheme)
    assert is_quantized(tmp_path)
    with torch.inference_mode():
        assert torch.equal(load_quantized(tmp_path)(ids), have)
    sampling = Sampling(0.0, max_tokens=12)
    prompts = [tokenizer.encode(text, bos=True) for text in ("def main(", "import", "x")]
    engine = Engine(load_quantized(tmp_path).to(torch.bfloat16), tokenizer)
    assert all(len(one.ids) for one in engine.generate(prompts, sampling))


@given(st.integers(1, 4), st.sampled_from(["int8", "int4", "w8a8", "fp8"]))
@settings(max_examples=8, deadline=None)
def test_more_bits_are_closer(seed, scheme):
    torch.manual_seed(seed)
    weight, x = torch.randn(32, 64), torch.randn(16, 64)
    error = {kind: float((MODULES[kind](quantized(weight, kind))(x) - F.linear(x, weight)).norm()) for kind in SCHEMES}
    assert error["int8"] < error["w8a8"] < error["fp8"] < error["int4"]


def test_bad_weights_and_damaged_folders_are_named(tmp_path, untrained):
    with pytest.raises(HerdError, match="NaN"):
        quantized(torch.tensor([[1.0, float("nan")]]), "int8")
    save_quantized(tmp_path, quantize(untrained(CONFIGS["tied"], 0.15), "int4"), "int4")
    note = tmp_path / "quantization.json"
    good = note.read_text()
    note.write_text(good.replace('"int4"', '"int3"'))
    with pytest.raises(HerdError, match=r"quantization.json: .* one of int8, int4, w8a8, fp8"):
        load_quantized(tmp_path)
    note.write_text(good.replace('"scheme": "int4"', '"scheme": "fp8"'))
    with pytest.raises(HerdError, match=r"model.safetensors: missing tensor"):
        load_quantized(tmp_path)
    note.write_text("[")
    with pytest.raises(HerdError, match=r"quantization.json"):
        load_quantized(tmp_path)
    pathlib.Path(tmp_path / "model.safetensors").unlink()
    note.write_text(good)
    with pytest.raises(HerdError, match=r"model.safetensors"):
        load_quantized(tmp_path)


def test_casting_a_model_leaves_its_codes_alone(untrained):
    small = quantize(untrained(CONFIGS["tied"], 0.15), "int4").to(torch.bfloat16)
    codes = cast(QuantizedLinear, small.get_submodule("layers.0.attention.wq")).matrix.codes
    scales = cast(QuantizedLinear, small.output).matrix.scales
    assert codes.dtype == torch.uint8 and scales.dtype == torch.float32
    assert small.norm.weight.dtype == torch.bfloat16
