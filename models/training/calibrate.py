"""What a model's probabilities are worth: temperatures and thresholds, from photos it has not learnt.

The thresholds are chosen on what the service itself computes: logits become probabilities by
``models.heads`` and answers by ``app.food.assessment``, with the temperatures that were fitted first.
They fit the photos they were chosen on a little better than any others: judge a model on its test split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.food.assessment import Catalogue, Evidence, Thresholds, combine, read
from models.heads import Head, Kind, probabilities
from models.metrics import Curve, coverage_risk, gate_curve, reliability, thin

Floats = NDArray[np.float64]

PRIOR = 0.5
"""Standard deviation of ln T expected before any photo: two networks in three have a T of 0.6–1.65."""
TEMPERATURES = (0.05, 20.0)

RECALL = 0.98
"""The share of meals that the gate must let pass: a meal turned away annoys more than a hat with a score."""
MOST_FOOD = 0.5
"""The gate's highest threshold: no photo is turned away that is likelier food than not; but see the next."""
MOST_FALSE_ALARMS = 0.05
"""Of other things at most one in twenty may pass, where that leaves RECALL of the meals."""
MOST_RISK = 0.05
"""Of the scores that are shown, at most one in twenty may be more than one point off."""
LEAST_COVERAGE = 0.7
"""The share of meals that must get a score at once: nutritionists cannot look at every other photo."""
FEWEST = 30
"""With fewer photos a threshold stays as it is: one of them would be worth over three points of recall."""

_STARS = np.arange(1, 6)
# What a threshold is rounded to. Values are brought onto these steps before a threshold is chosen, the way
# that changes no decision: a threshold on a step then does exactly what it promises.
_FOOD_STEPS = np.arange(1001) / 1000
_REVIEW_STEPS = np.arange(1, 201) / 100
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """What belongs into a model's manifest; numbers are rounded, thresholds and curves alike.

    Attributes:
        temperatures: by the name of the head.
        thresholds: ``food`` and ``review`` as chosen, the others as they were.
        curves: about 20 rows each that the thresholds were chosen on, the chosen one among them: ``gate``
            (threshold, recall, false alarms), ``coverage_risk`` (threshold, coverage, share of scores more
            than one point off), ``reliability`` (confidence in the likeliest class, accuracy, share). One
            that there are too few photos for is missing.
        notes: what could not be fitted, in words.
    """

    temperatures: Mapping[str, float]
    thresholds: Thresholds
    curves: Mapping[str, Curve]
    notes: tuple[str, ...]


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """The temperature of a softmax (Guo et al. 2017, arXiv:1706.04599), 0.05–20.

    Like the other two it is a maximum a posteriori estimate: it minimises the summed negative log-likelihood
    + (ln T)² / (2 · PRIOR²). Without the prior a dozen photos would send T to 0 if all of them are right, and
    to infinity if none is; 700 hardly feel it. For no photos it is 1.

    Args:
        logits: (N, C), undivided.
        truth: int (N,), 0…C-1.
    """
    logits = np.asarray(logits, np.float64)
    margins = logits - np.take_along_axis(logits, np.asarray(truth, np.intp)[:, None], axis=1)
    most = margins.max(axis=1, keepdims=True)
    return _most_probable(
        lambda sharpness: float(
            (sharpness * most[:, 0] + np.log(np.exp(sharpness * (margins - most)).sum(axis=1))).sum()
        )
    )


def fit_gate_temperature(logit: ArrayLike, is_food: ArrayLike) -> float:
    """The temperature of a sigmoid; see ``fit_temperature``.

    Args:
        logit: (N,), undivided.
        is_food: bool (N,), with both values among them: of one alone the surest gate seems the best.
    """
    wrong = np.where(np.asarray(is_food, np.bool_), -1, 1) * np.asarray(logit, np.float64)
    return _most_probable(lambda sharpness: float(np.logaddexp(0, sharpness * wrong).sum()))


