"""What a model's class probabilities say about a meal: is it food, how does it score, what is on the plate.

The way from numbers to an answer has two steps, so that several models can look at one photo::

    probabilities (C,) ── read ──> Evidence ┐
                                            ├── combine ──> Assessment
    another model's ───── read ──> Evidence ┘

``read`` sums the classes of a softmax into foods, and the foods into scores, groups, flags and tags, given
that the photo shows food. ``combine`` averages the evidence and applies the thresholds, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.food.foods import FLAGS, GROUPS, TAGS, Food, Label

Status = Literal["scored", "not_food", "needs_review"]
Distribution = tuple[float, float, float, float, float]

FLAG_MASS = 0.5
"""A flag holds for the meal if it holds for at least this share of what the food may be."""
TAG_MASS = 0.2
"""A tag is reported from this share on: a tip must know of beef that is only likely to be there."""

# The columns of Catalogue.traits: five scores, then groups, flags and tags.
_SCORES = slice(0, 5)
_GROUPS = slice(5, 5 + len(GROUPS))
_FLAGS = slice(_GROUPS.stop, _GROUPS.stop + len(FLAGS))
_TAGS = slice(_FLAGS.stop, _FLAGS.stop + len(TAGS))
_STARS = np.arange(1, 6, dtype=np.float64)
_SUM_TOLERANCE = 0.05  # a softmax in bfloat16 over a thousand classes does not sum to 1 exactly


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where probabilities become decisions. A model's manifest sets its own.

    Attributes:
        food: the least P(food), 0–1; below it the photo is not food.
        review: the most standard deviation of the score, in points; above it a nutritionist decides. 0 is a
            score beyond doubt, 1.41 all five alike, 2 an even split between 1 and 5. It is used rather than
            the entropy because scores have an order: doubt between 4 and 5 matters less than between 1 and 5.
        dish: the least probability, over 0 and up to 1, of a dish that is shown.
        dishes: how many dishes are shown at most.
    """

    food: float = 0.5
    review: float = 1.0
    dish: float = 0.05
    dishes: int = 5

    def __post_init__(self) -> None:
        if not (0 <= self.food <= 1 and 0 <= self.review <= 2 and 0 < self.dish <= 1 and self.dishes >= 0):
            raise ValueError(f"out of range: {self}")


@dataclass(frozen=True, slots=True)
class Assessment:
    """The answer to one photo.

    ``score`` is there only when ``status`` is "scored"; the distribution (index 0 is score 1) and its mean
    are also there for a photo that needs review, for the reviewer to see. A photo that is not food has
    neither, and no dishes. ``dishes`` are (name, probability), likeliest first. Their probabilities are
    absolute: they sum to ``food_probability`` at most, and do not look surer than the model is.
    """

    status: Status
    score: int | None
    score_mean: float | None
    score_probabilities: Distribution | None
    dishes: tuple[tuple[str, float], ...]
    food_probability: float
    group: str | None
    flags: frozenset[str]
    contains: frozenset[str]


class Catalogue:
    """A model's labels, turned into arrays once so that a photo costs a few small array operations.

    Attributes:
        classes: C, the length of the model's output.
        names: the F distinct foods among the labels; several classes may be the same food.
        foods: the same as rows of the food table.
        labels: per food, what its classes are called.
        food_classes: intp (K,), the classes that are food.
        food_of_class: intp (K,), the place in ``names`` of each of them.
        traits: float64 (F, 5 + groups + flags + tags), 1 where the food has the score, group, flag or tag.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        found = [(label.index, label.food) for label in labels if label.food is not None]
        foods = {food.name: food for _, food in found}
        if not foods:
            raise ValueError("no label is a food")
        self.classes = len(labels)
        self.names = tuple(foods)
        self.foods = tuple(foods.values())
        self.labels = tuple(
            tuple(label.name for label in labels if label.food and label.food.name == name) for name in foods
        )
        self.index = {name: place for place, name in enumerate(self.names)}
        self.food_classes = np.array([index for index, _ in found], dtype=np.intp)
        self.food_of_class = np.array([self.index[food.name] for _, food in found], dtype=np.intp)
        self.traits = np.array([_traits(food) for food in foods.values()], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one model saw, before any threshold.

    ``shares`` (F,) and ``traits`` (the columns of ``Catalogue.traits``) are given that the photo is food;
    both are all zero if no food class got any probability.
    """

    catalogue: Catalogue
    food_probability: float
    shares: NDArray[np.float64]
    traits: NDArray[np.float64]

    def dish(self, name: str) -> float:
        """The absolute probability of a dish; 0 for one that the model does not know."""
        place = self.catalogue.index.get(name)
        return 0.0 if place is None else self.food_probability * float(self.shares[place])


