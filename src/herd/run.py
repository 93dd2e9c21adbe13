"""Bringing about what a recipe describes: which stages are done, and running the rest.

A stage's key is known once its inputs are published, so the plan is walked from the front: find the artifact or make
it, then go on. Stages of different members run side by side in worker processes. Whatever happens, what is published
stays published, and a stage stopped half-way keeps its checkpoints.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.artifact import (
    CURRENT,
    Artifact,
    clean_drafts,
    find,
    folder_name,
    forget_unfinished,
    open_artifact,
    publish,
    published,
    read_current,
    write_atomically,
    write_current,
)
from herd.console import HerdError, duration, say
from herd.evidence import Ledger
from herd.recipe import ExportForm, Recipe, load_recipe
from herd.stages import Choice, Stage, stages

if TYPE_CHECKING:
    from herd.infer.quantize import Scheme
    from herd.train.parallel.follow import Channel
    from herd.train.workers import Workers

LOCK = "lock"


def run_recipe(path: Path, out: Path | None = None, choice: Choice | None = None) -> Path:
    """Bring about what a recipe describes; returns the run's folder.

    Raises HerdError for bad input, and whatever a stage raises: nothing half-written stays under a final name.
    """
    recipe, choice = load_recipe(path), choice or Choice()
    run = out or Path("runs") / recipe.family.name
    plan = stages(recipe, path.parent)
    choice.check(plan, recipe)
    _check_ranks(recipe)
    if not leads():
        _channel(recipe).follow()
        return run
    run.mkdir(parents=True, exist_ok=True)
    with locked(run):
        clean_drafts(run)
        Ledger(run).repair()
        write_atomically(run / "recipe.toml", path.read_bytes())
        _Execution(run, recipe, plan, choice, str(path)).go()
    return run


def import_model(source: str, name: str | None = None, out: Path | None = None) -> Path:
    """Adopt open weights as a member, by a run that has nothing else; returns the run's folder, runs/NAME.

    `source` is what a member's `from` is in a recipe; a path is taken from here. Raises HerdError for a bad source or
    name, and where the folder holds another run.
    """
    from herd.pretrain.adopt import parse_package

    path = None if parse_package(source) else Path(source).resolve()
    if path is not None and not path.exists():
        raise HerdError(f"{source}: there is no such file or folder; expected package:NAME, a .gguf file, or a folder")
    if name is None:
        named = path.stem if path else source.removeprefix("package:").split("==")[0]
        name = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")[:40]
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,40}", name):
        raise HerdError(f"'{name}' is not a member's name: small letters, digits, - and _; give one with --name")
    origin = json.dumps(str(path or source), ensure_ascii=False)  # a JSON string is a TOML one
    recipe = f'[family]\nname = "{name}"\n\n[[member]]\nname = "{name}"\nrole = "laptop"\nfrom = {origin}\n'
    run = out or Path("runs") / name
    file = run / "recipe.toml"
    if (run / CURRENT).exists() and file.read_text(encoding="utf-8") != recipe:
        raise HerdError(f"{run}: another run is here; choose another --name or --out")
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(file, recipe)
    return run_recipe(file, run)


def export_member(run: Path, name: str, form: ExportForm) -> Path:
    """Write a member's newest weights in another format, proved as the `export` stage proves them.

    Returns the file or folder inside the artifact. What is there already is found. Raises HerdError where the run has
    no such member, or the written model is not the member.
    """
    from herd.deploy.forms import form_of

    to, kind = form_of(form)
    artifact = make_stage(
        run,
        export_stage(run, name, form),
        f"herd export {name} --to {to} --quant {kind.lower()} --run {shlex.quote(str(run))}",
    )
    folder = artifact.path / form
    return next(folder.glob("*.gguf"), folder)


def quantize_member(run: Path, name: str, scheme: Scheme) -> Artifact:
    """A member's newest weights quantized, measured; what is there already is found. Raises as `export_member` does."""
    command = f"herd quantize {name} --scheme {scheme} --run {shlex.quote(str(run))}"
    return make_stage(run, quantize_stage(run, name, scheme), command)


def make_stage(run: Path, stage: Stage, command: str) -> Artifact:
    """The artifact of a stage that is none of the recipe's, made where it is not there; `command` asks for it again."""
    threads = load_recipe(run / "recipe.toml").compute.threads
    return make_stages(run, [stage], command, threads)[stage.name]


def make_stages(run: Path, plan: list[Stage], command: str, threads: int = 1) -> dict[str, Artifact]:
    """The run's artifacts once those of `plan` are found or made, in order, here; `command` asks for them again."""
    from herd.train.workers import set_threads

    done = published(run)
    with locked(run):
        clean_drafts(run)
        for stage in plan:
            inputs = {known: done[source] for known, source in stage.inputs.items()}
            artifact = find(run, stage.name, stage.key(inputs))
            if artifact is None:
                set_threads(threads)
                artifact = open_artifact(execute(stage, inputs, run, command))
                Ledger(run).add(artifact, command)
            else:
                say(f"{stage.name} was done already")
            write_current(run, stage.name, artifact.path.name)
            done[stage.name] = artifact
    return done


