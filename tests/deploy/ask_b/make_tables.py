"""Writes the five tables of the second question set: other fields of work than the first's, made up from fixed seeds.

Run `python tests/deploy/ask_b/make_tables.py` to write them again; the result is the same byte for byte.
"""

import csv
import datetime as dt
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

Rows = list[list[object]]


def hotel_bookings(rng: Random) -> Rows:
    """Bookings of a small hotel."""
    rates = {"Single": 78, "Double": 112, "Family": 149, "Suite": 215}
    sleeps = {"Single": (1, 1), "Double": (1, 2), "Family": (3, 5), "Suite": (1, 4)}
    head = ["Booking Ref", "Arrival Date", "Room Type", "Guests", "Nights"]
    rows: Rows = [[*head, "Total Bill (EUR)", "Booked Via", "Breakfast Included"]]
    for i in range(260):
        day = dt.date(2024, 4, 3) + dt.timedelta(days=rng.randrange(210))
        room = rng.choices(list(rates), [4, 7, 3, 2])[0]
        nights = rng.choices([1, 2, 3, 4, 5, 7, 10], [6, 8, 6, 4, 3, 3, 1])[0]
        breakfast = "Y" if rng.random() < 0.6 else "N"
        guests = rng.randint(*sleeps[room])
        bill = nights * (rates[room] * rng.uniform(0.85, 1.2) + (14 * guests if breakfast == "Y" else 0))
        via = rng.choices(["Own website", "Travel agency", "Phone", "Booking portal"], [5, 3, 2, 7])[0]
        rows.append([f"HB{5300 + i}", day, room, guests, nights, f"{bill:.2f}", via, breakfast])
    return rows


def vehicle_trips(rng: Random) -> Rows:
    """Trips of a delivery company's vans."""
    drivers = {"Marek": 5, "Lucy": 4, "Anton": 7, "Priya": 4, "Joao": 3, "Sven": 3}
    plates = [f"KV-{rng.randint(100, 999)}-{letter}" for letter in "ABCDEFGHJKLMN"]
    rows: Rows = [["TripDate", "Plate", "Driver", "Depot", "Purpose", "DistanceKm", "FuelLitres", "TollCost"]]
    for i in range(310):
        day = dt.date(2025, 2, 3) + dt.timedelta(days=i // 4)
        driver = rng.choices(list(drivers), list(drivers.values()))[0]
        depot = rng.choices(["Harbour", "Airport", "Ring Road"], [4, 2, 5])[0]
        purpose = rng.choices(["Delivery", "Pickup", "Transfer"], [7, 3, 2])[0]
        km = round(rng.lognormvariate(4.6, 0.6), 1)
        fuel = km * rng.uniform(0.075, 0.125) + rng.uniform(0, 4)
        toll = rng.choice([0, 2.4, 4.8]) + (3.1 if depot == "Harbour" else 0) + (6.5 if km > 150 else 0)
        rows.append([day, rng.choice(plates), driver, depot, purpose, f"{km:.1f}", f"{fuel:.2f}", f"{toll:.2f}"])
    return rows


def library_loans(rng: Random) -> Rows:
    """Loans of a town library; a book not yet brought back has no days out."""
    stay = {"Central": 15, "Riverside": 19, "Hillcrest": 12, "Station": 22}
    genres = ["Crime", "Children", "Travel", "History", "Cookery", "Science"]
    rows: Rows = [["loan_id", "branch", "genre", "member_type", "borrowed_on", "days_out", "renewals", "late_fee"]]
    for i in range(400):
        branch = rng.choices(list(stay), [6, 3, 2, 3])[0]
        genre = rng.choices(genres, [6, 5, 2, 3, 2, 2])[0]
        member = rng.choices(["adult", "student", "senior", "child"], [6, 3, 3, 2])[0]
        day = dt.date(2024, 9, 2) + dt.timedelta(days=rng.randrange(270))
        renewals = rng.choices([0, 1, 2, 3], [12, 5, 2, 1])[0]
        days = max(1, round(rng.gauss(stay[branch] + 9 * renewals, 7)))
        fee = 0.25 * max(0, days - 21 - 10 * renewals)
        rows.append([880 + i, branch, genre, member, day, "" if rng.random() < 0.07 else days, renewals, f"{fee:.2f}"])
    return rows


def flat_listings(rng: Random) -> Rows:
    """Flats to let at an estate agent's."""
    level = {"Old Town": 17.5, "Parkside": 15.2, "West End": 20.1, "Mill Quarter": 12.9, "Northgate": 11.4}
    rows: Rows = [["Ref", "District", "Floor area (m2)", "Rooms", "Built", "Monthly rent", "Balcony", "Listed by"]]
    for i in range(150):
        district = rng.choices(list(level), [4, 4, 3, 5, 4])[0]
        rooms = rng.choices([1, 2, 3, 4, 5], [3, 6, 6, 3, 1])[0]
        area = round(14 + 19 * rooms + rng.gauss(0, 7), 1)
        built = rng.randint(1890, 1965) if district == "Old Town" else rng.randint(1950, 2023)
        rent = round(area * level[district] * rng.uniform(0.88, 1.14) + 110)
        balcony = "yes" if rng.random() < 0.45 else "no"
        agent = rng.choices(["Hofmann", "Silva", "O'Brien"], [4, 3, 3])[0]
        rows.append([f"FL-{310 + i}", district, f"{area:.1f}", rooms, built, rent, balcony, agent])
    return rows


def production_runs(rng: Random) -> Rows:
    """Runs of a plant that stamps metal parts; the downtime was not always written down."""
    lines = {"L1": 14, "L2": 22, "L3": 18}
    scrap = {"Early": 0.018, "Late": 0.024, "Night": 0.033}
    head = ["RUN_NO", "RUN_DATE", "LINE", "SHIFT", "PART"]
    rows: Rows = [[*head, "UNITS_MADE", "SCRAP", "DOWNTIME_MIN", "OIL_TEMP_C"]]
    for i in range(210):
        day = dt.date(2025, 1, 7) + dt.timedelta(days=i // 3)
        line = rng.choices(list(lines), [5, 4, 5])[0]
        shift = rng.choices(list(scrap), [4, 4, 3])[0]
        part = rng.choices(["Bracket", "Hinge", "Cover plate", "Clip"], [4, 3, 3, 2])[0]
        made = round(rng.gauss(900 if part == "Clip" else 620, 90))
        bad = round(made * scrap[shift] * rng.uniform(0.5, 1.6))
        down = "" if rng.random() < 0.08 else round(rng.expovariate(1 / lines[line]))
        rows.append([6001 + i, day, line, shift, part, made, bad, down, f"{rng.gauss(58, 3.5):.1f}"])
    return rows


TABLES: dict[str, tuple[int, Callable[[Random], Rows]]] = {
    "hotel_bookings.csv": (21, hotel_bookings),
    "vehicle_trips.csv": (22, vehicle_trips),
    "library_loans.csv": (23, library_loans),
    "flat_listings.csv": (24, flat_listings),
    "production_runs.csv": (25, production_runs),
}


def write_tables(folder: Path) -> None:
    """Writes every table into the folder."""
    for name, (seed, make) in TABLES.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows(make(Random(seed)))


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
