"""Generation by several processes for models that exceed one device: each holds a slice of the layers (paper 6.1).

The engine runs in the process of rank 0 as it does alone, and schedules; only how a pass is computed is another. It
sends several passes (micro-batches) before it asks for the first one's logits, so that stages compute at the same time:
a request's next token needs its last one, but other requests are in other passes. With as many passes as stages, of
equal cost, no stage waits; with M passes on P stages each waits 1 - M/P of the time.

Stages stand in a ring: rank 1 holds the embeddings and the first layers, ranks 2, 3, ... what follows, and rank 0 the
last layers and the head, so that logits, the widest tensors, stay where tokens are drawn. What a pass computes goes
from rank to rank; every stage does things in the order in which they were sent, therefore all caches agree on their
blocks. Plans are CPU tensors (gloo); hidden states go from device to device (gloo; on GPUs NCCL, which no test runs).

    torchrun --nproc-per-node 4 -m herd generate --member M "text"

or from Python, the same lines in every process:

    with processes(device):
        stage = load_stage(*open_native(folder), device, dtype)
        with pipeline(stage, tokenizer) as generator:
            if generator is not None:  # rank 0; the others serve here until it leaves
                generator.generate(prompts, sampling)

Shape suffixes: N tokens of a pass, D model dim, B requests, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from herd.console import HerdError, one_line
from herd.infer.blocks import BLOCK
from herd.infer.engine import CACHE_BYTES, Engine
from herd.model.cache import PagedCache, Part
from herd.model.config import ModelConfig
from herd.model.rope import rotary_frequencies, rotary_table
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import Transformer

SECONDS = 600.0  # a process that died is noticed at once; so long may one load, or compute a pass
FOREVER = timedelta(days=3650)
PENDING = 12  # messages that may wait for the next stage, three a pass
HEADER = 3  # numbers before each pass: length of its plan (0: the end), tokens, blocks of the cache


class Stage(Transformer):
    """Neighbouring layers of a network, themselves a network. Only the first has embeddings, only the last a head.

    `hidden` takes what the stage before gives, (1, N, D), and the first token ids. `config.layers` are its own;
    `most_layers` are those of the stage that has most.
    """

    def __init__(self, config: ModelConfig, layers: range, most_layers: int) -> None:
        super().__init__(replace(config, layers=len(layers)))
        self.first, self.last = layers.start == 0, layers.stop == config.layers
        self.start, self.most_layers = layers.start, most_layers
        if not self.first:
            self.tok_embeddings = nn.Identity()
        if not self.last:
            self.norm, self.output = nn.Identity(), nn.Identity()

    def load(self, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        """Take its own tensors from the whole network's, one by one."""
        state = {name: weights[self._stored(name)].to(device, dtype) for name in self.state_dict()}
        self.load_state_dict(state, assign=True)
        self.requires_grad_(False)
        config = self.config
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self._cos_TF, self._sin_TF = rotary_table(frequencies.to(device), config.context)

    def _stored(self, name: str) -> str:
        """What the whole network calls one of its tensors."""
        if name == "output.weight" and self.config.tied_embeddings:
            return "tok_embeddings.weight"
        if not name.startswith("layers."):
            return name
        _, layer, rest = name.split(".", 2)
        return f"layers.{int(layer) + self.start}.{rest}"


