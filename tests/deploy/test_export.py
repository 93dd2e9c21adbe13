"""An export is proved before it is published, and refused where the proof fails."""

import os
import pathlib

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from herd.artifact import find
from herd.console import HerdError
from herd.deploy import export as export_module
from herd.deploy.export import ExportSettings, export
from herd.deploy.parity import parity
from herd.model.config import ModelConfig
from herd.model.formats.native import load_native, save_native
from herd.model.tokenizer import Tokenizer, train_tokenizer
from herd.model.transformer import Transformer

CONFIG = ModelConfig(2, 48, 4, 2, 96, 400, 12, 64, tied_embeddings=True)
TEXT = (pathlib.Path(os.__file__).parent / "argparse.py").read_text()


@pytest.fixture
def inputs(published, untrained):
    tokenizer = train_tokenizer([TEXT], 400)
    held = {"tokens": np.array(tokenizer.encode(TEXT[:8000]), dtype=np.uint16)}
    return {
        "model": published("model", lambda d: save_native(d.folder, CONFIG, untrained(CONFIG).state_dict())),
        "tokenizer": published("tokenizer", lambda d: tokenizer.save(d.folder)),
        "shards": published("shards", lambda d: save_file(held, d.folder / "heldout.safetensors")),
    }


@pytest.fixture
def run(published):
    def make(inputs, **settings):
        return published("export", lambda draft: export(ExportSettings(member="small", **settings), inputs, draft))

    return make


FORMS = ("huggingface", "meta", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "huggingface-f32")


def test_an_export_loads_elsewhere_and_says_what_each_form_costs(inputs, run):
    artifact = run(inputs, parity_tokens=300, formats=FORMS)
    reports = artifact.json("parity.json")["formats"]
    cost = {name: reports[name]["against_source"] for name in FORMS}
    assert all(one["tokens"] == 300 for one in cost.values())
    assert [reports[name]["exact_after_rounding"] for name in FORMS] == [True, True, True, False, False, True]
    assert cost["huggingface"] == cost["meta"]  # the same rounding
    assert cost["huggingface-f32"] == {"tokens": 300, "max_abs_logit_error": 0, "kl_nats": 0, "top1_agreement": 1}
    kls = [cost[name]["kl_nats"] for name in ("gguf-f16", "gguf-q8_0", "gguf-q4_0")]
    assert kls == sorted(kls) and kls[0] > 0 and kls[2] > 10 * kls[1]
    assert 0.001 < reports["gguf-q8_0"]["largest_change"] < 0.02 < reports["gguf-q4_0"]["largest_change"] < 0.2
    ids = {claim["id"] for claim in artifact.json("claims.json")}
    assert {f"small.export.{name}.{what}" for name in FORMS for what in ("kl", "top1-agreement")} == ids

    folder = artifact.path / "huggingface"
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT[:150])["input_ids"][:64]
    assert ids == tokenizer.encode(TEXT[:150], bos=True)[:64]
    source = load_native(inputs["model"].path)
    with torch.no_grad():
        rounded = Transformer(CONFIG)
        rounded.load_state_dict({name: w.bfloat16().float() for name, w in source.state_dict().items()})
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, rounded(torch.tensor([ids])), atol=1e-4, rtol=0)


def test_without_held_out_text_pythons_own_library_is_the_text(inputs, run):
    artifact = run({key: inputs[key] for key in ("model", "tokenizer")}, parity_tokens=200)
    report = artifact.json("parity.json")
    assert report["text"] == "Python library"
    assert report["formats"]["huggingface"]["against_source"]["tokens"] == 200


def test_the_figures_are_those_of_a_plain_computation(inputs, untrained):
    source, other = load_native(inputs["model"].path), untrained(CONFIG)
    with torch.no_grad():
        other.norm.weight.add_(0.05)
    tokens = torch.tensor(Tokenizer.load(inputs["tokenizer"].path).encode(TEXT[:600]))[:100]
    found = parity(CONFIG, source.state_dict(), other.state_dict(), tokens)
    with torch.no_grad():
        p, q = (torch.cat([m(part[None])[0] for part in tokens.split(64)]).double() for m in (source, other))
    kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
    assert found.tokens == 100
    assert found.kl_nats == pytest.approx(float(kl), rel=1e-3)
    assert found.max_abs_logit_error == pytest.approx(float((p - q).abs().max()), rel=1e-4)
    assert found.top1_agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())


@pytest.mark.parametrize("tensor", ["layers.1.attention.wk.weight", "norm.weight", "tok_embeddings.weight"])
def test_damaged_weights_are_not_published(tensor, inputs, tmp_path, monkeypatch, run):
    honest = export_module.write_huggingface

    def damaging(folder, config, state, tokenizer, dtype):
        state = {name: weight.clone() for name, weight in state.items()}
        state[tensor].view(-1)[:40] *= 1.05
        honest(folder, config, state, tokenizer, dtype)

    monkeypatch.setattr(export_module, "write_huggingface", damaging)
    with pytest.raises(HerdError, match=rf"huggingface: .*{tensor}.* not published"):
        run(inputs)
    assert find(tmp_path, "export", "0" * 64) is None


@pytest.mark.parametrize("form", ["gguf-q8_0", "gguf-q4_0", "gguf-f16", "meta"])
def test_rows_in_another_order_are_not_published(form, inputs, tmp_path, monkeypatch, run):
    """A permutation keeps every norm, so only what stands where is wrong."""
    writer = "write_meta" if form == "meta" else "write_gguf"
    honest = getattr(export_module, writer)

    def shuffling(folder, config, state, *others):
        state = dict(state)
        state["layers.0.attention.wq.weight"] = state["layers.0.attention.wq.weight"].flip(0)
        return honest(folder, config, state, *others)

    monkeypatch.setattr(export_module, writer, shuffling)
    with pytest.raises(HerdError, match=r"tensors: layers\.0\.attention\.wq\.weight \(1 in all\); not published"):
        run(inputs, formats=(form,))
    assert find(tmp_path, "export", "0" * 64) is None


def test_a_model_that_bfloat16_ruins_is_not_published(inputs, run, published, untrained):
    """Logits in the hundreds: rounding then moves them by whole nats."""
    model = untrained(CONFIG, 1.0)
    with torch.no_grad():
        model.norm.weight.mul_(30)
    ruined = published("ruined", lambda d: save_native(d.folder, CONFIG, model.state_dict()))
    with pytest.raises(HerdError, match=r"BF16 costs .* nats a token, more than 0\.05 is not published"):
        run({**inputs, "model": ruined})


def test_inputs_that_do_not_belong_together_are_refused(inputs, run, published):
    other = published("other", lambda d: train_tokenizer([TEXT], 300).save(d.folder))
    with pytest.raises(HerdError, match="the tokenizer has 300 tokens, the model 400 rows"):
        run({**inputs, "tokenizer": other})
    foreign = {"tokens": np.array([3, 400])}
    shards = published("foreign", lambda d: save_file(foreign, d.folder / "heldout.safetensors"))
    with pytest.raises(HerdError, match="outside the model's vocabulary of 400"):
        run({**inputs, "shards": shards})


def test_no_text_is_an_error(inputs, run, published):
    nothing = {"tokens": np.zeros(0, np.int32)}
    empty = published("empty", lambda d: save_file(nothing, d.folder / "heldout.safetensors"))
    with pytest.raises(HerdError, match="no tokens"):
        run({**inputs, "shards": empty})
