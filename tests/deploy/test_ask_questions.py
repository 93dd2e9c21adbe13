"""The question sets `herd ask` is measured on: their tables come back from a script, every gold answer holds twice.

Once by the gold expression over pandas, once by plain loops over the csv module that share nothing with it.
"""

import csv
import json
import math
import runpy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

Question = dict[str, Any]
Row = dict[str, str]
FOLDERS = [Path(__file__).parent / name for name in ("ask", "ask_b")]
SETS: dict[Path, list[Question]] = {
    folder: json.loads((folder / "questions.json").read_text(encoding="utf-8")) for folder in FOLDERS
}
QUESTIONS = [(folder, question) for folder, questions in SETS.items() for question in questions]
each_set = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
each_question = pytest.mark.parametrize(
    ("folder", "question"), QUESTIONS, ids=[question["id"] for _, question in QUESTIONS]
)


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    """The column's numbers; an empty cell is a missing value and is left out."""
    return [float(row[column]) for row in rows if row[column] != ""]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def median(values: list[float]) -> float:
    values, half = sorted(values), len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def having(rows: Iterable[Row], **cells: str) -> list[Row]:
    """The rows with these cells; an underscore in a keyword also stands for a blank in a column's name."""
    return [row for row in rows if all(row.get(k, row.get(k.replace("_", " "))) == v for k, v in cells.items())]


def by(rows: Iterable[Row], key: str, column: str, reduce: Callable[[list[float]], float]) -> dict[str, float]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return {name: reduce(numbers(group, column)) for name, group in groups.items()}


