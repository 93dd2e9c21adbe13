"""Invented tables: the columns that offices have, in the styles that people write them, filled with plausible values.

Tables of packages are mostly from statistics courses: short column names, few dates, few words. These fill the gap.
Values are drawn, not collected; nothing in them stands for a person or a company.
"""

from __future__ import annotations

import csv
import datetime
import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from herd.posttrain.synthesis.words import natural

FIRST = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gia",
    "Hugo",
    "Ivy",
    "Jon",
    "Kim",
    "Lea",
    "Max",
    "Nia",
    "Omar",
    "Pia",
    "Quinn",
    "Rosa",
    "Sam",
    "Tara",
    "Uma",
    "Vic",
    "Wes",
    "Xenia",
    "Yara",
    "Zoe",
]
LAST = [
    "Abel",
    "Brandt",
    "Costa",
    "Duarte",
    "Engel",
    "Fischer",
    "Garcia",
    "Hansen",
    "Ito",
    "Jensen",
    "Khan",
    "Lopez",
    "Moreau",
    "Novak",
    "Okafor",
    "Patel",
    "Rossi",
    "Silva",
    "Tanaka",
    "Weber",
]
THINGS = [
    "lamp",
    "desk",
    "chair",
    "monitor",
    "keyboard",
    "tent",
    "kettle",
    "backpack",
    "jacket",
    "boots",
    "bottle",
    "notebook",
    "drill",
    "ladder",
    "camera",
    "speaker",
    "blender",
    "mug",
    "helmet",
    "rug",
]

