"""The order of the stages: what each needs, which are done, and running the rest.

A stage's key is known once its inputs are published, so the plan is walked from the front: find the artifact or make
it, then go on. Stages of different members run side by side in worker processes. Whatever happens, what is published
stays published, and a stage stopped half-way keeps its checkpoints.
"""

from __future__ import annotations

import datetime
import fcntl
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.artifact import (
    Artifact,
    canonical_json,
    clean_drafts,
    find,
    folder_name,
    open_artifact,
    publish,
    stage_key,
    write_atomically,
)
from herd.console import HerdError, duration, say
from herd.evidence import Ledger
from herd.recipe import Pretrain, Recipe, Section, load_recipe

CURRENT = "current.json"
LOCK = "lock"


@dataclass(frozen=True)
class Stage:
    """One stage of a plan. `inputs` maps the names its function knows to the stages that make them.

    function: "module:name" of a function (settings, inputs, out), imported only when it runs. facts: what else the
    artifact depends on (installed packages, files of a folder). alone: runs in this process, with nothing beside it.
    """

    name: str
    function: str
    version: int
    settings: Section
    inputs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    member: str | None = None
    alone: bool = True

    @property
    def kind(self) -> str:
        return self.name.removesuffix(f"-{self.member}") if self.member else self.name

    def asked(self, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
        """What the key hashes."""
        settings = self.settings.model_dump(mode="json") | ({"facts": self.facts} if self.facts else {})
        return {
            "version": self.version,
            "settings": settings,
            "inputs": {name: a.content for name, a in inputs.items()},
        }


def stages(recipe: Recipe, base: Path) -> list[Stage]:
    """The stages of a recipe in order; `base` is the folder that its relative paths start from."""
    from herd.data.curate import CurateSettings
    from herd.data.shards import ShardSettings
    from herd.data.sources import CollectSettings, fingerprint
    from herd.data.vocabulary import VocabularySettings
    from herd.pretrain.forecast import ForecastSettings
    from herd.pretrain.ladder import LadderSettings
    from herd.train.hardware import choose_hardware

    seed, compute = recipe.family.seed, recipe.compute
    hardware = choose_hardware(compute).describe()
    collect = CollectSettings(sources=recipe.data.source, base=base)
    ladder_settings = LadderSettings(
        seed=seed,
        scaling=recipe.scaling,
        pretrain=initial_part(recipe.pretrain),
        max_documents=recipe.evaluate.max_documents,
        hardware=hardware,
        compute=compute,
    )
    plan = [
        Stage("sources", "herd.data.sources:collect", 1, collect, facts=fingerprint(collect)),
        Stage(
            "curate", "herd.data.curate:curate", 1, CurateSettings(data=recipe.data, seed=seed), {"sources": "sources"}
        ),
        Stage(
            "tokenizer",
            "herd.data.vocabulary:learn",
            1,
            VocabularySettings(seed=seed, tokenizer=recipe.tokenizer),
            {"curate": "curate"},
        ),
        Stage(
            "shards",
            "herd.data.shards:shard",
            1,
            ShardSettings(seed=seed),
            {"curate": "curate", "tokenizer": "tokenizer"},
        ),
        Stage("ladder", "herd.pretrain.ladder:ladder", 1, ladder_settings, {"shards": "shards"}),
        Stage(
            "forecast",
            "herd.pretrain.forecast:write_forecast",
            1,
            ForecastSettings(
                seed=seed, scaling=recipe.scaling, pretrain=initial_part(recipe.pretrain), member=recipe.member
            ),
            {"ladder": "ladder", "shards": "shards"},
        ),
    ]
    for member in recipe.member:
        plan += _member_stages(recipe, member.name, hardware)
    return plan


def _member_stages(recipe: Recipe, name: str, hardware: dict[str, str]) -> Iterator[Stage]:
    from herd.deploy.export import ExportSettings
    from herd.evaluate.member import MemberEvaluation
    from herd.pretrain.anneal import AnnealSettings
    from herd.pretrain.initial import InitialSettings
    from herd.pretrain.long_context import LongContextSettings

    member, shards = recipe.find_member(name), {"shards": "shards"}
    if member.from_ != "scratch":
        raise HerdError(f"member {name}: from = '{member.from_}' is not supported by this version; allowed: 'scratch'")
    common: dict[str, Any] = {
        "seed": recipe.family.seed,
        "max_documents": recipe.evaluate.max_documents,
        "hardware": hardware,
        "threads": recipe.compute.threads,
        "compute": recipe.compute,
    }
    where: dict[str, Any] = {"member": name, "alone": False}
    initial = last = f"pretrain-{name}"
    settings = InitialSettings(member=member, scaling=recipe.scaling, pretrain=initial_part(recipe.pretrain), **common)
    yield Stage(initial, "herd.pretrain.initial:initial", 1, settings, shards | {"forecast": "forecast"}, **where)
    if recipe.pretrain.long_context:
        longer = f"long-context-{name}"
        yield Stage(
            longer,
            "herd.pretrain.long_context:long_context",
            1,
            LongContextSettings(member=name, pretrain=without(recipe.pretrain, "anneal"), **common),
            shards | {"pretrain": initial},
            **where,
        )
        last = longer
    if recipe.pretrain.anneal:
        annealed = f"anneal-{name}"
        yield Stage(
            annealed,
            "herd.pretrain.anneal:anneal",
            1,
            AnnealSettings(member=name, pretrain=without(recipe.pretrain, "long_context"), **common),
            shards | {"pretrain": initial, "model": last},
            **where,
        )
        last = annealed
    evaluation = MemberEvaluation(
        seed=recipe.family.seed,
        member=name,
        evaluate=recipe.evaluate,
        hardware=hardware,
        context_tokens=recipe.pretrain.context_tokens,
        compute=recipe.compute,
    )
    yield Stage(
        f"evaluate-{name}",
        "herd.evaluate.member:evaluate_member",
        1,
        evaluation,
        shards | {"model": last, "tokenizer": "tokenizer"},
        **where,
    )
    export = ExportSettings(formats=tuple(recipe.deploy.formats))
    yield Stage(
        f"export-{name}",
        "herd.deploy.export:export",
        1,
        export,
        shards | {"model": last, "tokenizer": "tokenizer"},
        **where,
    )


def initial_part(pretrain: Pretrain) -> Pretrain:
    """What initial pre-training and the ladder depend on, so that a change of later steps does not repeat them."""
    return without(pretrain, "long_context", "anneal")


def without(pretrain: Pretrain, *steps: str) -> Pretrain:
    """The section with some of its later steps left out."""
    return pretrain.model_copy(update=dict.fromkeys(steps))


@dataclass(frozen=True)
class Choice:
    """What of the plan to run: up to a stage, only some, made anew, for one member. Stages by name or by kind."""

    until: str | None = None
    only: str | None = None
    force: tuple[str, ...] = ()
    member: str | None = None

    def check(self, plan: list[Stage], recipe: Recipe) -> None:
        """Raises HerdError for names that the plan does not have."""
        known = {name for stage in plan for name in (stage.name, stage.kind)}
        for option, names in (("--until", [self.until]), ("--only", [self.only]), ("--force", self.force)):
            for name in names:
                if name is not None and name not in known:
                    raise HerdError(
                        f"{option} {name}: no such stage; stages are {', '.join(dict.fromkeys(s.kind for s in plan))}"
                    )
        if self.member is not None:
            recipe.find_member(self.member)

    def wanted(self, plan: list[Stage]) -> list[Stage]:
        """The stages to bring about, in order."""
        mine = [s for s in plan if s.member is None or self.member in (None, s.member)]
        if self.only is not None:
            return [s for s in mine if self.only in (s.name, s.kind)]
        if self.until is not None:
            kinds = list(dict.fromkeys(s.kind for s in plan))
            last = next(s for s in plan if self.until in (s.name, s.kind))
            of_one = self.until != last.kind  # a stage of one member: what other members need besides is left out
            return [
                s
                for s in mine
                if kinds.index(s.kind) <= kinds.index(last.kind) and (not of_one or s.member in (None, last.member))
            ]
        return mine

    def forces(self, stage: Stage) -> bool:
        return bool({stage.name, stage.kind} & set(self.force)) and self.member in (None, stage.member)


def run_recipe(path: Path, out: Path | None = None, choice: Choice | None = None) -> Path:
    """Bring about what a recipe describes; returns the run's folder.

    Raises HerdError for bad input, and whatever a stage raises: nothing half-written stays under a final name.
    """
    recipe, choice = load_recipe(path), choice or Choice()
    run = out or Path("runs") / recipe.family.name
    plan = stages(recipe, path.parent)
    choice.check(plan, recipe)
    for name in ("posttrain", "safety"):
        if getattr(recipe, name) is not None:
            say(f"[{name}] is validated, but no stage of this version reads it")
    run.mkdir(parents=True, exist_ok=True)
    with locked(run):
        clean_drafts(run)
        Ledger(run).repair()
        write_atomically(run / "recipe.toml", path.read_bytes())
        _Execution(run, recipe, plan, choice, str(path)).go()
    return run


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's lock; it ends with the process, however that ends. Raises HerdError where somebody else holds it."""
    with (run / LOCK).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise HerdError(
                f"{run}: another herd (process {stream.read().strip() or 'unknown'}) is writing here"
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


class _Execution:
    """One walk through a plan."""

    def __init__(self, run: Path, recipe: Recipe, plan: list[Stage], choice: Choice, recipe_name: str) -> None:
        self.run, self.recipe, self.plan, self.choice, self.recipe_name = run, recipe, plan, choice, recipe_name
        self.wanted = {s.name for s in choice.wanted(plan)}
        self.published: dict[str, Artifact] = {}
        self.found = 0

    def go(self) -> None:
        """Find or make every wanted stage, members side by side."""
        from herd.train.workers import Workers

        waiting, running = list(self.plan), dict[Future[Any], Stage]()
        with _Lazily(lambda: Workers(self._processes(), self.recipe.compute.threads)) as workers:
            while True:
                ready = next((s for s in waiting if all(i in self.published for i in s.inputs.values())), None)
                if ready is not None:
                    waiting.remove(ready)
                    self._start(ready, workers, running)
                elif running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._arrived(running.pop(future), future.result())
                else:
                    break
        self._complain(waiting)
        if self.found:
            say(f"{self.found} stages were done already")

    def _start(self, stage: Stage, workers: _Lazily, running: dict[Future[Any], Stage]) -> None:
        """Take a stage whose inputs are there: found, run here, or handed to a worker."""
        from herd.train.workers import set_threads

        if self._resolve(stage) or stage.name not in self.wanted:
            return
        if stage.alone:
            set_threads(self.recipe.compute.threads)
            self._arrived(stage, execute(stage, self._inputs(stage), self.run, self._command(stage)))
        else:
            paths = {name: a.path for name, a in self._inputs(stage).items()}
            running[workers.get().submit(execute_in_worker, stage, paths, self.run.resolve(), self._command(stage))] = (
                stage
            )

    def _processes(self) -> int:
        from herd.train.hardware import cores

        return self.recipe.compute.processes or cores()

    def _inputs(self, stage: Stage) -> dict[str, Artifact]:
        return {name: self.published[source] for name, source in stage.inputs.items()}

    def _resolve(self, stage: Stage) -> bool:
        """Take a stage's artifact if it is there and not to be made anew."""
        key = _key(stage, self._inputs(stage))
        if self.choice.forces(stage) and stage.name in self.wanted:
            shutil.rmtree(self.run / folder_name(stage.name, key), ignore_errors=True)
            return False
        artifact = find(self.run, stage.name, key)
        if artifact is None:
            return False
        self.found += stage.name in self.wanted
        self._take(stage, artifact)
        return True

    def _arrived(self, stage: Stage, path: Path) -> None:
        artifact = open_artifact(path)
        say(f"{stage.name}: done in {duration(artifact.manifest['recorded']['seconds'])}")
        self._take(stage, artifact)

    def _take(self, stage: Stage, artifact: Artifact) -> None:
        self.published[stage.name] = artifact
        Ledger(self.run).add(artifact, self._command(stage))
        current = read_current(self.run)
        if current.get(stage.name) != artifact.path.name:
            write_atomically(
                self.run / CURRENT,
                canonical_json({"schema": 1, "artifacts": current | {stage.name: artifact.path.name}}, indent=1) + "\n",
            )

    def _command(self, stage: Stage) -> str:
        out = "" if self.run == Path("runs") / self.recipe.family.name else f" --out {self.run}"
        member = f" --member {stage.member}" if stage.member else ""
        return f"herd run {self.recipe_name} --only {stage.kind}{member} --force {stage.kind}{out}"

    def _complain(self, waiting: list[Stage]) -> None:
        for stage in waiting:
            if stage.name in self.wanted:
                missing = [source for source in stage.inputs.values() if source not in self.published]
                raise HerdError(
                    f"{stage.name} needs {', '.join(missing)} first: herd run {self.recipe_name} --until {missing[0]}"
                )


class _Lazily:
    """A context that is only entered when it is first asked for: most second runs need no workers."""

    def __init__(self, make: Any) -> None:
        self._make, self._made = make, None

    def __enter__(self) -> _Lazily:
        return self

    def get(self) -> Any:
        if self._made is None:
            self._made = self._make().__enter__()
        return self._made

    def __exit__(self, *error: Any) -> None:
        if self._made is not None:
            self._made.__exit__(*error)


def _key(stage: Stage, inputs: Mapping[str, Artifact]) -> str:
    asked = stage.asked(inputs)
    return stage_key(stage.kind, stage.version, asked["settings"], asked["inputs"])


def execute(stage: Stage, inputs: Mapping[str, Artifact], run: Path, command: str) -> Path:
    """Run one stage and publish its artifact; returns the artifact's folder."""
    from herd.train.hardware import machine

    module, name = stage.function.split(":")
    function = getattr(importlib.import_module(module), name)
    started = datetime.datetime.now(datetime.UTC)
    recorded: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "machine": machine(),
        "command": command,
        "herd": _version(),
    }
    key = _key(stage, inputs)
    with publish(run, stage.name, key, stage.asked(inputs), recorded) as draft:
        function(stage.settings, inputs, draft)
        recorded["seconds"] = round((datetime.datetime.now(datetime.UTC) - started).total_seconds(), 2)
    return run / folder_name(stage.name, key)


def execute_in_worker(stage: Stage, inputs: Mapping[str, Path], run: Path, command: str) -> Path:
    """`execute`, with inputs given by path: what a worker process is handed."""
    return execute(stage, {name: open_artifact(path) for name, path in inputs.items()}, run, command)


def read_current(run: Path) -> dict[str, str]:
    """Folder names of the newest artifacts by stage; empty where nothing was published yet."""
    try:
        return json.loads((run / CURRENT).read_text())["artifacts"]
    except FileNotFoundError:
        return {}


def published(run: Path) -> dict[str, Artifact]:
    """The newest artifacts of a run by stage name."""
    return {name: open_artifact(run / folder) for name, folder in read_current(run).items()}


STEPS_TO_A_MEMBER = ("anneal", "long-context", "pretrain")  # the last that was run holds the member's weights


def member_artifact(run: Path, name: str) -> Artifact:
    """The artifact with a member's newest weights. Raises HerdError naming the members there are."""
    done = published(run)
    for step in STEPS_TO_A_MEMBER:
        if f"{step}-{name}" in done:
            return done[f"{step}-{name}"]
    there = [stage.removeprefix("pretrain-") for stage in done if stage.startswith("pretrain-")]
    raise HerdError(f"{run}: no member '{name}'; trained so far: {', '.join(there) or 'none'}")


def _version() -> str:
    from herd import __version__

    return __version__


def finished_run(given: Path | None) -> Path:
    """The run a verb works on: the one given, or the newest under ./runs. Raises HerdError where there is none."""
    if given is not None:
        if not (given / CURRENT).exists():
            raise HerdError(f"{given}: no run of herd here ({CURRENT} is missing)")
        return given
    runs = sorted(Path("runs").glob(f"*/{CURRENT}"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise HerdError("no run under ./runs: make one with `herd run recipes/laptop.toml`, or name it with --run DIR")
    if len(runs) > 1:
        print(f"using {runs[-1].parent} (the newest of {len(runs)}; --run DIR for another)", file=sys.stderr)
    return runs[-1].parent
