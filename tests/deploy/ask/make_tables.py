"""Writes the five tables that `herd ask` is asked about: made up here from fixed seeds, no outside data.

Run `python tests/deploy/ask/make_tables.py` to write them again; the result is the same byte for byte.
"""

import csv
import datetime as dt
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

Rows = list[list[object]]


def shop_orders(rng: Random) -> Rows:
    """Orders of a shop for household goods."""
    prices = {"Desk Lamp": 34.5, "Kettle": 42.0, "Notebook": 4.9, "Office Chair": 149.0, "Water Filter": 27.9}
    goods, money = ["Order No", "Order Date", "Region", "Product", "Quantity"], ["Unit Price", "Shipping Cost"]
    rows: Rows = [[*goods, *money, "Payment Method", "Returned"]]
    for i in range(240):
        day = dt.date(2024, 1, 2) + dt.timedelta(days=i * 365 // 240)
        product = rng.choices(list(prices), [3, 6, 3, 2, 3])[0]
        quantity = rng.randint(5, 40) if product == "Notebook" else rng.randint(1, 8)
        price = round(prices[product] * rng.choice([1, 1, 1, 0.95, 0.9]), 2)
        region = rng.choices(["North", "South", "East", "West"], [5, 3, 4, 2])[0]
        paid = rng.choices(["Credit card", "Bank transfer", "Cash"], [6, 3, 1])[0]
        returned = "yes" if rng.random() < 0.14 else "no"
        rows.append(
            [10451 + i, day, region, product, quantity, f"{price:.2f}", f"{rng.uniform(3.5, 19):.2f}", paid, returned]
        )
    return rows


def staff(rng: Random) -> Rows:
    """Employees of a middling company."""
    first = [
        "Alice",
        "Bruno",
        "Carla",
        "Dmitri",
        "Elena",
        "Farid",
        "Greta",
        "Hugo",
        "Ines",
        "Jonas",
        "Katya",
        "Luis",
        "Mina",
        "Noor",
        "Oscar",
        "Petra",
    ]
    last = [
        "Abbott",
        "Becker",
        "Costa",
        "Dahl",
        "Egan",
        "Fischer",
        "Gruber",
        "Hale",
        "Ito",
        "Jansen",
        "Kaur",
        "Lopez",
        "Moreau",
        "Novak",
        "Olsen",
        "Popov",
    ]
    titles = {
        "Finance": {"Accountant": 52, "Controller": 71},
        "Sales": {"Account Manager": 56, "Sales Assistant": 38},
        "IT": {"Developer": 66, "System Administrator": 58},
        "Human Resources": {"Recruiter": 47},
        "Operations": {"Planner": 49, "Warehouse Clerk": 34},
    }
    rows: Rows = [
        ["emp_id", "full_name", "department", "job_title", "hire_date", "salary", "remote", "sick_days"],
    ]
    names = rng.sample([f"{a} {b}" for a in first for b in last], 120)
    for i, name in enumerate(names):
        department = rng.choices(list(titles), [4, 6, 5, 2, 6])[0]
        title = rng.choice(list(titles[department]))
        hired = dt.date(2009, 3, 1) + dt.timedelta(days=rng.randrange(5600))
        years = (dt.date(2025, 1, 1) - hired).days / 365
        salary = round((titles[department][title] + 0.9 * years + rng.gauss(0, 4)) * 10) * 100
        remote = "Yes" if rng.random() < (0.2 if department == "Operations" else 0.5) else "No"
        sick = "" if rng.random() < 0.09 else rng.randint(0, 14)
        rows.append([f"E{1001 + i}", name, department, title, hired, salary, remote, sick])
    return rows


def clinic_visits(rng: Random) -> Rows:
    """Visits to a small clinic."""
    waits = {"Dr. Adler": 24, "Dr. Banerjee": 18, "Dr. Conti": 31, "Dr. Duarte": 27}
    rows: Rows = [["VisitID", "VisitDate", "Doctor", "PatientAge", "Insurance", "WaitMinutes", "Fee", "FollowUp"]]
    for i in range(320):
        day = dt.date(2025, 1, 6) + dt.timedelta(days=i // 3)
        doctor = rng.choice(list(waits))
        age = min(93, max(2, round(rng.gauss(47, 21))))
        insurance = rng.choices(["Public", "Private", "Self-pay"], [6, 3, 1])[0]
        wait = "" if rng.random() < 0.06 else max(1, round(rng.gauss(waits[doctor], 9)))
        fee = 45 + 0.6 * age + (25 if insurance == "Private" else 0) + rng.uniform(-15, 35)
        follow_up = "Yes" if rng.random() < 0.2 + age / 250 else "No"
        rows.append([70001 + i, day, doctor, age, insurance, wait, f"{fee:.2f}", follow_up])
    return rows


def sensor_log(rng: Random) -> Rows:
    """Readings of room sensors in an office building, one every three hours."""
    rooms = {"Lobby": (19.5, 520), "Open office": (22, 860), "Meeting room": (22.5, 930), "Server room": (18, 440)}
    rows: Rows = [["ts", "room", "temp", "hum", "co2", "batt"]]
    start = dt.datetime(2025, 3, 3, 0, 0)
    for step in range(90):
        now = start + dt.timedelta(hours=3 * step)
        busy = 9 <= now.hour <= 18
        for room, (warm, air) in rooms.items():
            temp = round(warm + (1.2 if busy else 0) + rng.gauss(0, 0.7), 1)
            hum = "" if rng.random() < 0.05 else f"{48 - (temp - 20) * 1.5 + rng.gauss(0, 3):.1f}"
            co2 = round(air * (1.15 if busy else 0.75) + rng.gauss(0, 40))
            batt = max(5, 100 - step // 2 - rng.randint(0, 2))
            rows.append([now.isoformat(" ", "minutes"), room, f"{temp:.1f}", hum, co2, batt])
    return rows


def support_tickets(rng: Random) -> Rows:
    """Tickets of a help desk; those still open have no closing time, and not every customer leaves a score."""
    rows: Rows = [
        [
            "ticket_id",
            "opened",
            "Priority",
            "channel",
            "agent",
            "replies",
            "hours_to_close",
            "satisfaction",
            "escalated",
        ]
    ]
    for i in range(180):
        day = dt.date(2025, 5, 1) + dt.timedelta(days=i // 3)
        priority = rng.choices(["Low", "Medium", "High"], [4, 5, 3])[0]
        channel = rng.choices(["email", "phone", "chat"], [5, 3, 4])[0]
        agent = rng.choices(["Nadia", "Tom", "Wei", "Ruth", "Samir"], [4, 5, 3, 3, 2])[0]
        replies = rng.randint(1, 12)
        hours = "" if rng.random() < 0.08 else f"{rng.uniform(0.5, 9) * (1 + replies / 3):.1f}"
        score = "" if rng.random() < 0.3 or not hours else rng.choices([1, 2, 3, 4, 5], [1, 2, 4, 7, 6])[0]
        escalated = "yes" if rng.random() < (0.35 if priority == "High" else 0.1) else "no"
        rows.append([f"T-{2200 + i}", day, priority, channel, agent, replies, hours, score, escalated])
    return rows


TABLES: dict[str, tuple[int, Callable[[Random], Rows]]] = {
    "shop_orders.csv": (11, shop_orders),
    "staff.csv": (12, staff),
    "clinic_visits.csv": (13, clinic_visits),
    "sensor_log.csv": (14, sensor_log),
    "support_tickets.csv": (15, support_tickets),
}


def write_tables(folder: Path) -> None:
    """Writes every table into the folder."""
    for name, (seed, make) in TABLES.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows(make(Random(seed)))


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