def fit_score_temperature(logits: ArrayLike, scores: ArrayLike) -> float:
    """The temperature of a score head's cumulative logits; see ``fit_temperature``.

    Args:
        logits: (N, 4), "is the score above 1, 2, 3, 4?", undivided.
        scores: int (N,), 1–5.
    """
    logits, place = np.asarray(logits, np.float64), np.asarray(scores, np.intp)[:, None]
    ends = np.ones((len(logits), 1))
    bounds = np.concatenate([np.inf * ends, logits, -np.inf * ends], axis=1)
    upper = np.take_along_axis(bounds, place - 1, axis=1)
    lower = np.take_along_axis(bounds, place, axis=1)

    def loss(sharpness: float) -> float:
        a, b = sharpness * upper, sharpness * lower
        # σ(a) − σ(b) = σ(a) · σ(−b) · (1 − e^(b−a)), which does not cancel where both are near 0 or 1.
        between = -np.log(-np.expm1(np.minimum(b - a, -1e-9)))
        return float((np.logaddexp(0, -a) + np.logaddexp(0, b) + between).sum())

    return _most_probable(loss)


def gate_threshold(p_food: ArrayLike, is_food: ArrayLike, recall: float = RECALL) -> float:
    """The largest threshold, in steps of 0.001, that at least ``recall`` of these photos of food pass.

    A photo passes at the threshold itself, so photos that tie pass together and the recall may be higher
    than asked for. With fewer than 1 / (1 - recall) photos of food (50) none of them may be turned away.

    Args:
        p_food: (N,), P(food), 0–1.
        is_food: bool (N,), the truth. Photos of anything else are no matter here.
        recall: 0–1.

    Raises:
        ValueError: there is no photo of food.
    """
    curve = gate_curve(_down(p_food, _FOOD_STEPS), is_food)
    if not curve:
        raise ValueError("no photo of food to choose the gate's threshold on")
    return max(threshold for threshold, passing, _ in curve if passing >= recall - 1e-9)


def review_threshold(
    spread: ArrayLike, loss: ArrayLike, most_risk: float = MOST_RISK, least_coverage: float = LEAST_COVERAGE
) -> float:
    """The standard deviation of a score, in steps of 0.01, above which a nutritionist decides.

    Of the thresholds that leave at least ``least_coverage`` of the photos with a score, it is the largest
    whose risk, the mean loss of those, is at most ``most_risk``: as many photos as possible are answered at a
    price stated beforehand. If none is good enough, it is the one of least risk (of equals the largest).
    The bound on coverage holds in both cases, because a few lucky photos at the sure end prove nothing.

    Args:
        spread: (N,), standard deviations of the score distributions, 0–2 points.
        loss: (N,), at least 0; or bool, whether the score is more than one point off.
        most_risk: in the unit of ``loss``.
        least_coverage: 0–1.

    Raises:
        ValueError: there are no photos.
    """
    curve = coverage_risk(_up(spread, _REVIEW_STEPS), loss)
    if not curve:
        raise ValueError("no photo to choose the review threshold on")
    enough = [row for row in curve if row[1] >= least_coverage - 1e-9]
    good = [row for row in enough if row[2] <= most_risk + 1e-9]
    return good[-1][0] if good else min(enough, key=lambda row: (row[2], -row[0]))[0]


def stars_of_class(catalogue: Catalogue) -> NDArray[np.intp]:
    """The score of each class's food: int (C,), 1–5, or 0 for a class that is not food."""
    stars = np.zeros(catalogue.classes, np.intp)
    stars[catalogue.food_classes] = (catalogue.traits[:, :5] @ _STARS).astype(np.intp)[
        catalogue.food_of_class
    ]
    return stars