def quantize_stage(run: Path, name: str, scheme: Scheme) -> Stage:
    """The stage that quantizes a member's newest weights. Raises HerdError where there is no such member."""
    from herd.deploy.quantize import QuantizeSettings
    from herd.train.hardware import choose_hardware

    recipe = load_recipe(run / "recipe.toml")
    settings = QuantizeSettings(
        member=name,
        scheme=scheme,
        seed=recipe.family.seed,
        hardware=choose_hardware(recipe.compute).describe(),
        compute=recipe.compute,
    )
    function = "herd.deploy.quantize:quantize_member"
    return Stage(f"quantize-{scheme}-{name}", function, 1, settings, written_from(run, name), member=name)


def written_from(run: Path, name: str) -> dict[str, str]:
    """Which stages a written member's weights, tokenizer and text come from."""
    model, done = member_artifact(run, name).stage, published(run)
    if f"adopt-{name}" in done:
        return {"model": model, "adopt": f"adopt-{name}"}
    return {"model": model, "tokenizer": "tokenizer", "shards": "shards"}


def export_stage(run: Path, name: str, form: ExportForm) -> Stage:
    """The stage that writes a member's newest weights in a format. Raises HerdError where there is no such member."""
    from herd.deploy.export import ExportSettings

    settings = ExportSettings(member=name, formats=(form,))
    return Stage(
        f"export-{form}-{name}", "herd.deploy.export:export", 2, settings, written_from(run, name), member=name
    )


def copy_out(path: Path, target: Path) -> Path:
    """Copy an exported file or folder to a place outside the run, whole or not at all; returns the place."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.is_dir():
            shutil.copytree(path, part)
        else:
            shutil.copyfile(path, part)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        raise
    return target


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


def leads() -> bool:
    """Whether this process walks the plan: alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _check_ranks(recipe: Recipe) -> None:
    """Raises HerdError where torchrun started another number of processes than the recipe's mesh has: said now, not
    when the corpus is done."""
    started, asked = int(os.environ.get("WORLD_SIZE", "1")), recipe.compute.mesh.size
    if started not in (1, asked):
        raise HerdError(
            f"compute.mesh: {asked} processes asked for, {started} started; start {asked}, or change the mesh"
        )


def _channel(recipe: Recipe) -> Channel:
    from herd.train.hardware import choose_hardware
    from herd.train.parallel.follow import Channel

    return Channel(choose_hardware(recipe.compute).device)


class _Execution:
    """One walk through a plan."""

    def __init__(self, run: Path, recipe: Recipe, plan: list[Stage], choice: Choice, recipe_name: str) -> None:
        self.run, self.recipe, self.plan, self.choice = run, recipe, plan, choice
        self.recipe_name = shlex.quote(recipe_name)
        self.wanted = {s.name for s in choice.wanted(plan)}
        self.published: dict[str, Artifact] = {}
        self.found = 0
        self.channel: Channel | None = None  # to the ranks that torchrun started beside this one
        self.workers: Workers | None = None  # made when a stage first asks for them: most second runs need none

    def go(self) -> None:
        """Find or make every wanted stage, members side by side."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self.channel = _channel(self.recipe)
        waiting, running = list(self.plan), dict[Future[Any], Stage]()
        with ExitStack() as pool:
            while True:
                startable = (s for s in waiting if not (s.alone and running))
                ready = next((s for s in startable if all(i in self.published for i in s.inputs.values())), None)
                if ready is not None:
                    waiting.remove(ready)
                    self._start(ready, pool, running)
                elif running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._arrived(running.pop(future), future.result())
                else:
                    break
        if self.channel:
            self.channel.send(None)
        self._complain(waiting)
        if self.found:
            say(f"{self.found} stages were done already")

    def _start(self, stage: Stage, pool: ExitStack, running: dict[Future[Any], Stage]) -> None:
        """Take a stage whose inputs are there: found, run here, or handed to a worker."""
        from herd.train.workers import Workers, set_threads

        if self._resolve(stage) or stage.name not in self.wanted:
            return
        if stage.alone or (stage.parallel and self.channel):
            pool.close()  # idle workers hold memory that a stage on its own may need
            self.workers = None
            set_threads(self.recipe.compute.threads)
            channel = self.channel if stage.parallel else None
            self._arrived(stage, execute(stage, self._inputs(stage), self.run, self._command(stage), channel))
        else:
            if self.workers is None:
                self.workers = pool.enter_context(Workers(self._processes(), self.recipe.compute.threads))
            paths = {name: a.path for name, a in self._inputs(stage).items()}
            future = self.workers.submit(execute_in_worker, stage, paths, self.run.resolve(), self._command(stage))
            running[future] = stage

    def _processes(self) -> int:
        from herd.process import cores

        return self.recipe.compute.processes or max(1, cores() // self.recipe.compute.threads)

    def _inputs(self, stage: Stage) -> dict[str, Artifact]:
        return {name: self.published[source] for name, source in stage.inputs.items()}

    def _resolve(self, stage: Stage) -> bool:
        """Take a stage's artifact if it is there and not to be made anew."""
        key = stage.key(self._inputs(stage))
        if self.choice.forces(stage) and stage.name in self.wanted:
            forget_unfinished(self.run, stage.name, key)
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
        write_current(self.run, stage.name, artifact.path.name)

    def _command(self, stage: Stage) -> str:
        out = "" if self.run == Path("runs") / self.recipe.family.name else f" --out {shlex.quote(str(self.run))}"
        member = f" --member {stage.member}" if stage.member else ""
        return f"herd run {self.recipe_name} --only {stage.kind}{member} --force {stage.kind}{out}"

    def _complain(self, waiting: list[Stage]) -> None:
        for stage in waiting:
            if stage.name in self.wanted:
                missing = [source for source in stage.inputs.values() if source not in self.published]
                raise HerdError(
                    f"{stage.name} needs {', '.join(missing)} first: herd run {self.recipe_name} --until {missing[0]}"
                )


