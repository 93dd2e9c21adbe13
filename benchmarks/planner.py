"""The planner against published measurements: calibration rows, each left out once, and rows it has never seen.

python benchmarks/planner.py             errors with the constants as they stand
python benchmarks/planner.py --fit       the constants that fit the calibration rows best, without rounding
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace

from herd.train.gpus import CARDS
from herd.train.hardware import machine
from herd.train.planner_memory import peak_bytes
from herd.train.planner_rows import CALIBRATION, HELD_OUT, OTHER_CARD, Row
from herd.train.planner_time import FITTED, Constants, step_seconds

START = Constants(matrix=0.65, power_limited=0.8, async_tp=0.4, jitter=0.005, paper_attention=0.45)
WIDTHS = Constants(matrix=0.04, power_limited=0.04, async_tp=0.1, jitter=0.002, paper_attention=0.08)
LOW = Constants(matrix=0.4, power_limited=0.5, async_tp=0.0, jitter=0.0, paper_attention=0.2)
HIGH = Constants(matrix=0.85, power_limited=1.0, async_tp=1.0, jitter=0.02, paper_attention=0.75)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--fit", action="store_true")
    if options.parse_args().fit:
        print(fit(CALIBRATION))
        print(f"reserved {fit_reserved(CALIBRATION):.4f}")
        return
    calibration = show("calibration rows", CALIBRATION)
    left_out = [left_out_error(row) for row in CALIBRATION]
    print("\nleft out of the fit, then planned")
    for row, error in zip(CALIBRATION, left_out, strict=True):
        print(f"{row.name:48} {error:+7.1%}")
    held_out = show("held out", HELD_OUT)
    other_card = show("held out, on a card that no calibration row has", OTHER_CARD)
    figures = {
        "calibration speed, worst": worst(calibration[0]),
        "calibration memory, worst": worst(calibration[1]),
        "paper's rows, worst": worst([speed_error(row) for row in CALIBRATION if row.paper]),
        "left out, median": median(left_out),
        "left out, worst": worst(left_out),
        "held out speed, median": median(held_out[0]),
        "held out speed, worst": worst(held_out[0]),
        "held out memory, median": median(held_out[1]),
        "held out memory, worst": worst(held_out[1]),
        "other card speed, worst": worst(other_card[0]),
        "other card memory, worst": worst(other_card[1]),
    }
    print("\nsize of the error")
    for label, value in figures.items():
        print(f"{label:32} {value:.1%}")
    ratios = {f"{row.name} planned/measured": round(1 + speed_error(row), 3) for row in (*CALIBRATION, *HELD_OUT)}
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"benchmark": "planner", "figures": rounded, "ratios": ratios, "machine": machine()}))


def show(title: str, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Print planned and measured figures of rows; returns their errors of speed and of memory."""
    print(f"\n{title:48} {'planned':>9} {'measured':>9} {'error':>7}   {'GiB':>6} {'measured':>9} {'error':>7}")
    speeds, memories = [], []
    for row in rows:
        error, measured = speed_error(row), row.teraflops or row.tokens_per_second or 0.0
        speeds.append(error)
        line = f"{row.name:48} {measured * (1 + error):9,.0f} {measured:9,.0f} {error:+7.1%}"
        planned = peak_bytes(row.setting).total / 2**30
        line += f"   {planned:6.1f}"
        if row.gibibytes is not None:
            memories.append(planned / row.gibibytes - 1)
            line += f" {row.gibibytes:9.1f} {memories[-1]:+7.1%}"
        print(line)
    return speeds, memories


def speed_error(row: Row, constants: Constants = FITTED) -> float:
    """Planned speed over the measured one, less 1."""
    setting = replace(row.setting, attention=constants.paper_attention) if row.paper else row.setting
    seconds = step_seconds(setting, CARDS[row.card], constants).total
    speed = setting.step_tokens / setting.mesh.size / seconds
    if row.teraflops is not None:
        return speed * setting.config.train_flops_per_token(setting.context) / (row.teraflops * 1e12) - 1
    assert row.tokens_per_second is not None
    return speed / row.tokens_per_second - 1


def left_out_error(row: Row) -> float:
    return speed_error(row, fit([other for other in CALIBRATION if other is not row]))


def fit(rows: Sequence[Row]) -> Constants:
    """Least squares of the speeds' relative errors, by a pattern search within bounds."""

    def loss(constants: Constants) -> float:
        return sum(speed_error(row, constants) ** 2 for row in rows)

    best, lowest, width = START, loss(START), 1.0
    while width > 1e-3:
        better = False
        for index in range(len(best)):
            for sign in (1, -1):
                value = min(HIGH[index], max(LOW[index], best[index] + sign * width * WIDTHS[index]))
                tried = best._replace(**{Constants._fields[index]: value})
                if (now := loss(tried)) < lowest - 1e-15:
                    best, lowest, better = tried, now, True
        width = width if better else width / 2
    return best


def fit_reserved(rows: Sequence[Row]) -> float:
    """Mean share by which published memory exceeds what the parts add up to."""
    shares = [
        row.gibibytes * 2**30 / peak_bytes(row.setting, 0.0).total - 1 for row in rows if row.gibibytes is not None
    ]
    return statistics.mean(shares)


def worst(errors: Sequence[float]) -> float:
    return max(map(abs, errors))


def median(errors: Sequence[float]) -> float:
    return statistics.median(map(abs, errors))


if __name__ == "__main__":
    main()
