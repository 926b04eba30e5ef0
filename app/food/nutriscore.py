"""Nutri-Score 2023: nutrients per 100 g or 100 ml to points, a class A–E, and 5–1 stars.

Points are the unfavourable ones (energy, sugars, saturates, salt, sweeteners) less the favourable ones
(protein, fibre, fruit/vegetables/legumes); the fewer, the better. Three families of food have tables and
class limits of their own: general foods, beverages, and fats, oils, nuts and seeds.

Sources of every threshold and rule:

- Scientific Committee of the Nutri-Score, *Update of the Nutri-Score algorithm* (2022, version 2), recap
  annex: general foods, red meat, cheese; fats, oils, nuts and seeds;
- the same committee, *Update of the Nutri-Score algorithm for beverages* (2023), recap annex;
- Santé publique France, *Nutri-Score Questions & Answers*, updated algorithm, tables 5–10, and the French
  order of 14 March 2025, which put both into law.

The numbers agree with those Open Food Facts computes with. A value scores one point per threshold it
*exceeds*; only the ratio of saturates to fat scores on reaching one. The regulation prescribes no rounding.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Literal

Grade = Literal["A", "B", "C", "D", "E"]

STARS: Mapping[Grade, int] = {"A": 5, "B": 4, "C": 3, "D": 2, "E": 1}

KJ_PER_G_FAT = 37  # Regulation (EU) 1169/2011, annex XIV
SWEETENER_POINTS = 4
RED_MEAT_PROTEIN_CAP = 2


class Category(StrEnum):
    """Which tables apply. Soups are general foods; milk and plant drinks are beverages."""

    GENERAL = "general"
    BEVERAGE = "beverage"
    FAT_NUT = "fat-nut"


@dataclass(frozen=True, slots=True)
class Nutrients:
    """A food's content per 100 g, or per 100 ml of a beverage.

    Energy is in kJ, the rest in g; ``fruit_veg_legume_pct`` is the share by weight, 0–100, of fruit,
    vegetables and legumes as Nutri-Score counts them (no potatoes, other starchy roots, nuts or oils).

    Raises:
        ValueError: a value is negative or not finite, the share is over 100, or saturates exceed total fat.
    """

    energy_kj: float
    sugars_g: float
    saturated_fat_g: float
    fat_g: float
    salt_g: float
    fibre_g: float
    protein_g: float
    fruit_veg_legume_pct: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{field.name} must be a finite number of at least 0, not {value}")
        if self.fruit_veg_legume_pct > 100:
            raise ValueError(f"fruit_veg_legume_pct must be at most 100, not {self.fruit_veg_legume_pct}")
        if self.saturated_fat_g > self.fat_g:
            raise ValueError(f"saturated_fat_g {self.saturated_fat_g} exceeds fat_g {self.fat_g}")


@dataclass(frozen=True, slots=True)
class Component:
    """One line of the sum.

    Attributes:
        name: energy, sugars, saturates, salt or sweeteners; protein, fibre or fruit_veg_legume.
        favourable: whether its points are taken off rather than added.
        value: what is held against the thresholds, in ``unit``; 1 for sweeteners, which are there or not. Of
            fats and nuts, energy is that of the saturates, and saturates are their share of the fat.
        unit: kJ, g or %, per 100 g or 100 ml; empty for sweeteners.
        threshold: the highest threshold passed; None below the first.
        earned: the points that the table gives for ``value``.
        points: those that count, at least 0. Protein may earn more than a rule lets count.
    """

    name: str
    favourable: bool
    value: float
    unit: str
    threshold: float | None
    earned: int
    points: int


@dataclass(frozen=True, slots=True)
class NutriScore:
    """A score and what it is made of.

    ``points`` is the sum of ``negative`` less the sum of ``positive``; protein that a rule leaves out or caps
    is in them as it counted. ``rules`` are the special rules that made a difference, in words.
    """

    points: int
    grade: Grade
    components: tuple[Component, ...]
    rules: tuple[str, ...]

    @property
    def negative(self) -> dict[str, int]:
        """The unfavourable points by component."""
        return {c.name: c.points for c in self.components if not c.favourable}

    @property
    def positive(self) -> dict[str, int]:
        """The favourable points by component."""
        return {c.name: c.points for c in self.components if c.favourable}

    @property
    def stars(self) -> int:
        """5 for A down to 1 for E."""
        return STARS[self.grade]


# Thresholds. The k-th is exceeded at k points; a repeated one is worth several points at once.
ENERGY = (335, 670, 1005, 1340, 1675, 2010, 2345, 2680, 3015, 3350)
ENERGY_BEVERAGE = (30, 90, 150, 210, 240, 270, 300, 330, 360, 390)
ENERGY_FROM_SATURATES = (120, 240, 360, 480, 600, 720, 840, 960, 1080, 1200)
SUGARS = (3.4, 6.8, 10, 14, 17, 20, 24, 27, 31, 34, 37, 41, 44, 48, 51)
SUGARS_BEVERAGE = (0.5, 2, 3.5, 5, 6, 7, 8, 9, 10, 11)
SATURATES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
SATURATES_PER_FAT_PCT = (10, 16, 22, 28, 34, 40, 46, 52, 58, 64)
SALT = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6, 3.8, 4.0)
FIBRE = (3.0, 4.1, 5.2, 6.3, 7.4)
PROTEIN = (2.4, 4.8, 7.2, 9.6, 12, 14, 17)
PROTEIN_BEVERAGE = (1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0)
FRUIT_VEG_LEGUME = (40, 60, 80, 80, 80)
FRUIT_VEG_LEGUME_BEVERAGE = (40, 40, 60, 60, 80, 80)

# Unfavourable points at which protein stops counting. It always counts in beverages and cheese.
PROTEIN_LIMIT = {Category.GENERAL: 11, Category.FAT_NUT: 7}

# The most points for classes A, B, C and D. A beverage other than water is at best B.
GRADE_LIMITS: Mapping[Category, tuple[float, float, float, float]] = {
    Category.GENERAL: (0, 2, 10, 18),
    Category.BEVERAGE: (-math.inf, 2, 6, 9),
    Category.FAT_NUT: (-6, 2, 10, 18),
}


def score(
    nutrients: Nutrients,
    category: Category = Category.GENERAL,
    *,
    red_meat: bool = False,
    cheese: bool = False,
    water: bool = False,
    sweeteners: bool = False,
) -> NutriScore:
    """Score one food.

    ``red_meat`` is for red meat and products of it, ``cheese`` for cheese; neither is for a dish that holds
    some. ``sweeteners`` says that a beverage has at least one non-nutritive sweetener.

    Raises:
        ValueError: a flag that does not belong to ``category``.
    """
    if (red_meat or cheese) and category is not Category.GENERAL:
        raise ValueError(f"red_meat and cheese are for general foods, not {category}")
    if (water or sweeteners) and category is not Category.BEVERAGE:
        raise ValueError(f"water and sweeteners are for beverages, not {category}")

    beverage = category is Category.BEVERAGE
    unfavourable = _unfavourable(nutrients, category)
    if sweeteners:
        unfavourable.append(Component("sweeteners", False, 1, "", None, SWEETENER_POINTS, SWEETENER_POINTS))
    points = sum(component.points for component in unfavourable)

    protein = _component("protein", nutrients.protein_g, "g", PROTEIN_BEVERAGE if beverage else PROTEIN)
    fibre = _component("fibre", nutrients.fibre_g, "g", FIBRE)
    shares = FRUIT_VEG_LEGUME_BEVERAGE if beverage else FRUIT_VEG_LEGUME
    fruit = _component("fruit_veg_legume", nutrients.fruit_veg_legume_pct, "%", shares)

    rules: list[str] = []
    counted = protein.earned
    limit = PROTEIN_LIMIT.get(category, math.inf)
    if counted and points >= limit:
        if cheese:
            rules.append(f"the protein of cheese counts even with {limit} unfavourable points or more")
        else:
            counted = 0
            rules.append(f"protein does not count with {limit} unfavourable points or more")
    if red_meat and counted > RED_MEAT_PROTEIN_CAP:
        counted = RED_MEAT_PROTEIN_CAP
        rules.append(f"the protein of red meat counts for {RED_MEAT_PROTEIN_CAP} points at most")
    if water:
        rules.append("water is the only drink in class A")

    protein = replace(protein, points=counted)
    favourable = [replace(component, favourable=True) for component in (protein, fibre, fruit)]
    points -= sum(component.points for component in favourable)
    grade = "A" if water else _grade(points, category)
    return NutriScore(points, grade, (*unfavourable, *favourable), tuple(rules))


def _unfavourable(nutrients: Nutrients, category: Category) -> list[Component]:
    """The unfavourable components before sweeteners."""
    beverage = category is Category.BEVERAGE
    if category is Category.FAT_NUT:
        # Fats are told apart by the kind of fat, since all of them are energy.
        saturates, fat = nutrients.saturated_fat_g, nutrients.fat_g
        ratio = 100 * saturates / fat if fat else 0.0
        energy = _component("energy", KJ_PER_G_FAT * saturates, "kJ", ENERGY_FROM_SATURATES)
        saturated = _component("saturates", ratio, "%", SATURATES_PER_FAT_PCT, bisect_right)
    else:
        energy = _component("energy", nutrients.energy_kj, "kJ", ENERGY_BEVERAGE if beverage else ENERGY)
        saturated = _component("saturates", nutrients.saturated_fat_g, "g", SATURATES)
    return [
        energy,
        _component("sugars", nutrients.sugars_g, "g", SUGARS_BEVERAGE if beverage else SUGARS),
        saturated,
        _component("salt", nutrients.salt_g, "g", SALT),
    ]


def _component(
    name: str,
    value: float,
    unit: str,
    thresholds: tuple[float, ...],
    passed: Callable[[tuple[float, ...], float], int] = bisect_left,
) -> Component:
    """A point for each of the ascending ``thresholds`` that the value exceeds.

    ``passed`` counts them; ``bisect_right`` makes a threshold that is only reached count too.
    """
    points = passed(thresholds, _settled(value))
    return Component(name, False, value, unit, thresholds[points - 1] if points else None, points, points)


def _settled(value: float) -> float:
    """``value`` without the noise of binary arithmetic: 0.2 × 3 must not exceed 0.6."""
    return round(value, 6)


def _grade(points: int, category: Category) -> Grade:
    grades: tuple[Grade, ...] = ("A", "B", "C", "D", "E")
    return grades[bisect_left(GRADE_LIMITS[category], points)]
