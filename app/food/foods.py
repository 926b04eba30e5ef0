"""The food table and the label tables: what a model's classes mean, and what is in each food.

A food is one row of ``models/tables/foods.csv``, which pins the FoodData Central row that its nutrients are
from; what USDA does not list is mixed from several, in ``mixes.csv`` beside it. A label table
(``index,label,food``) names a model's classes in order and says which food, if any, each one is. All are read
at start and checked without mercy: a mistake in a table is a wrong score in production, so it stops the
service with the file and line to mend.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.food.nutriscore import Category, Nutrients, NutriScore, score

GROUPS = (
    "fruit", "vegetable", "legume", "nut-seed", "grain", "potato", "meat", "fish-seafood", "egg", "dairy",
    "cheese", "mixed-dish", "fast-food", "soup", "salad", "sandwich", "sauce-spread", "dessert",
    "sweet-snack", "salty-snack", "bakery", "drink", "alcoholic-drink",
)  # fmt: skip

FLAGS = (
    "high-sugar", "high-salt", "high-saturated-fat", "energy-dense", "low-fibre", "high-fibre",
    "high-protein",
)  # fmt: skip

TAGS = (
    "alcohol", "beef", "celery", "crustaceans", "dairy", "egg", "fish", "gluten", "honey", "lupin", "meat",
    "molluscs", "mustard", "peanut", "pork", "poultry", "sesame", "soy", "sulphites", "tree-nut",
)  # fmt: skip

KINDS_OF_MEAT = frozenset({"beef", "pork", "poultry"})

FDC_TYPES = ("SR Legacy", "FNDDS 2021-2023")
MIX = "mix"
"""Stands in the place of the type for a food that is made of the parts in ``MIXES``."""
MIXES = "mixes.csv"

KJ_PER_KCAL = 4.184
KJ_PER_G_PROTEIN = 17  # Regulation (EU) 1169/2011, annex XIV
ENERGY_DENSE_KCAL = 275

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

_NUTRIENT_COLUMNS = {
    "energy_kj": "energy_kj", "sugars_g": "sugars_g", "saturated_fat_g": "saturated_fat_g", "fat_g": "fat_g",
    "salt_g": "salt_g", "fibre_g": "fibre_g", "protein_g": "protein_g", "fruit_veg_legume_pct": "fvl_pct",
}  # fmt: skip
_SWITCHES = ("red_meat", "cheese", "water", "sweeteners")

FOOD_COLUMNS = (
    "id", "name", "group", "category", *_SWITCHES, "contains", "fdc_id", "fdc_type", "fdc_description",
    *_NUTRIENT_COLUMNS.values(), "fvl_reason", "points", "grade",
)  # fmt: skip
MIX_COLUMNS = (
    "food", "share", "fdc_id", "fdc_type", "fdc_description", *_NUTRIENT_COLUMNS.values(),
)  # fmt: skip
LABEL_COLUMNS = ("index", "label", "food")


class TableError(ValueError):
    """A table that cannot be trusted; the message begins with ``file:line``."""


@dataclass(frozen=True, slots=True)
class Source:
    """A row of FoodData Central, its nutrients, and its share of a food's weight, over 0 and up to 1."""

    share: float
    fdc_id: int
    fdc_type: str
    description: str
    nutrients: Nutrients


@dataclass(frozen=True, slots=True)
class Food:
    """One row of the food table, with what follows from it.

    ``contains`` are the words of ``TAGS`` that the dish, as usually made, holds (any kind of meat brings
    "meat"). ``sources`` is the one row that the nutrients are from or, for a mix, its parts; the shares sum
    to 1.
    """

    id: str
    name: str
    group: str
    category: Category
    contains: frozenset[str]
    nutrients: Nutrients
    nutriscore: NutriScore
    flags: frozenset[str]
    sources: tuple[Source, ...]
    fvl_reason: str

    @property
    def stars(self) -> int:
        """The food's score, 1–5."""
        return self.nutriscore.stars


@dataclass(frozen=True, slots=True)
class Label:
    """One class of a model: its place in the output, its name, and its food unless it is not food."""

    index: int
    name: str
    food: Food | None