def calibrate(
    logits: ArrayLike,
    heads: Sequence[Head],
    catalogue: Catalogue,
    classes: ArrayLike,
    is_food: ArrayLike,
    scores: ArrayLike,
    current: Thresholds = Thresholds(),  # noqa: B008 - immutable
) -> Calibration:
    """Fit temperatures and choose thresholds on labelled photos.

    Args:
        logits: (N, sum of the heads' sizes), undivided by any temperature.
        heads: in the order of their logits: one of kind "classes", at most one "gate" and one "score". Their
            temperatures are where the search starts, and what its prior is centred on.
        catalogue: the meaning of the classes.
        classes: int (N,), the true class, or -1 for unlabelled.
        is_food: bool (N,), what the gate should say.
        scores: int (N,), a nutritionist's score, 1–5, or 0 for unknown. The truth for the review threshold is
            this score where there is one, else that of the true class's food. A score head's temperature is
            fitted on these scores alone: what it says is a nutritionist's view, not a table's.
        current: thresholds in force; one that there are fewer than FEWEST photos for stays.

    Raises:
        ValueError: the arrays do not fit each other or the heads.
    """
    logits = np.asarray(logits, np.float32)
    classes, scores = np.asarray(classes, np.intp), np.asarray(scores, np.intp)
    is_food = np.asarray(is_food, np.bool_)
    photos = len(logits)
    if not (len(classes) == len(is_food) == len(scores) == photos):
        raise ValueError(
            f"{photos} photos, {len(classes)} classes, {len(is_food)} is_food, {len(scores)} scores"
        )
    if logits.shape[1] != sum(head.size for head in heads):
        raise ValueError(f"{logits.shape[1]} logits, and heads of sizes {[head.size for head in heads]}")

    fitted, notes = _fit_heads(logits, heads, classes, is_food, scores)
    ends = np.cumsum([head.outputs for head in fitted])
    columns = np.split(probabilities(logits, fitted), ends[:-1], axis=1)
    found = {head.kind: column for head, column in zip(fitted, columns, strict=True)}
    evidence = _evidence(found, catalogue)
    gated = "gate" in found or len(catalogue.food_classes) < catalogue.classes
    food = _choose_food(evidence, is_food, current.food, gated=gated)
    stars = np.where(classes >= 0, stars_of_class(catalogue)[classes], 0)
    known_score = np.where(is_food, np.where(scores > 0, scores, stars), 0)
    review = _choose_review(evidence, known_score, replace(current, food=food.threshold))
    curves = {"gate": food.curve, "coverage_risk": review.curve}
    curves["reliability"] = _reliability(found["classes"], classes)
    return Calibration(
        temperatures={head.name: head.temperature for head in fitted},
        thresholds=replace(current, food=food.threshold, review=review.threshold),
        curves={name: _rounded(curve) for name, curve in curves.items() if curve},
        notes=(*notes, *food.notes, *review.notes),
    )


def _fit_heads(
    logits: NDArray[np.float32],
    heads: Sequence[Head],
    classes: NDArray[np.intp],
    is_food: NDArray[np.bool_],
    scores: NDArray[np.intp],
) -> tuple[list[Head], list[str]]:
    """The heads with their temperatures, and notes on those that hardly any photo speaks for."""
    both = bool(is_food.any() and not is_food.all())
    truths = {"classes": classes, "gate": is_food, "score": scores}
    usable = {"classes": classes >= 0, "gate": np.full(len(is_food), both), "score": scores > 0}
    fits: dict[Kind, Callable[[Any, Any], float]] = {
        "classes": fit_temperature,
        "gate": lambda logits, is_food: fit_gate_temperature(logits[:, 0], is_food),
        "score": fit_score_temperature,
    }
    parts = np.split(logits, np.cumsum([head.size for head in heads])[:-1], axis=1)
    fitted, notes = [], []
    for head, part in zip(heads, parts, strict=True):
        known = usable[head.kind]
        # The fit starts from the temperature a head came with, which stays where there is nothing to learn.
        change = fits[head.kind](part[known] / np.float32(head.temperature), truths[head.kind][known])
        temperature = round(head.temperature * change, _DIGITS)
        fitted.append(head.model_copy(update={"temperature": temperature}))
        if known.sum() < FEWEST:
            need = " (it takes food and anything else)" if head.kind == "gate" else ""
            notes.append(f"the temperature of {head.name!r} rests on {known.sum()} usable photos{need}")
    return fitted, notes


class _Choice(NamedTuple):
    threshold: float
    curve: Curve = ()
    notes: tuple[str, ...] = ()


