"""`herd parity`: meshes against one process, case by case, as a table that grows."""

from __future__ import annotations

import time
import warnings

from rich.console import Console

from herd.console import HerdError, duration, human_count


def print_parity(only: str | None) -> int:
    """Run the cases (or those whose name contains `only`) and print their errors; 1 where one is past its limit.

    Raises HerdError where no case is called so.
    """
    from herd.train.parallel.parity import LIMITS, Result, cases, check

    chosen = [case for case in cases() if only is None or only in case.name]
    if not chosen:
        raise HerdError(f"--only {only}: no case is called so; there are: {', '.join(case.name for case in cases())}")
    warnings.filterwarnings("ignore", module="torch.distributed")  # FSDP's on views, which nobody writes into here
    console, started = Console(highlight=False, soft_wrap=True), time.monotonic()
    limits = ", ".join(f"{limit:g} in {dtype}" for dtype, limit in LIMITS.items())
    console.print("Two training steps on a mesh against one process: largest relative differences.")
    console.print(f"Limit: {limits}. A gradient's difference is over the largest entry of its parameter.\n")
    console.print(f"{'':5}{'mesh':44}{'ranks':>6}{'loss':>9}{'norm':>9}{'gradient':>10}{'clipped':>9}{'next loss':>11}")

    def show(result: Result) -> None:
        errors = result.errors
        mark = "[green]ok[/]   " if result.passed else "[red]MISS[/] "
        name = result.case.name + (f" ({result.case.dtype})" if result.case.dtype != "float64" else "")
        widths = zip(errors, (9, 9, 10, 9, 11), strict=True)
        numbers = "".join(f"{error:{width}.1e}" for error, width in widths)
        worst = "" if result.passed else f"  worst: {result.parameter}"
        console.print(f"{mark}{name:44}{result.case.mesh.size:>6}{numbers}{worst}")

    results = check(chosen, show)
    missed = [result for result in results if not result.passed]
    took = duration(time.monotonic() - started)
    total = human_count(len(results))
    verdict = f"{len(missed)} of {total} past their limit" if missed else f"all {total} within their limit"
    console.print(f"\n{verdict}; {took}")
    return 1 if missed else 0