NUMBERS: dict[str, tuple[float, float, int]] = {  # low, high, decimals
    "price": (1, 400, 2),
    "unit price": (0.5, 250, 2),
    "quantity": (1, 40, 0),
    "units sold": (0, 900, 0),
    "revenue": (100, 50_000, 2),
    "amount": (5, 9_000, 2),
    "cost": (2, 3_000, 2),
    "discount": (0, 40, 0),
    "shipping cost": (0, 60, 2),
    "tax": (0, 500, 2),
    "profit": (-500, 8_000, 2),
    "salary": (22_000, 160_000, 0),
    "bonus": (0, 20_000, 0),
    "age": (18, 90, 0),
    "years of service": (0, 35, 0),
    "hours worked": (4, 60, 1),
    "overtime hours": (0, 20, 1),
    "vacation days": (0, 35, 0),
    "rating": (1, 5, 1),
    "score": (0, 100, 1),
    "satisfaction": (1, 10, 0),
    "weight kg": (0.2, 140, 1),
    "height cm": (140, 205, 0),
    "distance km": (0.5, 900, 1),
    "duration min": (1, 480, 0),
    "temperature": (-12, 41, 1),
    "humidity": (15, 99, 0),
    "pressure": (960, 1_045, 1),
    "wind speed": (0, 33, 1),
    "rainfall mm": (0, 80, 1),
    "energy kwh": (1, 900, 1),
    "voltage": (208, 252, 1),
    "response time": (1, 900, 0),
    "resolution hours": (0.2, 200, 1),
    "reopened count": (0, 6, 0),
    "visits": (0, 4_000, 0),
    "clicks": (0, 3_000, 0),
    "impressions": (100, 90_000, 0),
    "conversion rate": (0, 0.4, 3),
    "budget": (1_000, 900_000, 0),
    "spend": (50, 70_000, 2),
    "headcount": (1, 300, 0),
    "stock": (0, 1_500, 0),
    "reorder level": (5, 200, 0),
    "lead time days": (1, 60, 0),
    "delay minutes": (0, 240, 0),
    "passengers": (1, 380, 0),
    "fare": (2, 900, 2),
    "nights": (1, 21, 0),
    "room rate": (40, 600, 0),
    "guests": (1, 8, 0),
    "blood pressure": (90, 180, 0),
    "heart rate": (48, 140, 0),
    "cholesterol": (120, 320, 0),
    "bmi": (16, 42, 1),
    "dose mg": (5, 800, 0),
    "length of stay": (0, 30, 0),
    "fee": (10, 2_500, 2),
    "grade": (1, 100, 0),
    "absences": (0, 25, 0),
    "attendance": (40, 100, 1),
    "credits": (1, 40, 0),
    "rent": (300, 4_500, 0),
    "area sqm": (18, 320, 0),
    "bedrooms": (1, 6, 0),
    "year built": (1900, 2024, 0),
    "mileage": (0, 260_000, 0),
    "fuel consumption": (3, 16, 1),
    "downloads": (0, 50_000, 0),
    "errors": (0, 120, 0),
    "latency ms": (2, 1_900, 0),
    "file size mb": (0.1, 900, 1),
    "defects": (0, 30, 0),
    "output tons": (1, 400, 1),
    "yield": (0.2, 12, 2),
    "population": (400, 9_000_000, 0),
    "income": (8_000, 210_000, 0),
    "balance": (-2_000, 90_000, 2),
    "loan amount": (500, 400_000, 0),
    "interest rate": (0.5, 14, 2),
    "calories": (20, 1_200, 0),
    "protein g": (0, 60, 1),
    "goals": (0, 40, 0),
    "points": (0, 120, 0),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "region": ("North", "South", "East", "West"),
    "country": ("Germany", "France", "Spain", "Italy", "Poland", "Kenya", "Japan"),
    "city": ("Berlin", "Lyon", "Madrid", "Porto", "Oslo", "Nairobi", "Osaka", "Lima"),
    "department": ("Sales", "Finance", "IT", "HR", "Marketing", "Legal", "Operations"),
    "team": ("Alpha", "Beta", "Gamma", "Delta"),
    "status": ("open", "closed", "pending", "cancelled"),
    "order status": ("shipped", "returned", "processing", "delivered"),
    "priority": ("low", "medium", "high", "urgent"),
    "category": ("Furniture", "Electronics", "Clothing", "Food", "Toys"),
    "product line": ("Basic", "Plus", "Pro"),
    "payment method": ("card", "cash", "transfer", "paypal"),
    "channel": ("web", "phone", "store", "email"),
    "plan": ("free", "standard", "premium"),
    "customer segment": ("Consumer", "Corporate", "Public"),
    "gender": ("female", "male", "other"),
    "sex": ("F", "M"),
    "job title": ("Engineer", "Analyst", "Manager", "Clerk", "Technician"),
    "office": ("London", "Paris", "Zurich", "Boston"),
    "contract type": ("permanent", "temporary", "freelance"),
    "shift": ("morning", "evening", "night"),
    "weekday": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    "machine": ("M1", "M2", "M3", "M4"),
    "sensor": ("S-01", "S-02", "S-03", "S-04", "S-05"),
    "site": ("plant A", "plant B", "plant C"),
    "severity": ("minor", "major", "critical"),
    "ward": ("Cardiology", "Surgery", "Oncology", "Paediatrics"),
    "diagnosis": ("flu", "fracture", "asthma", "diabetes", "migraine"),
    "doctor": ("Dr Engel", "Dr Khan", "Dr Silva", "Dr Ito"),
    "treatment": ("A", "B", "placebo"),
    "insurance": ("public", "private", "none"),
    "course": ("Maths", "Physics", "History", "Art", "Biology"),
    "school": ("Hill", "Lake", "Park"),
    "room type": ("single", "double", "suite"),
    "airline": ("AirNova", "SkyLine", "Blue Jet"),
    "airport": ("OSL", "CDG", "MAD", "NRT"),
    "vehicle": ("van", "truck", "car", "bike"),
    "fuel": ("petrol", "diesel", "electric", "hybrid"),
    "colour": ("red", "blue", "green", "black", "white"),
    "size": ("S", "M", "L", "XL"),
    "brand": ("Orbis", "Kanto", "Vela", "Mira"),
    "supplier": ("Acorn Ltd", "Borealis", "Cobalt", "Dune & Co"),
    "warehouse": ("W1", "W2", "W3"),
    "crop": ("wheat", "maize", "rice", "barley"),
    "species": ("oak", "birch", "pine", "maple"),
    "genre": ("drama", "comedy", "action", "documentary"),
    "language": ("English", "German", "Hindi", "Thai"),
    "browser": ("Firefox", "Chrome", "Safari", "Edge"),
    "device": ("desktop", "mobile", "tablet"),
    "campaign": ("spring", "summer", "launch", "retention"),
    "source": ("ads", "search", "referral", "newsletter"),
    "agent": ("Kim", "Omar", "Rosa", "Wes"),
    "level": ("junior", "senior", "lead"),
    "education": ("school", "bachelor", "master", "phd"),
    "district": ("Centre", "Harbour", "Old Town", "Hillside"),
    "property type": ("flat", "house", "studio"),
    "condition": ("new", "used", "refurbished"),
}
FLAGS = (
    "remote",
    "paid",
    "returned",
    "active",
    "smoker",
    "insured",
    "escalated",
    "discounted",
    "delivered",
    "member",
    "urgent",
    "in stock",
    "subscribed",
    "weekend",
    "refunded",
    "passed",
    "full time",
    "first visit",
    "repeat customer",
    "cancelled",
    "breakfast included",
    "furnished",
)
DATES = (
    "date",
    "order date",
    "hire date",
    "created",
    "visit date",
    "booking date",
    "start date",
    "check in",
    "ship date",
    "last login",
    "due date",
    "admission date",
    "sold on",
    "reading date",
    "opened",
    "departure",
    "signup date",
    "birth date",
)
NAMES = (
    "name",
    "customer",
    "employee",
    "product",
    "patient",
    "client",
    "student",
    "order id",
    "ticket id",
    "item",
    "title",
    "invoice",
    "vehicle id",
    "company",
)
FILES = [
    "orders",
    "sales",
    "employees",
    "staff",
    "visits",
    "patients",
    "tickets",
    "bookings",
    "customers",
    "products",
    "inventory",
    "readings",
    "sensors",
    "students",
    "grades",
    "flights",
    "trips",
    "loans",
    "listings",
    "campaigns",
    "invoices",
    "payments",
    "shipments",
    "projects",
    "machines",
    "incidents",
    "survey",
    "members",
    "subscriptions",
    "transactions",
    "data",
    "export",
    "report",
]

