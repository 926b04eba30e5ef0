"""From what is true of photos and what a model answered to how good the model is. Pure.

Models are compared by food, not by class: that is what they have in common when their classes differ. A photo
of a food that a model does not know counts against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.food.foods import Food
from models.evaluation.answers import Answers, Figures, Floats
from models.evaluation.truth import Truth
from models.metrics import (
    Confusion,
    Curve,
    coverage_risk,
    expected_calibration_error,
    gate_curve,
    reliability,
    score_confusion,
    score_figures,
    thin,
    top_k,
    worst_confusions,
)
from models.training.dataset import class_name

CURVE_ROWS = 100
WORST = 15

_STARS = np.arange(1, 6, dtype=np.float64)


def score_means(answers: Answers) -> Floats:
    """The mean of each score distribution, (N,), 1–5."""
    return np.clip(answers.scores @ _STARS, 1, 5)


def score_truth(photos: Sequence[Truth]) -> NDArray[np.intp]:
    """The true scores, (N,), 1–5, or 0 where none is known."""
    return np.array([photo.score for photo in photos], np.intp)


def food_places(photos: Sequence[Truth], foods: Sequence[Food]) -> NDArray[np.intp]:
    """Where each photo's food is among ``foods``, (N,); -1 where it is not, or is not known."""
    place = {food.id: index for index, food in enumerate(foods)}
    return np.array([place.get(photo.food.id, -1) if photo.food else -1 for photo in photos], np.intp)


def food_hits(photos: Sequence[Truth], answers: Answers) -> Floats:
    """1 where the likeliest food is the true one, else 0; NaN where the food is not known; (N,)."""
    truth = food_places(photos, answers.foods)
    hits = (answers.shares.argmax(axis=1) == truth).astype(np.float64)
    return np.where([photo.food is not None for photo in photos], hits, np.nan)


def figures(photos: Sequence[Truth], answers: Answers) -> Figures:
    """Every figure of one model on these photos; shares are 0–1, None where there is nothing to measure.

    - *food*: the likeliest food against the true one, whatever the gate says, on photos whose food is known;
      *knows the food* is the share of those that the model has a class for at all.
    - *class*: the same of classes, on photos whose class is one of the model's own.
    - *score*: the mean of the distribution against the true score, on all photos whose score is known,
      whatever the gate and the review threshold say; *answered* is the share of them that the service would
      show a score for, and what follows it holds for those alone. *error* is mean, absolute, in points.
    - *gate*: at the manifest's threshold. *to review* is the share of photos of food that it lets pass.
    - *calibration error*: see ``metrics.expected_calibration_error``, of the likeliest food's share and of
      the probability of the score that would be shown.
    """
    is_food = np.array([photo.is_food for photo in photos], np.bool_)
    passed = is_food & answers.passed
    found: Figures = {
        "photos": len(photos),
        **_recognition(photos, answers),
        **_scores(photos, answers),
        "gate recall": _share(answers.passed[is_food]),
        "false alarms": _share(answers.passed[~is_food]),
        "to review": _share(~answers.scored[passed]),
    }
    return {name: rounded(value) for name, value in found.items()}


def class_figures(photos: Sequence[Truth], answers: Answers) -> dict[str, Figures]:
    """A few figures for each class of the data, in alphabetical order."""
    classes: dict[str, list[int]] = {}
    for place, photo in enumerate(photos):
        if photo.food is not None and photo.label:
            classes.setdefault(photo.label, []).append(place)
    found: dict[str, Figures] = {}
    for name, places in sorted(classes.items()):
        all_of_them = figures([photos[place] for place in places], answers[np.array(places)])
        kept = ("photos", "food top-1", "food top-5", "score within one", "score error", "gate recall")
        found[name] = {key: all_of_them[key] for key in kept}
    return found


def group_figures(photos: Sequence[Truth], answers: Answers) -> dict[str, Figures]:
    """Every figure for each group of the data, in alphabetical order."""
    groups = np.array([photo.group for photo in photos])
    return {
        name: figures([photo for photo in photos if photo.group == name], answers[groups == name])
        for name in sorted({photo.group for photo in photos})
    }


