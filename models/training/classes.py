"""The classes of labelled photos, and the food that each of them stands for."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch

from app.food.foods import LABEL_COLUMNS, MIXES, load_foods, load_labels
from models.manifest import TABLES, Manifest
from models.training.dataset import FOOD, NOT_FOOD, DatasetError, Example, class_name, stated_foods
from models.training.learning import NO_LABEL, Targets

_FOODS, _LABELS = "foods.csv", "labels.csv"
_LABEL_TABLES = ("imagenet.csv", "meals.csv")


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a run, in output order, and the food each stands for.

    ``own_foods`` is a table of foods that came with the data, or None. There may be no classes at all.
    """

    names: tuple[str, ...]
    foods: tuple[str, ...]
    own_foods: Path | None

    def targets(self, examples: Sequence[Example]) -> Targets:
        """What the heads should say of these photos."""
        place = {name: index for index, name in enumerate(self.names)}
        return Targets(
            classes=torch.tensor([place.get(example.label or "", NO_LABEL) for example in examples]),
            gate=torch.tensor([float(example.is_food) for example in examples]),
        )


def read_classes(examples: Sequence[Example], folder: Path) -> Classes:
    """The classes in the order of their groups' first photos, then by name.

    A class is a food by ``classes.csv`` (class,food) in ``folder``; else if it is called like a food, or like
    a class of the project's own label tables.

    Raises:
        DatasetError: a class that is no known food, or a ``classes.csv`` that cannot be read.
        TableError: a ``foods.csv`` in ``folder`` with a mistake.
    """
    groups = list(dict.fromkeys(example.group for example in examples))
    first = {example.label: groups.index(example.group) for example in reversed(examples) if example.label}
    names = tuple(sorted(first.keys() - {FOOD, NOT_FOOD}, key=lambda label: (first[label], label)))
    own_foods = folder / _FOODS if (folder / _FOODS).is_file() else None
    foods = load_foods(TABLES / _FOODS) | (load_foods(own_foods) if own_foods else {})
    known = {class_name(name): food.id for food in foods.values() for name in (food.id, food.name)}
    for table in _LABEL_TABLES:
        labels = load_labels(TABLES / table, foods)
        known |= {class_name(label.name): label.food.id for label in labels if label.food}
    known |= stated_foods(folder, foods)
    if strangers := [name for name in names if known.get(name) not in foods]:
        near = get_close_matches(strangers[0], known, 3)
        raise DatasetError(
            f"no food is known for the class {', '.join(strangers)}: say it in {folder / 'classes.csv'}, "
            "with the columns class,food; `fooddx explain` knows the foods"
            + (f", near {strangers[0]} are {', '.join(near)}" if near else "")
        )
    return Classes(names, tuple(known[name] for name in names), own_foods)


def write_tables(run: Path, base: Manifest, classes: Classes) -> tuple[str, str]:
    """Write a model's label table, and its food table where that is its own; returns what they are called.

    With no classes they are those of ``base``.
    """
    if not classes.names:
        (run / _LABELS).write_bytes(base.table(base.labels).read_bytes())
        if base.table(base.foods).parent != TABLES:
            for name in (base.foods, MIXES):
                (run / name).write_bytes(base.table(name).read_bytes())
        return _LABELS, base.foods
    with (run / _LABELS).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(LABEL_COLUMNS)
        rows.writerows(zip(range(len(classes.names)), classes.names, classes.foods, strict=True))
    if classes.own_foods:
        own = classes.own_foods.read_text("utf-8").partition("\n")[2]
        (run / _FOODS).write_text((TABLES / _FOODS).read_text("utf-8") + own, "utf-8")
        (run / MIXES).write_bytes((TABLES / MIXES).read_bytes())
    return _LABELS, _FOODS
