"""How a food came by its score: the rows its nutrients are from, the points for each, and the rules.

Nothing is computed anew here: the points are those that ``nutriscore.score`` gave the food when the table was
read.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.food.foods import Food, Label, Source
from app.food.nutriscore import GRADE_LIMITS, Category, Component

NOT_GRADED = "Nutri-Score leaves drinks over 1.2 % alcohol out; this is what its beverage table would give"
_NAMES = {"fruit_veg_legume": "fruit, veg., legumes"}


class UnknownFood(LookupError):
    """No food or class has this name; the message offers those that are near."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A food and the classes of a model that stand for it, perhaps none.

    ``food`` has it all: ``sources``, ``nutrients`` per 100 g or 100 ml, and in ``nutriscore`` the components,
    rules, points and grade.
    """

    food: Food
    classes: tuple[str, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that decided over more than the sum, in words."""
        alcoholic = (NOT_GRADED,) if self.food.group == "alcoholic-drink" else ()
        return (*self.food.nutriscore.rules, *alcoholic)


def explain(name: str, labels: Sequence[Label], foods: Mapping[str, Food]) -> Explanation:
    """Explain the food that is meant by ``name``: a class of the model, or a food's id or name, in any case.

    Raises:
        UnknownFood: nothing is called that, or it is a class that is not food.
    """
    wanted = name.strip().lower()
    known = {food.name: food for food in foods.values()} | dict(foods)
    known |= {label.name.lower(): label.food for label in labels if label.food}
    if wanted in known:
        food = known[wanted]
        classes = (label.name for label in labels if label.food and label.food.id == food.id)
        return Explanation(food, tuple(classes))
    if any(label.name.lower() == wanted for label in labels):
        raise UnknownFood(f"{name!r} is a class that is not food")
    raise UnknownFood(f"no food or class {name!r}{_near(wanted, known)}")


def _near(wanted: str, known: Mapping[str, Food]) -> str:
    """What may have been meant: the nearest name of each of three foods."""
    names: dict[str, str] = {}
    for name in difflib.get_close_matches(wanted, known, n=9):
        names.setdefault(known[name].id, name)
    return f"; did you mean {', '.join([*names.values()][:3])}?" if names else ""


def render(explanation: Explanation) -> list[str]:
    """The explanation as lines of plain text, about 120 characters at most."""
    food = explanation.food
    result = food.nutriscore
    head = f"{food.name}: {food.stars} of 5 stars, Nutri-Score {result.grade} with {result.points} points"
    unit = "100 ml" if food.category is Category.BEVERAGE else "100 g"
    return [
        head,
        "",
        *(f"{key:<10}{value}" for key, value in _facts(explanation) if value),
        "",
        f"{'per ' + unit:<22}{'amount':>12}{'over':>10}{'points':>9}",
        *map(_line, result.components),
        f"{'total':<22}{result.points:>31}",
        "",
        *(f"rule: {rule}" for rule in explanation.rules),
        f"grades, {food.category}: {_grades(food.category)}",
        f"fruit, vegetables and legumes: {food.fvl_reason}",
    ]


def _facts(explanation: Explanation) -> Iterator[tuple[str, str]]:
    food = explanation.food
    yield "classes", ", ".join(explanation.classes)
    yield "group", food.group
    yield "contains", ", ".join(sorted(food.contains))
    for place, source in enumerate(food.sources):
        yield "" if place else "source", _source(source)


def _source(source: Source) -> str:
    share = f"{100 * source.share:g} % " if source.share < 1 else ""
    return f"{share}{source.description} (USDA {source.fdc_type}, FDC {source.fdc_id})"


def _line(component: Component) -> str:
    name = _NAMES.get(component.name, component.name)
    amount = f"{component.value:.4g} {component.unit}" if component.unit else "yes"
    over = f"{component.threshold:g}" if component.threshold is not None else ""
    points = -component.points if component.favourable else component.points
    note = f"  instead of {-component.earned}" if component.earned > component.points else ""
    return f"{name:<22}{amount:>12}{over:>10}{points:>9}{note}"


def _grades(category: Category) -> str:
    """The most points for each grade, without one that points alone cannot reach."""
    limits = zip("ABCD", GRADE_LIMITS[category], strict=True)
    return ", ".join(f"{grade} to {most:g}" for grade, most in limits if most > -math.inf) + ", E above"
