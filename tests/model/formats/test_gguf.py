"""Files that PyPI gguf writes: transformers reads the same weights; damage in any place is named, never followed."""

import os
import pathlib
import random
import struct
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from herd.console import HerdError
from herd.model.config import RopeScaling
from herd.model.dialog import Message, encode, from_openai, prompt
from herd.model.formats.gguf import gguf_name, read_gguf
from herd.model.formats.gguf_file import read_gguf_file
from herd.model.formats.native import build
from herd.model.formats.tokenizer_files import byte_characters
from herd.model.tokenizer import Tokenizer

LIBRARY = pathlib.Path(os.__file__).parent


@pytest.fixture(params=["smollm", "llama-bpe"])
def fields(request, gguf_fields):
    return gguf_fields(request.param)


@pytest.fixture
def smollm(gguf_fields):
    return gguf_fields("smollm")


@pytest.fixture
def tensors(smollm, gguf_tensors):
    return gguf_tensors(len(smollm["tokenizer.ggml.tokens"]))


@pytest.fixture
def ids():
    return torch.randint(0, 380, (2, 60), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_1"])
@torch.no_grad()
def test_transformers_gives_our_logits(kind, smollm, tensors, ids, write_gguf, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", smollm, tensors, kind)
    found = read_gguf(path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    logits = theirs(ids).logits
    assert logits.std() > 0.3  # there is something to compare
    torch.testing.assert_close(build(found.config, found.state)(ids), logits, atol=1e-4, rtol=0)
    dtype = torch.bfloat16 if kind == "BF16" else torch.float32
    assert found.config.tied_embeddings
    assert all(value.dtype == (dtype if value.dim() > 1 else torch.float32) for value in found.state.values())
    assert found.facts["name"] == "tiny" and found.facts["licence"] == "mit"
    assert found.facts["quantization"].get(kind, 0) >= 15


@torch.no_grad()
def test_an_untied_head_and_every_size_are_read(fields, gguf_tensors, ids, write_gguf, tmp_path):
    vocabulary = len(fields["tokenizer.ggml.tokens"])
    tensors = gguf_tensors(vocabulary)
    tensors["output.weight"] = tensors["token_embd.weight"][::-1].copy()
    fields |= {"llama.rope.freq_base": 250_000.0, "llama.attention.layer_norm_rms_epsilon": 1e-3}
    path = write_gguf(tmp_path / "model.gguf", fields, tensors)
    found = read_gguf(path)
    config = found.config
    assert (config.layers, config.dim, config.heads, config.kv_heads, config.ffn_dim) == (2, 64, 4, 2, 96)
    assert (config.head_dim, config.context, config.vocab_size) == (16, 128, vocabulary)
    assert (config.rope_theta, config.norm_eps, config.tied_embeddings) == (250_000.0, 1e-3, False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    torch.testing.assert_close(build(config, found.state)(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def converted(model, heads, kv_heads):
    """Tensors under GGUF's names, q and k permuted as in llama.cpp's convert_hf_to_gguf.py."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        data = value.numpy()
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:
                halves = data.reshape(count, 2, data.shape[0] // count // 2, *data.shape[1:])
                data = halves.swapaxes(1, 2).reshape(data.shape).copy()
        name = name.removesuffix(".weight").replace("model.layers.", "blk.")
        for old, new in names.items():
            name = name.replace(old, new)
        tensors[f"{name}.weight"] = data
    return tensors


def stretched_factors(factor, original, theta, head_dim):
    """rope_freqs.weight as llama.cpp's converter computes it."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)
    factors = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original:
            factors.append(factor)
        else:
            smooth = (original / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


@torch.no_grad()
def test_llama_31_scaling_is_read_from_its_factors(gguf_fields, write_gguf, tmp_path):
    fields = gguf_fields("llama-bpe") | {"llama.rope.freq_base": 500_000.0, "llama.context_length": 131_072}
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=400,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters=scaling,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config).eval()
    tensors = converted(model, 4, 2) | {"rope_freqs.weight": stretched_factors(8.0, 8192, 500_000.0, 16)}
    found = read_gguf(write_gguf(tmp_path / "model.gguf", fields, tensors))
    assert found.config.rope_scaling == RopeScaling(factor=8.0)
    short = replace(found.config, context=4_000)  # a table of 131,072 positions is slow to make
    ids = torch.randint(0, 400, (1, 3_000), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(build(short, found.state)(ids), model(ids).logits, atol=1e-3, rtol=0)

    tensors["rope_freqs.weight"] = stretched_factors(8.0, 4096, 500_000.0, 16)
    with pytest.raises(HerdError, match=r"rope_freqs\.weight is not the RoPE scaling of Llama 3\.1"):
        read_gguf(write_gguf(tmp_path / "other.gguf", fields, tensors))


def smollm_tokenizer(path):
    """transformers' tokenizer of a file, with the split of SmolLM2's tokenizer.json.

    transformers 5.23 does not read `tokenizer.ggml.pre` but splits like GPT-2: blanks before a digit differ then.
    """
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return tokenizer


def test_the_tokenizer_gives_transformers_ids(smollm, tensors, write_gguf, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", smollm, tensors)
    ours, theirs = read_gguf(path).tokenizer, smollm_tokenizer(path)
    for text in texts(80):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.call_id, ours.stop_ids) == (1, 2, 2, 4, {0, 2})
    assert (ours.chat_format, ours.pattern) == ("chatml", "smollm")


def test_a_llama_vocabulary_is_llamas(gguf_fields, gguf_tensors, write_gguf, tmp_path):
    fields = gguf_fields("llama-bpe")
    path = write_gguf(tmp_path / "model.gguf", fields, gguf_tensors(len(fields["tokenizer.ggml.tokens"])))
    tokenizer = read_gguf(path).tokenizer
    tokenizer.save(tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert all(tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False) for text in texts(20))
    assert (tokenizer.chat_format, tokenizer.special["<|eot_id|>"]) == ("llama3", 400 - 16 + 9)


def texts(count):
    """Code, prose, world text, and made-up runs of blanks, digits and signs."""
    draw = random.Random(0)
    found = [path.read_text(encoding="utf-8")[:4_000] for path in sorted(LIBRARY.glob("*.py"))[: count // 2]]
    found += [
        "नमस्ते दुनिया · สวัสดี · 你好，世界 · Здравствуй · 👩‍👩‍👧 · don't I'LL they've 12345 1½ ²³ Ⅷ \u3000…",
        "   leading\n\n\n\ttabs \t \n  trailing   ",
        'df.groupby("Sepal.Length_cm")["price (€)"].agg(["mean", "max"])  # 3.14e-10',
        "",
    ]
    alphabet = " \n\t\r\u00a0\u2003'sdm12٣é你._-(){}<|>AbZ"
    found += ["".join(draw.choices(alphabet, k=draw.randint(1, 60))) for _ in range(count - len(found))]
    return found


def test_a_character_without_tokens_is_left_out(smollm, tensors, write_gguf, tmp_path):
    """SmolLM2's vocabulary lacks 21 single bytes; transformers leaves their characters out, too."""
    tokens = smollm["tokenizer.ggml.tokens"]
    for gone in (0x04, 0xF1):
        place = tokens.index(byte_characters()[gone])
        tokens[place], smollm["tokenizer.ggml.token_type"][place] = f"unused{gone}", 5
    path = write_gguf(tmp_path / "model.gguf", smollm, tensors)
    ours, theirs = read_gguf(path).tokenizer, smollm_tokenizer(path)
    for text in ("a\x04b", "x \x04\x04 y\n", "\x04", "end\x05\x04", "a\U00050000b"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode("a\x04b")) == "ab"
    assert ours.encode_documents(["\x04", "a\x04b"])[0].tolist() == []
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("a\x04b") == ours.encode("a\x04b")


def test_a_token_that_its_merges_do_not_make_is_named(smollm, tensors, write_gguf, tmp_path):
    """Our encoder would give it for its bytes, llama.cpp and transformers would not."""
    tokens = smollm["tokenizer.ggml.tokens"]
    tokens[tokens.index(byte_characters()[4])] = "unused4"
    with pytest.raises(HerdError, match=r"token \d+ \(b'unused4'\): its bytes come out as \d tokens by the merges"):
        read_gguf(write_gguf(tmp_path / "model.gguf", smollm, tensors))


def test_special_tokens_tell_the_chat_format(smollm, tensors, write_gguf, tmp_path):
    found = read_gguf(write_gguf(tmp_path / "model.gguf", smollm | {"tokenizer.ggml.pre": "llama-bpe"}, tensors))
    assert (found.tokenizer.pattern, found.tokenizer.chat_format) == ("llama3", "chatml")


WRONG = {
    "architecture": ({}, {"architecture": "gptneox"}, "general.architecture is 'gptneox'; herd reads 'llama'"),
    "experts": ({"llama.expert_count": 8}, {}, "expert_count is 8; herd reads dense models"),
    "no layers": ({"llama.block_count": None}, {}, "llama.block_count is None; expected a whole number"),
    "too many layers": ({"llama.block_count": 2**31}, {}, "llama.block_count is 2147483648; expected .* to 1000"),
    "more layers": ({"llama.block_count": 3}, {}, r"tensor blk\.2\.\w+\.weight is missing"),
    "fewer layers": ({"llama.block_count": 1}, {}, r"unknown tensor blk\.1\.attn_k\.weight"),
    "layers in words": ({"llama.block_count": "two"}, {}, "llama.block_count is 'two'"),
    "heads": ({"llama.attention.head_count": 3}, {}, "llama.rope.dimension_count is 16, the heads are 21 wide"),
    "key-value heads": ({"llama.attention.head_count_kv": 3}, {}, "4 attention heads do not divide into 3"),
    "a list of heads": ({"llama.attention.head_count_kv": [2, 2]}, {}, r"head_count_kv is \[2, 2\]"),
    "context": ({"llama.context_length": 2**30}, {}, "llama.context_length is 1073741824"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, {}, "rms_epsilon is None; expected a number"),
    "theta": ({"llama.rope.freq_base": float("nan")}, {}, "rope.freq_base is nan; expected a number above 0"),
    "scaling": ({"llama.rope.scaling.type": "yarn"}, {}, "llama.rope.scaling.type is 'yarn'"),
    "width": ({"llama.feed_forward_length": 128}, {}, r"ffn_gate\.weight has shape \[96, 64\], expected \[128, 64\]"),
    "no vocabulary": ({"tokenizer.ggml.tokens": None}, {}, "tokenizer.ggml.tokens is missing"),
    "another tokenizer": ({"tokenizer.ggml.model": "llama"}, {}, "tokenizer 'llama' with pre 'smollm' is not"),
    "another pre": ({"tokenizer.ggml.pre": "qwen2"}, {}, "pre 'qwen2' is not supported; .*'llama-bpe' or 'smollm'"),
    "kinds": ({"tokenizer.ggml.token_type": [1, 2]}, {}, "token_type does not have a kind for each of 389 tokens"),
    "no merges": ({"tokenizer.ggml.merges": None}, {}, "tokenizer.ggml.merges is missing"),
    "merges": ({"tokenizer.ggml.merges": ["a b", "Ġ t"]}, {}, "tokenizer.ggml.merges: b'a' b'b' makes no token"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_named(name, smollm, tensors, write_gguf, tmp_path):
    changed, options, problem = WRONG[name]
    path = write_gguf(tmp_path / "model.gguf", smollm | changed, tensors, **options)
    with pytest.raises(HerdError, match=problem) as caught:
        read_gguf(path)
    assert str(caught.value).startswith(str(path))


def test_wrong_tensors_and_tokens_are_named(smollm, tensors, write_gguf, tmp_path):
    def problem(more_tensors=None, **changed):
        with pytest.raises(HerdError) as caught:
            path = write_gguf(tmp_path / "model.gguf", smollm | changed, tensors | (more_tensors or {}))
            dict(read_gguf(path).state)
        return str(caught.value)

    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    assert "unknown tensor blk.0.attn_q.bias; herd reads Llama models without biases" in problem(bias)
    assert "output_norm.weight has shape [32]" in problem({"output_norm.weight": np.ones(32, np.float32)})
    assert "holds values that are not finite" in problem({"output_norm.weight": np.full(64, np.inf, np.float32)})
    assert "its kind I8 can't be dequantized" in problem({"output_norm.weight": np.ones(64, np.int8)})
    names = smollm["tokenizer.ggml.tokens"]
    assert "a token twice" in problem(**{"tokenizer.ggml.tokens": [*names[:-1], names[50]]})
    assert "neither special nor byte-level text" in problem(**{"tokenizer.ggml.tokens": [*names[:-1], "你"]})
    kinds = [*smollm["tokenizer.ggml.token_type"][:-1], 4]
    assert "kind 4) is neither special nor" in problem(**{"tokenizer.ggml.token_type": kinds})


def damaged(data, at, kind, *values):
    return data[:at] + struct.pack(kind, *values) + data[at + struct.calcsize(kind) :]


def key(name, kind, value):
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def headed(keys=b"", count=1, tensors=b"", tensor_count=0):
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, count) + keys + tensors


def tensor(dimensions, kind=0, offset=0, name=b"t"):
    place = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return struct.pack("<Q", len(name)) + name + place


HOSTILE = {
    "empty": (b"", "it is empty"),
    "another format": (b"PK\x03\x04" + b"\0" * 60, r"begins with b'PK\\x03\\x04'"),
    "another version": (b"GGUF" + struct.pack("<IQQ", 77, 0, 0), "version 77"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "expected b'GGUF' and version 2 or 3"),
    "endless keys": (headed(count=2**60), "number of keys is 1152921504606846976, at most"),
    "endless tensors": (headed(count=0, tensor_count=2**63), "number of tensors is"),
    "endless text": (headed(key("a", 8, struct.pack("<Q", 2**62))), "needs 4611686018427387904 bytes"),
    "endless list": (headed(key("a", 9, struct.pack("<IQ", 0, 2**50))), "length of a is"),
    "longer list": (headed(key("a", 9, struct.pack("<IQ", 12, 4_000_000))), "needs 32000000 bytes"),
    "list of empty texts": (headed(key("a", 9, struct.pack("<IQ", 8, 4_000_000))), "needs 8 bytes"),
    "list of lists": (headed(key("a", 9, struct.pack("<IQ", 9, 3))), "a list of kind 9"),
    "unknown kind": (headed(key("a", 99, b"")), "unknown kind 99"),
    "not text": (headed(key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "a is not UTF-8"),
    "key twice": (headed(key("a", 0, b"\1") * 2, 2), "key a is given twice"),
    "alignment": (headed(key("general.alignment", 4, struct.pack("<I", 0))), "alignment is 0, not a power of two"),
    "dimensions": (headed(count=0, tensors=tensor([1] * 9), tensor_count=1), "9 dimensions"),
    "huge shape": (headed(count=0, tensors=tensor([2**40, 2**40]), tensor_count=1), "ends at byte"),
    "no shape": (headed(count=0, tensors=tensor([0, 4]), tensor_count=1), "does not divide"),
    "far away": (headed(count=0, tensors=tensor([4], offset=2**63), tensor_count=1), "ends at byte"),
    "unknown quantization": (headed(count=0, tensors=tensor([4], kind=4_000), tensor_count=1), "unknown kind 4000"),
    "half a block": (headed(count=0, tensors=tensor([33], kind=8), tensor_count=1), "blocks of 32"),
    "tensor twice": (headed(count=0, tensors=tensor([1]) * 2, tensor_count=2) + b"\0" * 64, "given twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_line(name, tmp_path):
    data, problem = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(HerdError, match=problem) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(HerdError, match="missing"):
        read_gguf(tmp_path / "not-there.gguf")


def test_a_file_cut_anywhere_is_an_error(smollm, tensors, write_gguf, tmp_path):
    data = write_gguf(tmp_path / "model.gguf", smollm, tensors).read_bytes()
    path = tmp_path / "cut.gguf"
    draw = random.Random(0)
    for length in [*draw.sample(range(20_000), 60), *draw.sample(range(len(data)), 20), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(HerdError, match=r"cut\.gguf"):
            read_gguf(path)


def test_damaged_bytes_never_end_in_anything_but_an_error(smollm, tensors, write_gguf, tmp_path):
    """Most of the file's beginning are texts of the vocabulary, so some damage leaves a file that can be read."""
    data = write_gguf(tmp_path / "model.gguf", smollm, tensors).read_bytes()
    path = tmp_path / "damaged.gguf"
    draw, refused = random.Random(0), 0
    for _ in range(100):
        changed = bytearray(data)
        for at in draw.sample(range(draw.choice((64, 1_500, 20_000))), 3):
            changed[at] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            dict(read_gguf(path).state)
        except HerdError:
            refused += 1
    assert refused > 50


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_what_transformers_reads(adopted_file):
    """All tensors equal; logits on real text within 1e-4; token ids of 300 texts; the template of the file."""
    found = read_gguf(adopted_file)
    theirs = AutoModelForCausalLM.from_pretrained(
        adopted_file.parent, gguf_file=adopted_file.name, dtype=torch.float32
    ).eval()
    raw = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(adopted_file).tensors}
    assert len(raw) == 272 == len(found.state)
    for name, value in found.state.items():
        assert np.array_equal(value.numpy(), raw[gguf_name(name)].reshape(value.shape))

    tokenizer = smollm_tokenizer(adopted_file)
    many = [*texts(300), *(path.read_text(errors="replace")[:5_000] for path in LIBRARY.glob("[a-d]*/*.py"))]
    assert len(many) > 300
    for text in many:
        assert found.tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=False)

    text = (LIBRARY / "argparse.py").read_text() + "The committee published its report on rivers in spring. "
    tokens = torch.tensor([found.tokenizer.encode(text)[:700]])
    ours = build(found.config, found.state)(tokens)
    torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=0)

    messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "What is 2+2?\n\n 17"}]
    dialog = from_openai(messages)
    answered = [*messages, {"role": "assistant", "content": "4"}]
    render = tokenizer.apply_chat_template
    assert prompt(dialog, found.tokenizer) == render(messages, add_generation_prompt=True, return_dict=False)
    assert encode(dialog.then(Message("assistant", "4")), found.tokenizer).ids == render(answered, return_dict=False)


def dequantizable():
    """The kinds that PyPI gguf knows how to read."""
    found = []
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", dequantizable(), ids=lambda kind: kind.name)
def test_every_kind_that_gguf_dequantizes_is_read(kind, tmp_path):
    """K-quants among them, which nothing in Python writes: random bytes, small enough for their scales to be finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 0x3C, (3, 1_024 // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("x", rows, raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    found = read_gguf_file(tmp_path / "one.gguf")[1]["x"]
    assert (found.kind, found.shape) == (kind.name, (3, 1_024))
    assert np.array_equal(found.values(), gguf.quants.dequantize(rows, kind).reshape(3, 1_024), equal_nan=True)