def split(layers: int, stages: int, given: Sequence[int] | None = None) -> list[range]:
    """The layers of each stage: as many each as possible, the first ones one more; or as many as `given`.

    Raises HerdError for a stage without layers, or where `given` are not all.
    """
    counts = list(given) if given is not None else [layers // stages + (at < layers % stages) for at in range(stages)]
    if len(counts) != stages or sum(counts) != layers or min(counts) < 1:
        raise HerdError(
            f"pipeline: {layers} layers on {stages} stages as {counts}; give each stage one or more, and all of them"
        )
    ends = [sum(counts[: at + 1]) for at in range(stages)]
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def load_stage(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[int] | None = None,
) -> Stage:
    """This process's stage, `layers` being those of each. Of `weights` (as of `open_native`) it reads its own."""
    stages = split(config.layers, dist.get_world_size(), layers)
    with torch.device("meta"):  # shapes only
        stage = Stage(config, stages[dist.get_rank() - 1], max(map(len, stages)))
    stage.load(weights, device, dtype)
    return stage


@contextlib.contextmanager
def processes(device: torch.device, seconds: float = SECONDS, **where: Any) -> Iterator[None]:
    """Join the others; `where` they meet is torchrun's by default, or arguments of torch's `init_process_group`.

    Raises HerdError where some don't come within `seconds`, which is how long any message is waited for, too.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _explained(f"the processes did not find each other within {seconds:g} s"):
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds), **where)
    try:
        if dist.get_world_size() < 2:
            raise HerdError("pipeline: one process; start two or more (torchrun --nproc-per-node 2 ...)")
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def pipeline(
    stage: Stage,
    tokenizer: Tokenizer,
    micro_batches: int | None = None,
    max_batch: int = 32,
    cache_bytes: int = CACHE_BYTES,
    keep: bool = False,
    seconds: float = SECONDS,
) -> Iterator[PipelinedEngine | None]:
    """In the process of rank 0 the generator; in the others None, after their stages have served until it was left.

    `micro_batches` passes are on their way at once (default: one for each stage); `max_batch` requests are spread over
    them. `cache_bytes`: of each stage. Raises HerdError where another process dies, or is silent for `seconds`.
    """
    if dist.get_rank():
        serve(stage, seconds)
        yield None
        return
    engine = PipelinedEngine(stage, tokenizer, micro_batches or dist.get_world_size(), seconds, max_batch, cache_bytes)
    engine.keep = keep
    try:
        yield engine
    finally:
        engine.close()


class PipelinedEngine(Engine):
    """An `Engine` whose passes go through the stages of all processes; this one holds the last."""

    def __init__(
        self, stage: Stage, tokenizer: Tokenizer, micro_batches: int, seconds: float, max_batch: int, cache_bytes: int
    ) -> None:
        own = cache_bytes * stage.config.layers // stage.most_layers  # so that no stage's share exceeds what was given
        super().__init__(stage, tokenizer, max_batch, own)
        self.in_flight, self._seconds = micro_batches, seconds
        self._next, self._copies = _Sender(1, seconds), list[tuple[int, int, int]]()
        self._broken: str | None = None

    def close(self) -> None:
        """Let the other stages end; does nothing where they are gone."""
        with self._lock, contextlib.suppress(HerdError):
            while self._sent:  # nobody asks for these any more, but stages wait to hand them on
                self._sent[0][1]()
                self._sent.popleft()
            with self._failing():
                self._next.send(torch.zeros(HEADER, dtype=torch.int64))
                self._next.flush()

    def _copy(self, source: int, target: int, tokens: int) -> None:
        self._copies.append((source, target, tokens))

    def _pass(self, parts: list[Part], tokens: list[int], rows: list[int]) -> Callable[[], Tensor]:
        plan, self._copies = Plan(self._copies, parts, tokens), []
        with self._failing():
            numbers = pack(plan)
            self._next.send(torch.tensor([len(numbers), len(tokens), self.blocks.count]), torch.tensor(numbers))
            weight = self.model.norm.weight
            hidden_1ND = torch.empty((1, len(tokens), self.model.config.dim), dtype=weight.dtype, device=weight.device)
            arriving = _receive(hidden_1ND, dist.get_world_size() - 1)  # goes on while other passes are computed here
        return lambda: self._finish(plan, hidden_1ND, arriving, rows)

    @torch.inference_mode()
    def _finish(self, plan: Plan, hidden_1ND: Tensor, arriving: Arriving, rows: list[int]) -> Tensor:
        """The last stage of a pass."""
        with self._failing():
            arriving(timedelta(seconds=self._seconds))
            self._cache = self._cache or self._new_cache()
            begin(self._cache, plan)
            hidden_1ND = self.model.hidden(hidden_1ND, cache=self._cache)
            return self.model.output(hidden_1ND[0, rows]).float()[:, : self.tokenizer.vocab_size].cpu()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """After an error stages may stand at different passes: nothing more is computed."""
        if self._broken is not None:
            raise HerdError(self._broken)
        self._broken = "pipeline: it broke off before; start all processes again"
        yield
        self._broken = None


@torch.inference_mode()
def serve(stage: Stage, seconds: float = SECONDS) -> None:
    """Compute a stage's part of all passes until rank 0 says it is over. Raises HerdError where another is gone."""
    before, after = dist.get_rank() - 1, (dist.get_rank() + 1) % dist.get_world_size()
    sender, cache, timeout = _Sender(after, seconds), None, timedelta(seconds=seconds)
    weight = next(stage.parameters())
    while True:
        header = torch.empty(HEADER, dtype=torch.int64)
        _receive(header, before)(FOREVER)  # nobody may ask for anything for long
        length, count, blocks = header.tolist()
        numbers = torch.empty(length, dtype=torch.int64)
        if length:
            _receive(numbers, before)(timeout)
        if after:  # rank 0 made the plan
            sender.send(header, *([numbers] if length else []))
        if not length:
            sender.flush()
            return
        plan = unpack(numbers.tolist())
        if stage.first:
            x = torch.tensor([plan.tokens], device=weight.device)
        else:
            x = torch.empty((1, count, stage.config.dim), dtype=weight.dtype, device=weight.device)
            _receive(x, before)(timeout)
        cache = cache or PagedCache(stage.config, blocks, BLOCK, weight.dtype, weight.device)
        begin(cache, plan)
        sender.send(stage.hidden(x, cache=cache))


class Plan(NamedTuple):
    """What every stage must know of a pass: blocks to copy before it (source, target, tokens), and its parts."""

    copies: Sequence[tuple[int, int, int]]
    parts: Sequence[Part]
    tokens: Sequence[int]


def begin(cache: PagedCache, plan: Plan) -> None:
    """Make a stage's cache ready for a pass."""
    for source, target, tokens in plan.copies:
        cache.copy(source, target, tokens)
    cache.begin(plan.parts)


def pack(plan: Plan) -> list[int]:
    """A plan as numbers, never none."""
    numbers = [len(plan.copies), len(plan.parts)]
    for copy in plan.copies:
        numbers += copy
    for part in plan.parts:
        numbers += [part.start, part.end, len(part.blocks), *part.blocks]
    return [*numbers, *plan.tokens]


def unpack(numbers: Sequence[int]) -> Plan:
    """Inverse of `pack`."""
    copies, parts, at = [], [], 2
    for _ in range(numbers[0]):
        copies.append((numbers[at], numbers[at + 1], numbers[at + 2]))
        at += 3
    for _ in range(numbers[1]):
        start, end, held = numbers[at : at + 3]
        parts.append(Part(numbers[at + 3 : at + 3 + held], start, end))
        at += 3 + held
    return Plan(copies, parts, numbers[at:])


Arriving = Callable[[timedelta], None]  # waits for a message, so long at most


def _receive(into: Tensor, rank: int) -> Arriving:
    """Begin to receive a message; call what is returned before it is read."""
    lost = f"rank {rank} died or was silent for too long"
    with _explained(lost):
        work = dist.irecv(into, rank)

    def wait(timeout: timedelta) -> None:
        with _explained(lost):
            if work is not None:
                work.wait(timeout)

    return wait


class _Sender:
    """Messages to one rank. They leave while this process goes on; it waits where too many do."""

    def __init__(self, rank: int, seconds: float) -> None:
        self.rank, self.timeout = rank, timedelta(seconds=seconds)
        self.lost = f"rank {rank} died or took nothing for {seconds:g} s"
        self._leaving: deque[tuple[dist.Work | None, Tensor]] = deque()  # a tensor must live until it is sent

    def send(self, *tensors: Tensor) -> None:
        with _explained(self.lost):
            self._leaving += [(dist.isend(tensor, self.rank), tensor) for tensor in tensors]
        self.flush(PENDING)

    def flush(self, left: int = 0) -> None:
        """Wait until no more than so many are on their way."""
        while len(self._leaving) > left:
            work, _ = self._leaving.popleft()
            with _explained(self.lost):
                if work is not None:
                    work.wait(self.timeout)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """An error of torch.distributed becomes one line; the others' own lines say why they ended."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise HerdError(f"pipeline: {what}; start all processes again ({one_line(error)})") from None