def load_foods(path: Path) -> dict[str, Food]:
    """Every food of the table by id, in the order of the table. Reads ``mixes.csv`` beside it if it is there.

    Raises:
        TableError: a column or cell is not as it should be, points and grade do not follow from the rest, or
            the nutrients of a mix do not follow from its parts.
        OSError: a file cannot be read.
    """
    mixes_path = path.with_name(MIXES)
    mixes = _load_mixes(mixes_path) if mixes_path.exists() else {}
    foods: dict[str, Food] = {}
    names: set[str] = set()
    for where, row in _rows(path, FOOD_COLUMNS):
        try:
            food = _food(row, mixes)
        except ValueError as error:
            raise TableError(f"{where}: {error}") from error
        if food.id in foods or food.name in names:
            raise TableError(f"{where}: {food.id!r} ({food.name!r}) is there already")
        foods[food.id] = food
        names.add(food.name)
    if unused := mixes.keys() - {food.id for food in foods.values() if len(food.sources) > 1}:
        raise TableError(f"{MIXES}:1: no mix in {path.name} is called {', '.join(sorted(unused))}")
    return foods


def load_labels(path: Path, foods: Mapping[str, Food]) -> tuple[Label, ...]:
    """A model's classes in output order; ``foods`` is what ``load_foods`` gave.

    Raises:
        TableError: indices do not run 0, 1, 2 …; a label is empty or there twice; a food is not in ``foods``.
        OSError: the file cannot be read.
    """
    labels: list[Label] = []
    names: set[str] = set()
    for where, row in _rows(path, LABEL_COLUMNS):
        index, name, food = row["index"], row["label"], row["food"]
        if index != str(len(labels)):
            raise TableError(f"{where}: index must be {len(labels)}, not {index!r}")
        if not name or name in names:
            raise TableError(f"{where}: label {name!r} is empty or there already")
        if food and food not in foods:
            raise TableError(f"{where}: no food {food!r} in the food table")
        labels.append(Label(len(labels), name, foods[food] if food else None))
        names.add(name)
    return tuple(labels)


def flags(nutrients: Nutrients, category: Category) -> frozenset[str]:
    """The words of ``FLAGS`` that hold for a food.

    High sugar, salt and saturates are the red limits of the UK front-of-pack guide (Department of Health and
    Food Standards Agency, 2016): over 22.5, 1.5 and 5 g per 100 g, and half of each per 100 ml of a drink.
    Fibre and protein follow Regulation (EC) 1924/2006: high fibre is at least 6 g per 100 g or 3 g per
    100 kcal; low fibre is less than a "source", which is half of that; high protein is at least a fifth of
    the energy. Energy-dense is over 275 kcal per 100 g, the upper end of the World Cancer Research Fund's
    225–275 (2007), which leaves drinks out; so does low fibre, or every drink would have it.
    """
    drink = category is Category.BEVERAGE
    limit = 0.5 if drink else 1.0
    kcal = nutrients.energy_kj / KJ_PER_KCAL
    fibre = nutrients.fibre_g
    holds = {
        "high-sugar": nutrients.sugars_g > 22.5 * limit,
        "high-salt": nutrients.salt_g > 1.5 * limit,
        "high-saturated-fat": nutrients.saturated_fat_g > 5.0 * limit,
        "energy-dense": not drink and kcal > ENERGY_DENSE_KCAL,
        "low-fibre": not drink and fibre < 3 and fibre * 100 < 1.5 * kcal,
        "high-fibre": fibre >= 6 or (fibre > 0 and fibre * 100 >= 3 * kcal),
        "high-protein": nutrients.protein_g > 0
        and KJ_PER_G_PROTEIN * nutrients.protein_g >= nutrients.energy_kj / 5,
    }
    return frozenset(flag for flag, held in holds.items() if held)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV table, each with its ``file:line``; the header must be exactly ``columns``."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file, strict=True)
        header = tuple(next(reader, ()))
        if header != columns:
            raise TableError(f"{path.name}:1: columns must be {','.join(columns)}")
        for cells in reader:
            where = f"{path.name}:{reader.line_num}"
            if len(cells) != len(columns):
                raise TableError(f"{where}: {len(cells)} cells, not {len(columns)}")
            if any(cell != cell.strip() for cell in cells):
                raise TableError(f"{where}: a cell begins or ends with a space")
            yield where, dict(zip(columns, cells, strict=True))