def read(
    probabilities: ArrayLike,
    catalogue: Catalogue,
    food_probability: float | None = None,
    scores: ArrayLike | None = None,
) -> Evidence:
    """Sum a softmax into evidence.

    Args:
        probabilities: (C,), a softmax over the classes of ``catalogue``, any float type.
        catalogue: the model's labels.
        food_probability: P(food) by a gate of the model's own, 0–1; else it is the mass on food classes.
        scores: (5,), the distribution of a score head of the model's own, for photos of food; it takes the
            place of what the foods' own scores add up to.

    Raises:
        ValueError: wrong length, or values that are not a softmax: a broken model, never a bad photo.
    """
    mass = np.asarray(probabilities, dtype=np.float64)
    if mass.shape != (catalogue.classes,):
        raise ValueError(f"expected {catalogue.classes} probabilities, got shape {mass.shape}")
    if not (abs(mass.sum() - 1) <= _SUM_TOLERANCE and mass.min() >= 0):
        raise ValueError("probabilities must be at least 0 and sum to 1")
    if food_probability is not None and not 0 <= food_probability <= 1:
        raise ValueError(f"food_probability must be 0–1, not {food_probability}")
    foods: NDArray[np.float64] = np.bincount(
        catalogue.food_of_class, mass[catalogue.food_classes], len(catalogue.names)
    ).astype(np.float64, copy=False)
    total = float(foods.sum())
    shares = foods / total if total > 0 else foods
    gate = min(1.0, total) if food_probability is None else food_probability
    traits = shares @ catalogue.traits
    if scores is not None:
        traits[_SCORES] = _distribution(scores)
    return Evidence(catalogue, gate, shares, traits)


def _distribution(scores: ArrayLike) -> NDArray[np.float64]:
    """Five probabilities whose sum is exactly 1, from ones that may be rounded."""
    found = np.asarray(scores, dtype=np.float64)
    if found.shape != (5,) or not (abs(found.sum() - 1) <= _SUM_TOLERANCE and found.min() >= 0):
        raise ValueError("a score head must give five probabilities, at least 0, that sum to 1")
    return np.asarray(found / found.sum(), dtype=np.float64)


def combine(evidence: Sequence[Evidence], thresholds: Thresholds) -> Assessment:
    """Average the evidence of all models and apply the thresholds once.

    P(food) and the probability of each dish are plain means; a model that does not know a dish gives it 0.
    Scores, groups, flags and tags are means weighted by each model's P(food): a model that sees no food has
    no say in which food it is.

    The score is the mean of its distribution, rounded half up. Unlike the likeliest score it moves by
    degrees, not in leaps, from one photo of a meal to the next, and it agrees with the ``score_mean`` shown
    beside it. Where a mean says little, between two far ends, ``Thresholds.review`` steps in.

    Raises:
        ValueError: there is no evidence.
    """
    if not evidence:
        raise ValueError("no evidence to combine")
    food_probability = math.fsum(e.food_probability for e in evidence) / len(evidence)
    if food_probability < thresholds.food:
        return _nothing("not_food", food_probability)
    weights = [e.food_probability if e.shares.any() else 0.0 for e in evidence]
    if not any(weights):  # a gate says food, and no food class got any probability
        return _nothing("needs_review", food_probability)
    traits = np.dot(weights, [e.traits for e in evidence]) / math.fsum(weights)
    scores = traits[_SCORES]
    mean = float(scores @ _STARS)
    sure = math.sqrt(float(scores @ (_STARS - mean) ** 2)) <= thresholds.review
    one, two, three, four, five = scores.tolist()
    return Assessment(
        status="scored" if sure else "needs_review",
        score=math.floor(mean + 0.5) if sure else None,
        score_mean=min(max(mean, 1.0), 5.0),
        score_probabilities=(one, two, three, four, five),
        dishes=_dishes(evidence, thresholds),
        food_probability=food_probability,
        group=GROUPS[int(traits[_GROUPS].argmax())],
        flags=_at_least(traits[_FLAGS], FLAGS, FLAG_MASS),
        contains=_at_least(traits[_TAGS], TAGS, TAG_MASS),
    )


def assess(
    probabilities: ArrayLike,
    catalogue: Catalogue,
    thresholds: Thresholds,
    food_probability: float | None = None,
) -> Assessment:
    """The answer of one model alone: ``read``, then ``combine``."""
    return combine([read(probabilities, catalogue, food_probability)], thresholds)


def _traits(food: Food) -> list[bool]:
    """A food's row of ``Catalogue.traits``."""
    return [
        *(food.stars == stars for stars in range(1, 6)),
        *(food.group == group for group in GROUPS),
        *(flag in food.flags for flag in FLAGS),
        *(tag in food.contains for tag in TAGS),
    ]


def _nothing(status: Status, food_probability: float) -> Assessment:
    """An answer with no score to show."""
    return Assessment(status, None, None, None, (), food_probability, None, frozenset(), frozenset())


def _dishes(evidence: Sequence[Evidence], thresholds: Thresholds) -> tuple[tuple[str, float], ...]:
    """The likeliest dishes over all models. A mean reaches the threshold only if some model's value does."""
    candidates = {
        e.catalogue.names[place]
        for e in evidence
        for place in np.flatnonzero(e.food_probability * e.shares >= thresholds.dish)
    }
    means = [(name, math.fsum(e.dish(name) for e in evidence) / len(evidence)) for name in candidates]
    shown = [dish for dish in means if dish[1] >= thresholds.dish]
    return tuple(sorted(shown, key=lambda dish: (-dish[1], dish[0]))[: thresholds.dishes])


def _at_least(values: NDArray[np.float64], words: tuple[str, ...], least: float) -> frozenset[str]:
    """The words whose value reaches ``least``, in spite of rounding: two quarters reach a half."""
    return frozenset(words[place] for place in np.flatnonzero(values >= least - 1e-9))
