"""The food table and the label tables: what a model's classes mean, and what is in each food.

A food is one row of ``models/tables/foods.csv``; a label table (``index,label,food``) names a model's classes
in order and says which food, if any, each one is. Both are read at start and checked without mercy: a mistake
in a table is a wrong score in production, so it stops the service with the file and line to mend.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
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
LABEL_COLUMNS = ("index", "label", "food")


class TableError(ValueError):
    """A table that cannot be trusted; the message begins with ``file:line``."""


@dataclass(frozen=True, slots=True)
class Food:
    """One row of the food table, with what follows from it.

    ``contains`` are the words of ``TAGS`` that the dish, as usually made, holds (any kind of meat brings
    "meat"); ``fdc_id`` is None where the pinned survey row is known by its description alone.
    """

    id: str
    name: str
    group: str
    category: Category
    contains: frozenset[str]
    nutrients: Nutrients
    nutriscore: NutriScore
    flags: frozenset[str]
    fdc_id: int | None
    fdc_type: str
    fdc_description: str
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
    """Every food of the table by id, in the order of the table.

    Raises:
        TableError: a column or cell is not as it should be, or points and grade do not follow from the rest.
        OSError: the file cannot be read.
    """
    foods: dict[str, Food] = {}
    names: set[str] = set()
    for where, row in _rows(path, FOOD_COLUMNS):
        try:
            food = _food(row)
        except ValueError as error:
            raise TableError(f"{where}: {error}") from error
        if food.id in foods or food.name in names:
            raise TableError(f"{where}: {food.id!r} ({food.name!r}) is there already")
        foods[food.id] = food
        names.add(food.name)
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


def _food(row: Mapping[str, str]) -> Food:
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
    for column in ("fdc_type", "fdc_description", "fvl_reason"):
        if not row[column]:
            raise ValueError(f"{column} is empty: every number needs its source")
    category = Category(row["category"])
    nutrients = Nutrients(**{field.name: _number(row, field.name) for field in fields(Nutrients)})
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
        fdc_id=int(row["fdc_id"]) if row["fdc_id"] else None,
        fdc_type=row["fdc_type"],
        fdc_description=row["fdc_description"],
        fvl_reason=row["fvl_reason"],
    )


def _number(row: Mapping[str, str], nutrient: str) -> float:
    column = _NUTRIENT_COLUMNS[nutrient]
    try:
        return float(row[column])
    except ValueError as error:
        raise ValueError(f"{column} {row[column]!r} is not a number") from error


def _yes(row: Mapping[str, str], column: str) -> bool:
    if row[column] not in ("yes", "no"):
        raise ValueError(f"{column} must be yes or no, not {row[column]!r}")
    return row[column] == "yes"