def execute(
    stage: Stage, inputs: Mapping[str, Artifact], run: Path, command: str, channel: Channel | None = None
) -> Path:
    """Run one stage, with the ranks behind `channel`, and publish its artifact; returns the artifact's folder."""
    from herd.train.hardware import machine

    function = stage.load()
    started = datetime.datetime.now(datetime.UTC)
    recorded: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "machine": machine(),
        "command": command,
        "herd": _version(),
    }
    key = stage.key(inputs)
    with publish(run, stage.name, key, stage.asked(inputs), recorded) as draft:
        if channel is not None:
            recorded["ranks"] = int(os.environ["WORLD_SIZE"])
            from herd.train.parallel.follow import Call

            paths = {name: artifact.path.resolve() for name, artifact in inputs.items()}
            channel.send(Call(function, stage.settings, paths, draft.work.resolve()))
        function(stage.settings, inputs, draft)
        recorded["seconds"] = round((datetime.datetime.now(datetime.UTC) - started).total_seconds(), 2)
    return run / folder_name(stage.name, key)


def execute_in_worker(stage: Stage, inputs: Mapping[str, Path], run: Path, command: str) -> Path:
    """`execute`, with inputs given by path: what a worker process is handed."""
    return execute(stage, {name: open_artifact(path) for name, path in inputs.items()}, run, command)


# The last of these that was run holds a member's weights; the second three of an adopted member.
STEPS_TO_A_MEMBER = ("anneal", "long-context", "pretrain", "dpo", "rejection", "sft", "adopt")


def member_artifact(run: Path, name: str) -> Artifact:
    """The artifact with a member's newest weights. Raises HerdError naming the members there are."""
    done = published(run)
    for step in STEPS_TO_A_MEMBER:
        if f"{step}-{name}" in done:
            return done[f"{step}-{name}"]
    first = ("pretrain-", "adopt-")
    there = [stage.split("-", 1)[1] for stage in done if stage.startswith(first)]
    raise HerdError(f"{run}: no member '{name}'; trained so far: {', '.join(there) or 'none'}")


def trained_members(run: Path) -> list[str]:
    """Names of the recipe's members that have weights, in the recipe's order."""
    found = []
    for member in load_recipe(run / "recipe.toml").member:
        with suppress(HerdError):  # nothing trained yet
            member_artifact(run, member.name)
            found.append(member.name)
    return found


def assistant_of(run: Path) -> str:
    """The member that answers where none is named: the only adopted one, or the only one. Raises HerdError else."""
    trained = trained_members(run)
    adopted = [member.name for member in load_recipe(run / "recipe.toml").member if member.adopted]
    for names in ([name for name in trained if name in adopted], trained):
        if len(names) == 1:
            return names[0]
    raise HerdError(f"{run}: name the member with --member; trained so far: {', '.join(trained) or 'none'}")


def _version() -> str:
    from herd import __version__

    return __version__


def finished_run(given: Path | None, stage: str | None = None) -> Path:
    """The run a verb works on: the one given, or the newest under ./runs that has a recipe, or an artifact of `stage`.

    Raises HerdError where there is none.
    """
    if given is not None:
        if not (given / CURRENT).exists():
            raise HerdError(f"{given}: no run of herd here ({CURRENT} is missing)")
        return given
    there = sorted(Path("runs").glob(f"*/{CURRENT}"), key=lambda p: p.stat().st_mtime)
    if stage is None:
        runs = [path for path in there if (path.parent / "recipe.toml").exists()]
    else:
        runs = [path for path in there if stage in read_current(path.parent)]
    if not runs and stage is not None:
        raise HerdError(f"no run under ./runs has an artifact of the stage '{stage}': name a run with --run DIR")
    if not runs:
        raise HerdError("no run under ./runs: make one with `herd run recipes/laptop.toml`, or name it with --run DIR")
    if len(runs) > 1:
        print(f"using {runs[-1].parent} (the newest of {len(runs)}; --run DIR for another)", file=sys.stderr)
    return runs[-1].parent
