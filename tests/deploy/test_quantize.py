"""What the `quantize` stage measures, and that its gate closes where answers are corrupt and mean losses hide it."""

import os
import pathlib
import shutil
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
import torch

from herd.cli import SCHEMES as OFFERED
from herd.cli import main
from herd.console import HerdError
from herd.deploy.parity import parity
from herd.deploy.quantize import QuantizeSettings, compare, executed_parity, judge, quantize_member
from herd.infer.engine import Engine
from herd.infer.quantize import SCHEMES, quantize, round_trip
from herd.infer.quantized_files import load_quantized
from herd.intervals import kolmogorov_smirnov
from herd.model.config import ModelConfig
from herd.model.formats.native import save_native
from herd.model.tokenizer import train_tokenizer
from herd.recipe import Compute
from herd.run import trained_members
from herd.train.hardware import choose_hardware

CONFIG = ModelConfig(4, 64, 4, 2, 96, 400, 16, 128, tied_embeddings=True)
TEXT = (pathlib.Path(os.__file__).parent / "argparse.py").read_text()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], 400)


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.5, 2.0])
def test_the_distance_and_its_chance_are_scipys(shift):
    random = np.random.default_rng(3)
    first, second = random.normal(size=90), np.round(random.normal(size=140) + shift, 1)
    ours, theirs = kolmogorov_smirnov(first, second), cast(Any, scipy.stats.ks_2samp(first, second, method="exact"))
    assert ours[0] == pytest.approx(theirs.statistic) and ours[1] == pytest.approx(theirs.pvalue, rel=0.25, abs=0.02)
    assert kolmogorov_smirnov(first, first) == (0.0, 1.0)


def test_equal_scores_pass_and_a_few_corrupt_answers_do_not():
    random = np.random.default_rng(0)
    failed, before, after = 0, np.zeros(128), np.zeros(128)
    for _ in range(200):
        before, after = random.normal(-2, 0.5, 128), random.normal(-2, 0.5, 128)
        failed += not judge(before, after, [False] * 128, [False] * 128).passed
    assert failed <= 16  # of 200; the test of distance alone has 2, outliers of small samples the rest
    corrupt = random.normal(-2, 0.5, 128)
    corrupt[:5] = -9  # moves the mean by 0.3 and the distance by 0.04: neither would be seen
    gate = judge(before, corrupt, [False] * 128, [False] * 128)
    assert gate.p > 0.05 and gate.corrupt_after >= 5 and not gate.passed
    loops = judge(before, after, [False] * 128, [True] * 8 + [False] * 120)
    assert loops.corrupt_after >= 8 and not loops.passed
    assert not judge(before, after - 0.5, [False] * 128, [False] * 128).passed


def test_the_same_weights_pass_and_noise_does_not(tokenizer, untrained):
    tokens = torch.tensor(tokenizer.encode(TEXT)[:3000])
    model, noisy = untrained(CONFIG), cast(Any, untrained(CONFIG))
    with torch.no_grad():
        for layer in noisy.layers:
            layer.feed_forward.w2.weight.add_(torch.randn(64, 96) * 0.6)
        noisy.norm.weight.mul_(3)
    before = Engine(model, tokenizer)
    same = compare(before, Engine(quantize(model, "int8"), tokenizer), tokens, 64, 0)
    assert same.passed and same.distance < 0.2 and same.answers == 64
    assert not compare(before, Engine(noisy, tokenizer), tokens, 64, 0).passed
    with pytest.raises(HerdError, match="48 tokens at least"):
        compare(before, before, tokens[:20], 8, 0)


def test_executed_weights_only_schemes_have_the_parity_of_their_values(tokenizer, untrained):
    tokens = torch.tensor(tokenizer.encode(TEXT)[:600])
    model = untrained(CONFIG)
    for scheme in ("int8", "int4"):
        executed = executed_parity(model, quantize(model, scheme), tokens)
        state = {name: tensor for name, tensor in model.state_dict().items() if name != "output.weight"}
        values = parity(CONFIG, state, round_trip(state, CONFIG, scheme), tokens)
        assert executed.kl_nats == pytest.approx(values.kl_nats, rel=1e-3) and executed.kl_nats > 0


def test_the_stage_writes_a_model_and_what_it_costs(published, tokenizer, untrained):
    inputs = {
        "model": published("model", lambda d: save_native(d.folder, CONFIG, untrained(CONFIG).state_dict())),
        "tokenizer": published("tokenizer", lambda d: tokenizer.save(d.folder)),
    }
    compute = Compute()
    settings = QuantizeSettings(
        member="small",
        scheme="fp8",
        parity_tokens=600,
        answers=16,
        hardware=choose_hardware(compute).describe(),
        compute=compute,
    )
    made = published("quantize", lambda draft: quantize_member(settings, inputs, draft))
    quality = made.json("quality.json")
    assert quality["against_exact"]["tokens"] == 600 and quality["gate"]["answers"] == 16
    claims = {claim["id"]: claim["value"] for claim in made.json("claims.json")}
    assert claims["small.quantized.fp8.kl"] == quality["against_exact"]["kl_nats"] > 0
    assert load_quantized(made.path).config == CONFIG


def test_the_verb_offers_what_there_is():
    assert OFFERED == SCHEMES


def test_the_verb_and_what_runs_it(smoke_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run)
    name = trained_members(run)[0]
    asked = ["generate", "--run", str(run), "--member", name, "--max-tokens", "5", "--quantized", "int4", "def"]
    assert main(asked) == 1 and f"herd quantize {name} --scheme int4" in capsys.readouterr().err
    assert main(["quantize", name, "--scheme", "int4", "--run", str(run)]) == 0
    assert "gate" in capsys.readouterr().err
    assert main(asked) == 0 and capsys.readouterr().out.startswith("def")
    assert main(["quantize", name, "--scheme", "int4", "--run", str(run)]) == 0
    assert "done already" in capsys.readouterr().err
    assert main(["prove", "--run", str(run), "--claim", f"{name}.quantized.int4.kl"]) == 0
    assert main(["report", "--run", str(run)]) == 0
    assert "Quantized, as they run" in (run / "report.html").read_text()
