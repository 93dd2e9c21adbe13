"""Stages in processes of their own give what one process gives, whatever is asked; and a lost stage is an error.

Processes are forked from this one, which has imported everything, and meet in a file (gloo).
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.console import HerdError
from herd.infer import engine as engine_module
from herd.infer import pipeline as pipeline_module
from herd.infer.engine import Engine
from herd.infer.pipeline import (
    Plan,
    Stage,
    load_stage,
    pack,
    pipeline,
    processes,
    split,
    unpack,
)
from herd.model.cache import Part
from herd.model.config import ModelConfig
from herd.model.generation import Sampling
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import Transformer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
CPU = torch.device("cpu")
TEXT = (pathlib.Path(os.__file__).parent / "argparse.py").read_text()
GREEDY = Sampling(temperature=0.0, max_tokens=20)
NAN = 400  # a token that the tokenizer does not know, so that it is never drawn
SECONDS = 60.0


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    network = Transformer(ModelConfig(5, 48, 4, 2, 96, 401, 12, 96)).requires_grad_(False)
    for name, weight in network.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    network.tok_embeddings.weight[NAN] = float("nan")
    with torch.device("meta"):  # its first use imports for a second; not in each process
        Transformer(network.config)
    return network


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A process of two threads beside others on two cores mostly waits for its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(model: Transformer, tokenizer: Tokenizer) -> list[Any]:
    return Engine(model, tokenizer, max_batch=7).generate(*requests(tokenizer))


@pytest.fixture
def together(tmp_path: pathlib.Path, model: Transformer, tokenizer: Tokenizer) -> Callable[..., Any]:
    """Run `ask(generator, processes' numbers)` in the process of rank 0; its result, and how each process ended."""

    def run(
        ask: Callable[[Any, list[int]], Any],
        stages: int,
        micro_batches: int | None = None,
        layers: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.float32,
        seconds: float = SECONDS,
        **options: Any,
    ) -> tuple[Any, list[int | None]]:
        fork = multiprocessing.get_context("fork")
        result, tell = fork.Pipe(duplex=False)
        meeting = {"init_method": f"file://{tmp_path}/meeting", "world_size": stages}

        def work(rank: int, others: list[int]) -> None:
            torch.set_num_threads(1)
            with processes(CPU, seconds, rank=rank, **meeting):
                stage = load_stage(model.config, model.state_dict(), CPU, dtype, layers)
                with pipeline(stage, tokenizer, micro_batches, seconds=seconds, **options) as generator:
                    assert (generator is None) == (rank > 0)
                    if generator is not None:
                        tell.send(ask(generator, others))

        workers: list[Any] = []
        for rank in reversed(range(stages)):
            worker = fork.Process(target=work, args=(rank, [one.pid for one in workers]), daemon=True)
            worker.start()
            workers.append(worker)
        try:
            assert result.poll(SECONDS), "rank 0 gave no result"
            found = result.recv()
            for worker in workers:
                worker.join(SECONDS)
            return found, [worker.exitcode for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.join()

    return run


def requests(tokenizer: Tokenizer) -> tuple[list[list[int]], list[Sampling]]:
    """More prompts than rows, of many lengths, many that begin alike; drawn in all ways."""
    base = tokenizer.encode(TEXT)[:70]
    prompts = [base[: 3 + 11 * (index % 7)] + base[: index % 3] for index in range(24)]
    kinds = [
        GREEDY,
        Sampling(0.8, 0.9, max_tokens=25, seed=3),
        Sampling(1.0, 1.0, max_tokens=30, seed=5, stop=("e", "(")),
        Sampling(0.9, min_p=0.02, top_k=40, max_tokens=9, repetition=1.4, seed=7),
        Sampling(1.0, 1.0, max_tokens=12, seed=9, grammar='start: /[a-f]+/ "." '),
    ]
    return prompts, [kinds[index % len(kinds)] for index in range(24)]


def same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.ids, one.text, one.stop_reason) == (other.ids, other.text, other.stop_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize(
    ("stages", "micro_batches", "layers"),
    [(2, 1, None), (2, 2, (1, 4)), (4, 3, (1, 2, 1, 1)), (4, 4, None), (3, 5, None)],
)
def test_the_same_as_one_process(stages, micro_batches, layers, together, expected, tokenizer, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 60)  # prompts in several passes too
    prompts, samplings = requests(tokenizer)

    def ask(generator: Any, _: Any) -> Any:
        copies, copy_block = [], generator._copy
        generator._copy = lambda *numbers: (copies.append(numbers), copy_block(*numbers))
        most, send = [], generator._pass
        generator._pass = lambda *given: (most.append(len(generator._sent) + 1), send(*given))[1]
        found = generator.generate(prompts, samplings)
        assert copies and max(most) == micro_batches
        assert (
            "".join(generator.stream(prompts[2], samplings[2]))
            == generator.generate(prompts[2:3], samplings[2])[0].text
        )
        assert generator.blocks.used == generator.blocks.promised == 0 and not generator._live
        return found

    found, ended = together(ask, stages, micro_batches, layers, max_batch=7)
    assert ended == [0] * stages
    same(found, expected)
    assert len({one.stop_reason for one in found}) > 2


def test_what_goes_wrong_harms_no_other_request(together, model, tokenizer):
    prompts, _ = requests(tokenizer)

    def refused(generator: Any, prompts: list[list[int]], sampling: Sampling = GREEDY) -> str:
        with pytest.raises(HerdError) as error:
            generator.generate(prompts, sampling)
        return str(error.value)

    def asked(generator: Any) -> list[Any]:
        return [
            refused(generator, [[5], [6, 7], [5, NAN], [8]]),
            refused(generator, [[5], []]),
            refused(generator, [[5], [401]]),
            refused(generator, [[5] * 97]),
            refused(generator, [[5]], replace(GREEDY, grammar="start: x")),
            [one.stop_reason for one in generator.generate(prompts[:3], replace(GREEDY, seconds=1e-9))],
        ]

    def ask(generator: Any, _: Any) -> Any:
        errors = asked(generator)
        left = generator.stream_tokens(prompts[3], GREEDY)  # left while passes of it are on their way
        begun = [next(left), next(left)]
        left.close()
        stop, finish, steps = threading.Event(), generator._finish, []

        def slowly(*given: Any) -> Any:
            steps.append(1)
            if len(steps) == 6:
                stop.set()
            return finish(*given)

        generator._finish = slowly
        stopped = generator.generate(prompts, replace(GREEDY, max_tokens=60), stop)
        assert len(steps) == 6
        assert generator.blocks.used == generator.blocks.promised == 0
        answers: dict[int, Any] = {}
        threads = [  # two callers at once
            threading.Thread(target=lambda at=at: answers.update({at: generator.generate(prompts[at::2], GREEDY)}))
            for at in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors, begun, stopped, answers

    (errors, begun, stopped, answers), ended = together(ask, 2, 3, max_batch=5, keep=True)
    assert ended == [0, 0]
    alone = Engine(model, tokenizer, max_batch=5)
    assert errors == asked(alone)
    expected = alone.generate(prompts, GREEDY)
    assert tuple(begun) == expected[3].ids[:2]
    assert "cancelled" in {one.stop_reason for one in stopped} and any(one.ids for one in stopped)
    for at in (0, 1):
        same(answers[at], expected[at::2])


def test_bfloat16_and_a_cache_so_small_that_requests_wait(together, model, tokenizer):
    prompts, _ = requests(tokenizer)
    cache_bytes = 2 * 5 * model.config.kv_cache_bytes_per_token(2) * 32 // 5  # five blocks of two layers each

    def ask(generator: Any, _: Any) -> Any:
        assert generator.blocks.count == 5 and generator.model.config.layers == 1
        return generator.generate(prompts, GREEDY)

    found, ended = together(ask, 4, dtype=torch.bfloat16, cache_bytes=cache_bytes)
    assert ended == [0] * 4
    narrow = copy.deepcopy(model).to(torch.bfloat16)  # others use the model as it is
    expected = Engine(narrow, tokenizer).generate(prompts, GREEDY)
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs[0] == pytest.approx(other.logprobs[0], abs=0.3)


@pytest.mark.parametrize(("how", "seconds"), [(signal.SIGKILL, SECONDS), (signal.SIGSTOP, 2.0)])
def test_a_stage_that_is_lost_is_an_error_in_time(how, seconds, together):
    def ask(generator: Any, others: list[int]) -> Any:
        tokens = generator.stream_tokens([5, 6, 7], replace(GREEDY, max_tokens=90, temperature=1.0))
        next(tokens)
        os.kill(others[1], how)  # of rank 2
        started = time.monotonic()
        errors = []
        for attempt in (tokens, generator.stream_tokens([5], GREEDY)):
            with pytest.raises(HerdError) as error:
                list(attempt)
            errors.append(str(error.value))
        took = time.monotonic() - started
        os.kill(others[1], signal.SIGKILL)  # as torchrun does when one has failed
        return errors, took

    (errors, took), ended = together(ask, 4, seconds=seconds)
    assert "pipeline: rank " in errors[0] and "start all processes again" in errors[0] and "\n" not in errors[0]
    assert "pipeline: it broke off before" in errors[1]
    assert took < 15
    assert ended == [1, -signal.SIGKILL, 1, 0]


def test_a_stage_that_never_comes_is_an_error_in_time(tmp_path):
    meeting = {"init_method": f"file://{tmp_path}/meeting", "world_size": 2, "rank": 0}
    expected = pytest.raises(HerdError, match=r"pipeline: the processes did not find each other within 0\.5 s")
    with expected, processes(CPU, 0.5, **meeting):
        pass


def test_a_stage_reads_its_own_weights_only(model, monkeypatch):
    config = replace(model.config, tied_embeddings=True)
    weights = {name: value for name, value in model.state_dict().items() if name != "output.weight"}
    read: list[str] = []

    class Noted(dict):
        def __getitem__(self, name: str) -> Any:
            read.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr(pipeline_module.dist, "get_world_size", lambda: 3)
    stages = {}
    for rank in range(3):
        monkeypatch.setattr(pipeline_module.dist, "get_rank", lambda rank=rank: rank)
        read.clear()
        stages[rank] = load_stage(config, Noted(weights), CPU, torch.float32, (1, 1, 3))
        layers = {name.split(".")[1] for name in read if name.startswith("layers.")}
        around = {name for name in read if not name.startswith("layers.")}
        assert (sorted(layers), around) == {
            1: (["0"], {"tok_embeddings.weight"}),
            2: (["1"], set()),
            0: (["2", "3", "4"], {"norm.weight", "tok_embeddings.weight"}),
        }[rank]
        assert not any(weight.is_meta for weight in stages[rank].state_dict().values())
    assert isinstance(stages[0], Stage) and torch.equal(
        stages[0].state_dict()["output.weight"][:NAN], weights["tok_embeddings.weight"][:NAN]
    )


@given(st.integers(1, 200), st.integers(1, 16))
def test_layers_are_split_evenly(layers, stages):
    if layers < stages:
        with pytest.raises(HerdError, match="give each stage one or more"):
            split(layers, stages)
        return
    found = split(layers, stages)
    assert [layer for span in found for layer in span] == list(range(layers))
    assert max(map(len, found)) - min(map(len, found)) <= 1 and len(found) == stages


@pytest.mark.parametrize("given_layers", [(3, 3), (5,), (5, 0), (2, 2, 1)])
def test_a_wrong_split_is_refused(given_layers):
    with pytest.raises(HerdError, match="5 layers on 2 stages"):
        split(5, 2, given_layers)


NUMBER = st.integers(0, 2**40)
COPIES = st.lists(st.tuples(NUMBER, NUMBER, NUMBER), max_size=3)
PARTS = st.lists(st.builds(Part, st.lists(NUMBER, max_size=4), NUMBER, NUMBER), max_size=4)


@given(st.builds(Plan, COPIES, PARTS, st.lists(NUMBER, max_size=9)))
def test_plans_survive_the_way(plan):
    assert unpack(pack(plan)) == plan