STYLES: tuple[Callable[[str], str], ...] = (
    lambda words: words.replace(" ", "_"),
    lambda words: words.replace(" ", "_"),
    lambda words: words.title(),
    lambda words: words.title().replace(" ", ""),
    lambda words: words[:1] + words.title().replace(" ", "")[1:],
    lambda words: words.capitalize(),
    lambda words: words,
    lambda words: words.upper().replace(" ", "_"),
    lambda words: words.replace(" ", "."),
)


@dataclass(frozen=True)
class CsvTable:
    """A file as a user may have it."""

    name: str
    content: bytes


def invent_table(chance: random.Random) -> CsvTable:
    """A CSV table of 40 to 400 rows and 4 to 10 columns in one style of naming."""
    style, rows = chance.choice(STYLES), chance.randint(40, 400)
    columns: dict[str, list[str]] = {}
    if chance.random() < 0.75:
        concept = chance.choice(NAMES)
        columns[style(concept)] = [_name(concept, row, chance) for row in range(rows)]
    if chance.random() < 0.6:
        columns[style(chance.choice(DATES))] = _dates(rows, chance)
    for concept in chance.sample(sorted(GROUPS), chance.choice((1, 2, 2, 3))):
        columns[style(concept)] = _groups(GROUPS[concept], rows, chance)
    for concept in chance.sample(FLAGS, chance.choice((0, 0, 1, 1, 2))):
        yes, no = chance.choice((("yes", "no"), ("yes", "no"), ("Yes", "No"), ("True", "False"), ("Y", "N")))
        often = chance.uniform(0.1, 0.8)
        columns[style(concept)] = [yes if chance.random() < often else no for _ in range(rows)]
    for concept in chance.sample(sorted(NUMBERS), chance.choice((2, 2, 3, 3, 4))):
        columns[style(concept)] = _numbers(*NUMBERS[concept], rows, chance)
    for label in columns:
        if chance.random() < 0.2:
            share = chance.uniform(0.01, 0.12)
            columns[label] = ["" if chance.random() < share else value for value in columns[label]]
    order = list(columns)
    chance.shuffle(order)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(order)
    writer.writerows(zip(*(columns[label] for label in order), strict=True))
    name = chance.choice(FILES) + chance.choice(("", "", "_2023", "_q3", "_export", "-2024"))
    return CsvTable(name, text.getvalue().encode())


def _name(concept: str, row: int, chance: random.Random) -> str:
    last = natural(concept).split()[-1]
    if last in ("id", "invoice"):
        return f"{concept[:1].upper()}{1000 + row}"
    if last in ("product", "item", "title"):
        return f"{chance.choice(THINGS).title()} {chance.randint(1, 99)}"
    if last in ("client", "company"):
        return f"{chance.choice(LAST)} {chance.choice(('Ltd', 'GmbH', 'Inc', '& Sons'))} {row + 1}"
    return f"{chance.choice(FIRST)} {chance.choice(LAST)}"


def _numbers(low: float, high: float, decimals: int, rows: int, chance: random.Random) -> list[str]:
    """Skewed where the range spans magnitudes, as prices and counts are."""
    middle, wide = chance.uniform(0.2, 0.6), low >= 0 and high > 50 * max(low, 1)
    drawn = (low + (high - low) * chance.betavariate(2, 2 / middle) for _ in range(rows))
    values = (min(high, max(low, math.exp(math.log1p(v) * chance.uniform(0.8, 1)) - 1)) if wide else v for v in drawn)
    return [f"{value:.{decimals}f}" for value in values]


def _groups(values: tuple[str, ...], rows: int, chance: random.Random) -> list[str]:
    some = chance.sample(values, chance.randint(2, len(values)))
    weights = [chance.uniform(0.5, 3) for _ in some]
    return chance.choices(some, weights, k=rows)


def _dates(rows: int, chance: random.Random) -> list[str]:
    start, days = (
        datetime.date(chance.randint(2018, 2024), chance.randint(1, 12), 1),
        chance.choice((60, 200, 365, 700)),
    )
    return [(start + datetime.timedelta(days=chance.randrange(days))).isoformat() for _ in range(rows)]