def _load_mixes(path: Path) -> dict[str, tuple[Source, ...]]:
    """The parts of every mix by the food's id."""
    mixes: dict[str, tuple[Source, ...]] = {}
    for where, row in _rows(path, MIX_COLUMNS):
        try:
            part = _source(row, _number(row, "share"))
        except ValueError as error:
            raise TableError(f"{where}: {error}") from error
        mixes[row["food"]] = (*mixes.get(row["food"], ()), part)
    return mixes


def _food(row: Mapping[str, str], mixes: Mapping[str, tuple[Source, ...]]) -> Food:
    """One food from its cells. Raises ValueError with what is wrong."""
    if not SLUG.fullmatch(row["id"]):
        raise ValueError(f"id {row['id']!r} is not a lower-case slug")
    if not row["name"] or row["name"] != row["name"].lower():
        raise ValueError(f"name {row['name']!r} must be lower case")
    if row["group"] not in GROUPS:
        raise ValueError(f"unknown group {row['group']!r}")
    contains = frozenset(row["contains"].split())
    if unknown := contains - set(TAGS):
        raise ValueError(f"unknown tags {sorted(unknown)}")
    if contains & KINDS_OF_MEAT:
        contains |= {"meat"}
    if not row["fvl_reason"]:
        raise ValueError("fvl_reason is empty: every number needs its source")
    category = Category(row["category"])
    nutrients = _nutrients(row)
    sources = mixes.get(row["id"], ()) if row["fdc_type"] == MIX else (_source(row, 1.0),)
    if row["fdc_type"] == MIX:
        _check_mix(row, sources)
    nutriscore = score(nutrients, category, **{switch: _yes(row, switch) for switch in _SWITCHES})
    if (row["points"], row["grade"]) != (str(nutriscore.points), nutriscore.grade):
        raise ValueError(f"points and grade must be {nutriscore.points} and {nutriscore.grade}")
    return Food(
        id=row["id"],
        name=row["name"],
        group=row["group"],
        category=category,
        contains=contains,
        nutrients=nutrients,
        nutriscore=nutriscore,
        flags=flags(nutrients, category),
        sources=sources,
        fvl_reason=row["fvl_reason"],
    )


def _source(row: Mapping[str, str], share: float) -> Source:
    if row["fdc_type"] not in FDC_TYPES:
        raise ValueError(f"fdc_type must be one of {', '.join(FDC_TYPES)}, not {row['fdc_type']!r}")
    if not row["fdc_description"]:
        raise ValueError("fdc_description is empty: every number needs its source")
    if not 0 < share <= 1:
        raise ValueError(f"share must be over 0 and at most 1, not {share}")
    return Source(share, int(row["fdc_id"]), row["fdc_type"], row["fdc_description"], _nutrients(row))


def _check_mix(row: Mapping[str, str], parts: Sequence[Source]) -> None:
    """Raises ValueError unless a mixed food follows from its parts."""
    if row["fdc_id"] or row["fdc_description"]:
        raise ValueError("a mix has no FoodData Central row of its own")
    if len(parts) < 2 or not math.isclose(math.fsum(part.share for part in parts), 1):
        raise ValueError(f"a mix needs two parts or more in {MIXES}, whose shares sum to 1")
    for field, column in _NUTRIENT_COLUMNS.items():
        total = math.fsum(part.share * getattr(part.nutrients, field) for part in parts)
        if not math.isclose(_number(row, column), total, rel_tol=5e-4):  # the table gives four digits
            raise ValueError(f"{column} of this mix must be {total:.4g}, not {row[column]}")


def _nutrients(row: Mapping[str, str]) -> Nutrients:
    return Nutrients(**{field: _number(row, column) for field, column in _NUTRIENT_COLUMNS.items()})


def _number(row: Mapping[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError as error:
        raise ValueError(f"{column} {row[column]!r} is not a number") from error


def _yes(row: Mapping[str, str], column: str) -> bool:
    if row[column] not in ("yes", "no"):
        raise ValueError(f"{column} must be yes or no, not {row[column]!r}")
    return row[column] == "yes"