def _choose_food(
    evidence: Sequence[Evidence], is_food: NDArray[np.bool_], current: float, *, gated: bool
) -> _Choice:
    """The gate's threshold: by recall, and no higher than MOST_FOOD unless false alarms ask for it."""
    foods, others = int(is_food.sum()), int((~is_food).sum())
    if not gated:
        return _Choice(current, (), ("with no gate and no class that is not food, every photo is food",))
    if foods < FEWEST:
        return _Choice(current, (), (f"food stays {current:g}: {foods} photos of food are too few",))
    p_food = _down([one.food_probability for one in evidence], _FOOD_STEPS)
    threshold = min(gate_threshold(p_food, is_food), MOST_FOOD)
    if others >= FEWEST:
        rows = gate_curve(p_food, is_food, at=[threshold])
        enough = [row for row in rows if row[0] >= threshold and row[1] >= RECALL - 1e-9]
        quiet = [row[0] for row in enough if row[2] <= MOST_FALSE_ALARMS + 1e-9]
        threshold = min(quiet, default=threshold)
    notes = []
    if threshold == 0:
        notes.append(f"food is 0: a gate that lets {RECALL:.0%} of the meals pass turns nothing away")
    if others < FEWEST:
        notes.append(
            f"food is chosen by recall alone: with {others} photos of anything else, how many of those pass "
            "is not known"
        )
    # Without other photos the curve would be of recall alone, with nothing to weigh it against.
    curve = gate_curve(p_food, is_food, at=[threshold]) if others else ()
    return _Choice(threshold, thin(curve, keep=[threshold]), tuple(notes))


def _choose_review(evidence: Sequence[Evidence], truth: NDArray[np.intp], current: Thresholds) -> _Choice:
    """The review threshold, on the photos whose true score is known (over 0) and that pass the gate."""
    spreads, off = [], []
    for one, true in zip(evidence, truth.tolist(), strict=True):
        if true and (answer := combine([one], current)).score_mean is not None:
            shares = np.array(answer.score_probabilities)
            spreads.append(math.sqrt(float(shares @ (_STARS - float(shares @ _STARS)) ** 2)))
            off.append(abs(math.floor(answer.score_mean + 0.5) - true) > 1)
    if len(spreads) < FEWEST:
        return _Choice(
            current.review, (), (f"review stays {current.review:g}: {len(spreads)} scores are too few",)
        )
    threshold = review_threshold(spreads, off)
    curve = coverage_risk(_up(spreads, _REVIEW_STEPS), off)
    _, coverage, risk = next(row for row in curve if row[0] == threshold)
    missed = (
        f"review misses its aim, at most {MOST_RISK:.0%} of the scores wrong and {LEAST_COVERAGE:.0%} of the "
        f"meals scored: it is {risk:.1%} and {coverage:.0%}"
    )
    return _Choice(threshold, thin(curve, keep=[threshold]), (missed,) if risk > MOST_RISK else ())


def _reliability(found: NDArray[np.float32], classes: NDArray[np.intp]) -> Curve:
    """How often the likeliest class is the true one, by its probability; empty for too few photos."""
    found, classes = found[classes >= 0], classes[classes >= 0]
    if len(classes) < FEWEST:
        return ()
    return reliability(found.max(axis=1), found.argmax(axis=1) == classes)


def _evidence(found: Mapping[Kind, NDArray[np.float32]], catalogue: Catalogue) -> list[Evidence]:
    """What the service reads from each photo's probabilities."""
    gate, score = found.get("gate"), found.get("score")
    return [
        read(
            classes,
            catalogue,
            None if gate is None else float(gate[photo, 0]),
            None if score is None else score[photo],
        )
        for photo, classes in enumerate(found["classes"])
    ]


def _most_probable(loss: Callable[[float], float]) -> float:
    """The T that minimises ``loss(1 / T)`` + (ln T)² / (2 · PRIOR²), to seven digits.

    The sum may have two minima where a loss is nearly flat, so every value is looked at coarsely, and the
    surroundings of the best ever more finely.
    """
    low, high = (math.log(limit) for limit in TEMPERATURES)
    best = 0.0
    for _ in range(8):
        grid = np.linspace(low, high, 17).tolist()
        place = int(np.argmin([loss(math.exp(-log)) + log**2 / (2 * PRIOR**2) for log in grid]))
        best = grid[place]
        low, high = grid[max(place - 1, 0)], grid[min(place + 1, 16)]
    return math.exp(best)


def _down(values: ArrayLike, steps: Floats) -> Floats:
    """Each value brought down onto the next of ``steps``."""
    return steps[np.searchsorted(steps, np.asarray(values, np.float64), side="right") - 1]


def _up(values: ArrayLike, steps: Floats) -> Floats:
    """Each value brought up onto the next of ``steps``, or down onto the last."""
    return steps[np.minimum(np.searchsorted(steps, np.asarray(values, np.float64)), len(steps) - 1)]


def _rounded(curve: Curve) -> Curve:
    return tuple((round(a, _DIGITS), round(b, _DIGITS), round(c, _DIGITS)) for a, b, c in curve)