def curves(photos: Sequence[Truth], answers: Answers) -> dict[str, Curve]:
    """The rows behind a report's pictures, about CURVE_ROWS of each at most; empty for too few photos.

    ``gate``: threshold, recall, false alarms. ``coverage_risk``: the score's standard deviation, coverage,
    share of scores off by more than one, on photos whose score is known. ``reliability``: share of the
    likeliest food, accuracy, share of the photos; ``score_reliability``: the same of the score.
    """
    is_food = [photo.is_food for photo in photos]
    truth = score_truth(photos)
    known = truth > 0
    means = score_means(answers)
    spread = np.sqrt(np.maximum((answers.scores * (_STARS - means[:, None]) ** 2).sum(axis=1), 0))
    off = np.abs(_shown(means) - truth) > 1
    found = {
        "gate": gate_curve(answers.p_food, is_food) if not all(is_food) else (),
        "coverage_risk": coverage_risk(spread[known], off[known]),
        "reliability": reliability(*_food_confidence(photos, answers)),
        "score_reliability": reliability(*_score_confidence(photos, answers)),
    }
    return {
        name: tuple((round(a, 4), round(b, 4), round(c, 4)) for a, b, c in thin(curve, CURVE_ROWS))
        for name, curve in found.items()
    }


def confusion_of_scores(photos: Sequence[Truth], answers: Answers) -> list[list[int]]:
    """How often each score was given for each, five rows of true scores, whatever the review threshold."""
    counts = score_confusion(score_means(answers), score_truth(photos))
    return [[int(count) for count in row] for row in counts]


def confusions_of_foods(photos: Sequence[Truth], answers: Answers) -> tuple[Confusion, ...]:
    """The confusions of foods that falsify the score most."""
    foods = {food.id: food for food in (*answers.foods, *(photo.food for photo in photos if photo.food))}
    listed = [*foods.values()]
    return worst_confusions(
        food_places(photos, listed),
        answers.shares.argmax(axis=1),  # the model's own foods come first in the list
        [food.stars for food in listed],
        [food.name for food in listed],
        WORST,
    )


def _recognition(photos: Sequence[Truth], answers: Answers) -> Figures:
    labels = {class_name(name): place for place, name in enumerate(answers.names)}
    classes = np.array([labels.get(photo.label or "", -1) for photo in photos], np.intp)
    foods = food_places(photos, answers.foods)
    named = np.array([photo.food is not None for photo in photos], np.bool_)
    knows = _share(foods[named] >= 0)
    return {
        "photos of a known food": int(named.sum()),
        "food top-1": _times(top_k(answers.shares, foods, 1), knows),
        "food top-5": _times(top_k(answers.shares, foods, 5), knows),
        "knows the food": knows,
        "photos of its classes": int((classes >= 0).sum()),
        "class top-1": top_k(answers.classes, classes, 1),
        "class top-5": top_k(answers.classes, classes, 5),
        "calibration error of the food": expected_calibration_error(*_food_confidence(photos, answers)),
    }


def _scores(photos: Sequence[Truth], answers: Answers) -> Figures:
    truth, means = score_truth(photos), score_means(answers)
    everything = score_figures(means, truth)
    shown = score_figures(means[answers.scored], truth[answers.scored])
    return {
        "photos of a known score": everything.photos,
        "score exact": everything.exact,
        "score within one": everything.within_one,
        "score error": everything.mean_absolute_error,
        "answered": shown.photos / everything.photos if everything.photos else None,
        "answered exact": shown.exact,
        "answered within one": shown.within_one,
        "answered error": shown.mean_absolute_error,
        "calibration error of the score": expected_calibration_error(*_score_confidence(photos, answers)),
    }


def _food_confidence(photos: Sequence[Truth], answers: Answers) -> tuple[Floats, NDArray[np.bool_]]:
    hits = food_hits(photos, answers)
    known = ~np.isnan(hits)
    return answers.shares.max(axis=1)[known], hits[known] == 1


def _score_confidence(photos: Sequence[Truth], answers: Answers) -> tuple[Floats, NDArray[np.bool_]]:
    truth, shown = score_truth(photos), _shown(score_means(answers))
    known = truth > 0
    confidence = np.take_along_axis(answers.scores, shown[:, None] - 1, axis=1)[:, 0]
    return confidence[known], shown[known] == truth[known]


def _shown(means: Floats) -> NDArray[np.intp]:
    """Rounded half up, as the service does."""
    return np.floor(means + 0.5).astype(np.intp)


def _share(hits: NDArray[np.bool_]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _times(share: float, of: float | None) -> float | None:
    """A share of a share; nothing of nothing is 0, unless there was nothing to begin with."""
    return None if of is None else 0.0 if math.isnan(share) else share * of


def rounded(value: float | int | None) -> float | int | None:
    """To four digits after the point, for people and JSON; None for what is not a number."""
    if value is None or isinstance(value, int):
        return value
    return None if math.isnan(value) else round(value, 4)