def tops(scores: dict[str, float], count: int = 1) -> dict[str, float]:
    """The highest scores; a tie for the last place would leave the question without one right answer."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    assert ranked[count - 1][1] > ranked[count][1] * (1 + 1e-9), "a tie at the top"
    return dict(ranked[:count])


def top(scores: dict[str, float]) -> str:
    return next(iter(tops(scores)))


def bottom(scores: dict[str, float]) -> str:
    ranked = sorted(scores.items(), key=lambda item: item[1])
    assert ranked[0][1] * (1 + 1e-9) < ranked[1][1], "a tie at the bottom"
    return ranked[0][0]


def correlation(rows: list[Row], one: str, other: str) -> float:
    pairs = [(float(row[one]), float(row[other])) for row in rows if row[one] and row[other]]
    x, y = mean([a for a, _ in pairs]), mean([b for _, b in pairs])
    squares = math.fsum((a - x) ** 2 for a, _ in pairs) * math.fsum((b - y) ** 2 for _, b in pairs)
    return math.fsum((a - x) * (b - y) for a, b in pairs) / math.sqrt(squares)


PLAIN: dict[str, Callable[[list[Row]], object]] = {
    "shop_orders-1": lambda rows: mean(numbers(rows, "Unit Price")),
    "shop_orders-2": lambda rows: len(having(rows, Region="North")),
    "shop_orders-3": lambda rows: by(rows, "Region", "Shipping Cost", math.fsum),
    "shop_orders-4": lambda rows: top(by(rows, "Product", "Quantity", math.fsum)),
    "shop_orders-5": lambda rows: len(having(rows, Payment_Method="Credit card", Returned="yes")),
    "shop_orders-6": lambda rows: sum(numbers(having(rows, Region="West"), "Quantity")),
    "staff-1": lambda rows: median(numbers(rows, "salary")),
    "staff-2": lambda rows: top({row["full_name"]: float(row["salary"]) for row in rows}),
    "staff-3": lambda rows: by(rows, "department", "salary", mean),
    "staff-4": lambda rows: len({row["job_title"] for row in rows}),
    "staff-5": lambda rows: len(having(rows, sick_days="")),
    "staff-6": lambda rows: len(having(rows, department="Finance", remote="Yes")),
    "clinic_visits-1": lambda rows: max(numbers(rows, "WaitMinutes")),
    "clinic_visits-2": lambda rows: bottom(by(rows, "Doctor", "WaitMinutes", mean)),
    "clinic_visits-3": lambda rows: mean(numbers(having(rows, Insurance="Private"), "Fee")),
    "clinic_visits-4": lambda rows: top(dict(Counter(row["Insurance"] for row in rows))),
    "clinic_visits-5": lambda rows: correlation(rows, "PatientAge", "Fee"),
    "clinic_visits-6": lambda rows: len({row["VisitID"] for row in rows}),
    "sensor_log-1": lambda rows: min(numbers(rows, "temp")),
    "sensor_log-2": lambda rows: by(rows, "room", "co2", max),
    "sensor_log-3": lambda rows: sum(int(row["co2"]) > 1000 for row in rows),
    "sensor_log-4": lambda rows: len(having(rows, hum="")),
    "sensor_log-5": lambda rows: len(rows[0]),
    "sensor_log-6": lambda rows: median(numbers(having(rows, room="Server room"), "hum")),
    "support_tickets-1": lambda rows: dict(Counter(row["Priority"] for row in rows)),
    "support_tickets-2": lambda rows: top(dict(Counter(row["agent"] for row in rows))),
    "support_tickets-3": lambda rows: sum(int(row["replies"]) for row in rows),
    "support_tickets-4": lambda rows: tops({r["ticket_id"]: float(r["hours_to_close"] or 0) for r in rows}, 3),
    "support_tickets-5": lambda rows: len(having(rows, Priority="High", escalated="yes")),
    "support_tickets-6": lambda rows: mean(numbers(having(rows, channel="phone"), "satisfaction")),
    "hotel_bookings-1": lambda rows: mean(numbers(rows, "Nights")),
    "hotel_bookings-2": lambda rows: by(rows, "Room Type", "Total Bill (EUR)", math.fsum),
    "hotel_bookings-3": lambda rows: len(having(rows, Booked_Via="Travel agency")),
    "hotel_bookings-4": lambda rows: len(having(rows, Room_Type="Suite", Breakfast_Included="Y")),
    "hotel_bookings-5": lambda rows: min(row["Arrival Date"] for row in rows),
    "hotel_bookings-6": lambda rows: top({row["Booking Ref"]: float(row["Total Bill (EUR)"]) for row in rows}),
    "vehicle_trips-1": lambda rows: math.fsum(numbers(rows, "DistanceKm")),
    "vehicle_trips-2": lambda rows: top(by(rows, "Driver", "DistanceKm", math.fsum)),
    "vehicle_trips-3": lambda rows: correlation(rows, "DistanceKm", "FuelLitres"),
    "vehicle_trips-4": lambda rows: sum(float(row["DistanceKm"]) > 200 for row in rows),
    "vehicle_trips-5": lambda rows: mean(numbers(having(rows, Depot="Harbour"), "TollCost")),
    "vehicle_trips-6": lambda rows: len({row["Plate"] for row in rows}),
    "library_loans-1": lambda rows: top(dict(Counter(row["genre"] for row in rows))),
    "library_loans-2": lambda rows: len(having(rows, days_out="")),
    "library_loans-3": lambda rows: by(rows, "branch", "days_out", median),
    "library_loans-4": lambda rows: math.fsum(numbers(having(rows, member_type="student"), "late_fee")),
    "library_loans-5": lambda rows: max(row["borrowed_on"] for row in rows),
    "library_loans-6": lambda rows: dict(Counter(row["member_type"] for row in rows)),
    "flat_listings-1": lambda rows: min(numbers(rows, "Monthly rent")),
    "flat_listings-2": lambda rows: top(by(rows, "District", "Monthly rent", mean)),
    "flat_listings-3": lambda rows: tops({row["Ref"]: float(row["Floor area (m2)"]) for row in rows}, 5),
    "flat_listings-4": lambda rows: len(having(rows, District="Old Town", Balcony="yes")),
    "flat_listings-5": lambda rows: median(numbers(having(rows, Rooms="3"), "Floor area (m2)")),
    "flat_listings-6": lambda rows: len({row["Ref"] for row in rows}),
    "production_runs-1": lambda rows: max(numbers(rows, "UNITS_MADE")),
    "production_runs-2": lambda rows: bottom(by(rows, "LINE", "DOWNTIME_MIN", math.fsum)),
    "production_runs-3": lambda rows: by(rows, "SHIFT", "SCRAP", mean),
    "production_runs-4": lambda rows: sum(n > 30 for n in numbers(having(rows, SHIFT="Night"), "DOWNTIME_MIN")),
    "production_runs-5": lambda rows: len(having(rows, DOWNTIME_MIN="")),
    "production_runs-6": lambda rows: math.fsum(numbers(having(rows, PART="Hinge"), "UNITS_MADE")),
}


def same(value: object, gold: object) -> bool:
    if isinstance(gold, dict):
        return isinstance(value, dict) and value.keys() == gold.keys() and all(same(value[k], gold[k]) for k in gold)
    if isinstance(gold, str):
        return value == gold
    return isinstance(value, int | float) and isinstance(gold, int | float) and math.isclose(value, gold, rel_tol=1e-9)


@each_set
def test_thirty_questions_six_a_file(folder: Path) -> None:
    questions = SETS[folder]
    assert list(Counter(question["file"] for question in questions).values()) == [6] * 5
    assert all(question.keys() == {"id", "file", "question", "code", "gold"} for question in questions)


def test_every_question_is_another_and_has_its_plain_loop() -> None:
    assert [question["id"] for _, question in QUESTIONS] == list(PLAIN)
    assert len({question["question"] for _, question in QUESTIONS}) == len(QUESTIONS)
    assert len({question["file"] for _, question in QUESTIONS}) == 5 * len(SETS)


@each_set
def test_tables_come_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    runpy.run_path(str(folder / "make_tables.py"))["write_tables"](tmp_path)
    files = sorted({question["file"] for question in SETS[folder]})
    assert sorted(path.name for path in tmp_path.iterdir()) == files == sorted(p.name for p in folder.glob("*.csv"))
    for name in files:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


@each_question
def test_gold_code_gives_the_stored_gold(folder: Path, question: Question) -> None:
    pandas: Any = pytest.importorskip("pandas")
    value = eval(question["code"], {"df": pandas.read_csv(folder / question["file"]), "pd": pandas})
    if isinstance(value, pandas.Series):
        value = {str(label): cell for label, cell in value.to_dict().items()}
    assert same(value.item() if hasattr(value, "item") else value, question["gold"])


@each_question
def test_plain_loops_agree_with_the_gold(folder: Path, question: Question) -> None:
    assert same(PLAIN[question["id"]](read(folder / question["file"])), question["gold"])
