"""How good a model's answers are, as numbers: accuracy, calibration, the gate, review, scores, comparisons.

Pure functions of arrays, one entry per photo. Two rules hold for all: photos without a label (class -1,
score 0) are left out, and of nothing at all a mean is NaN and a table is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = tuple[float, float, float]
Curve = tuple[Row, ...]

BINS = 15
"""As many as Guo et al. 2017 (arXiv:1706.04599) and most who followed."""


class ScoreFigures(NamedTuple):
    """Scores against the truth: shares 0–1 that are equal and at most one point off; the mean error, 0–4."""

    photos: int
    exact: float
    within_one: float
    mean_absolute_error: float


class Confusion(NamedTuple):
    """``photos`` of the class ``truth`` were taken for ``predicted``.

    ``difference`` is how many stars that adds, -4…4; ``consequence`` is photos × its size.
    """

    truth: str
    predicted: str
    photos: int
    difference: int
    consequence: int


class Difference(NamedTuple):
    """A mean and the ends of its 95 % interval, which is NaN for fewer than two photos."""

    mean: float
    low: float
    high: float


def top_k(probabilities: ArrayLike, truth: ArrayLike, k: int) -> float:
    """The share of photos, 0–1, with the true class among the ``k`` likeliest; ties count against the model.

    Args:
        probabilities: (N, C), anything that ranks the classes.
        truth: int (N,), 0…C-1, or -1 for unlabelled.
        k: at least 1.
    """
    truth = np.asarray(truth, np.intp)
    known = truth >= 0
    found, truth = np.asarray(probabilities, np.float64)[known], truth[known]
    at_least = (found >= np.take_along_axis(found, truth[:, None], axis=1)).sum(axis=1)
    return _mean(at_least <= k)


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> Curve:
    """Rows (mean confidence, accuracy, share of the photos), by rising confidence.

    Bins hold about equally many photos rather than equal ranges of confidence (Nixon et al. 2019,
    arXiv:1904.01685): most confidences crowd near 1, and of the bins of equal width the rest would hold so
    few photos that their accuracy is chance. Equal confidences share a bin, so the photos' order is nothing.

    Args:
        confidence: (N,), the probability 0–1 given to the answer.
        correct: bool (N,), whether the answer was right.
        bins: at most this many rows.
    """
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, np.float64)
    place = np.searchsorted(np.sort(confidence), confidence) * bins // max(len(confidence), 1)
    counts = np.bincount(place, minlength=bins)
    used = counts > 0
    sums = [np.bincount(place, values, bins)[used] for values in (confidence, correct)]
    return _rows(sums[0] / counts[used], sums[1] / counts[used], counts[used] / max(len(confidence), 1))


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """The mean distance, 0–1, between confidence and accuracy over the bins of ``reliability``.

    Even of a perfectly calibrated model it is not 0: chance alone gives about 0.3 √(bins / photos) at
    middling confidence. Compare models on the same photos only.
    """
    rows = reliability(confidence, correct, bins)
    return math.fsum(share * abs(mean - accuracy) for mean, accuracy, share in rows) if rows else math.nan


def gate_curve(p_food: ArrayLike, is_food: ArrayLike, at: Sequence[float] = ()) -> Curve:
    """Rows (threshold, recall, false alarms), by rising threshold; both shares fall.

    A photo passes at ``p_food >= threshold``, as in the service. The thresholds are the values of the photos
    of food: any other one has the recall of the next higher of these, and no fewer false alarms.

    Args:
        p_food: (N,), P(food), 0–1.
        is_food: bool (N,), the truth.
        at: further thresholds to give a row.
    """
    p_food, is_food = np.asarray(p_food, np.float64), np.asarray(is_food, np.bool_)
    foods, others = np.sort(p_food[is_food]), np.sort(p_food[~is_food])
    if not len(foods):
        return ()
    thresholds = np.union1d(foods, np.asarray(at, np.float64))
    return _rows(thresholds, *(_passing(values, thresholds) for values in (foods, others)))


def coverage_risk(uncertainty: ArrayLike, loss: ArrayLike) -> Curve:
    """Rows (threshold, coverage, risk), by rising threshold (Geifman, El-Yaniv 2017, arXiv:1705.08500).

    An answer is given at ``uncertainty <= threshold``. Coverage is the share of photos that get one, and
    risk the mean loss of those.

    Args:
        uncertainty: (N,), any scale.
        loss: (N,), at least 0; bool for the share of wrong answers.
    """
    uncertainty = np.asarray(uncertainty, np.float64)
    order = np.argsort(uncertainty, kind="stable")
    thresholds, starts = np.unique(uncertainty[order], return_index=True)
    answered = np.append(starts[1:], len(order))[: len(thresholds)]
    losses = np.cumsum(np.asarray(loss, np.float64)[order])
    return _rows(thresholds, answered / max(len(order), 1), losses[answered - 1] / answered)


def area_under_risk(uncertainty: ArrayLike, loss: ArrayLike) -> float:
    """The mean risk over all coverages (AURC; Geifman et al. 2019, arXiv:1805.08206); lower is better.

    It judges the ranking by uncertainty as well as the answers. With no use in the ranking it is the mean
    loss; with the best one it is not 0 either, because full coverage has every error in it.
    """
    curve = coverage_risk(uncertainty, loss)
    before = [0.0, *(coverage for _, coverage, _ in curve)]
    areas = (risk * (coverage - last) for (_, coverage, risk), last in zip(curve, before, strict=False))
    return math.fsum(areas) if curve else math.nan


def thin(curve: Curve, most: int = 20, keep: Sequence[float] = ()) -> Curve:
    """At most ``most`` rows (2 or more) that stand for a whole curve, and those of the thresholds ``keep``.

    They are equally far apart along the curve, each column taken relative to its range: there are many where
    something changes, few where nothing does, and the first and the last row are among them.
    """
    if len(curve) <= most:
        return curve
    rows = np.nan_to_num(np.array(curve))
    ranges = np.ptp(rows, axis=0)
    steps = np.abs(np.diff(rows, axis=0)) / np.where(ranges > 0, ranges, 1)
    way = np.append(0.0, np.cumsum(steps.sum(axis=1)))
    places = set(np.searchsorted(way, np.linspace(0, way[-1], most)).tolist())
    return tuple(row for place, row in enumerate(curve) if place in places or row[0] in keep)


def score_figures(predicted: ArrayLike, truth: ArrayLike) -> ScoreFigures:
    """How far scores are from the truth.

    Args:
        predicted: (N,), scores, or means of score distributions, 1–5. For the two shares a mean is rounded
            half up, as the service does; the error is of the mean itself.
        truth: int (N,), 1–5, or 0 for unknown.

    Raises:
        ValueError: a prediction is not 1–5.
    """
    predicted, truth = _known_scores(predicted, truth)
    off = np.abs(_stars(predicted) - truth)
    return ScoreFigures(len(truth), _mean(off == 0), _mean(off <= 1), _mean(np.abs(predicted - truth)))


def score_confusion(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.intp]:
    """How often each score was given for each: int (5, 5), true scores down, predicted ones across.

    Takes what ``score_figures`` takes.
    """
    predicted, truth = _known_scores(predicted, truth)
    return np.bincount((truth - 1) * 5 + _stars(predicted) - 1, minlength=25).reshape(5, 5)


def worst_confusions(
    truth: ArrayLike, predicted: ArrayLike, stars_of_class: ArrayLike, names: Sequence[str], k: int
) -> tuple[Confusion, ...]:
    """The ``k`` confusions of classes that falsify scores the most, worst first.

    Args:
        truth: int (N,), the class or -1.
        predicted: int (N,), the likeliest class.
        stars_of_class: int (C,), 1–5, or 0 for a class that is not food: confusions with it are the gate's
            affair and have no consequence here.
        names: (C,), what the classes are called.
        k: at most this many; those without consequence come last, the most frequent first.
    """
    pairs = np.stack([np.asarray(truth, np.intp), np.asarray(predicted, np.intp)], axis=1)
    pairs = pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] != pairs[:, 1])]
    stars = np.asarray(stars_of_class, np.intp).tolist()
    found = []
    for (true, taken), count in zip(*(part.tolist() for part in _counted(pairs)), strict=True):
        more = stars[taken] - stars[true] if stars[taken] and stars[true] else 0
        found.append(Confusion(names[true], names[taken], count, more, count * abs(more)))
    found.sort(key=lambda one: (-one.consequence, -one.photos, one.truth, one.predicted))
    return tuple(found[:k])


def paired_difference(
    loss: ArrayLike, baseline: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Difference:
    """By how much one model's loss differs from another's on the same photos; below 0 it is the better.

    The interval is a percentile bootstrap over the photos (Efron 1979). Resampling the photos' own
    differences keeps out what makes some photos harder than others for both models.

    Args:
        loss: (N,), any loss of each photo; bool for errors.
        baseline: (N,), that of the other model, in the same order.
        resamples: how many times N photos are drawn.
        seed: of the drawing.
    """
    difference = np.asarray(loss, np.float64) - np.asarray(baseline, np.float64)
    photos = len(difference)
    if photos < 2:
        return Difference(_mean(difference), math.nan, math.nan)
    draw = np.random.default_rng(seed)
    means = [difference[draw.integers(photos, size=photos)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Difference(_mean(difference), low, high)


def _mean(values: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _rows(*columns: NDArray[np.float64]) -> Curve:
    return tuple(zip(*(column.tolist() for column in columns), strict=True))


def _passing(values: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of sorted values that reach each threshold."""
    if not len(values):
        return np.full(len(thresholds), np.nan)
    return (len(values) - np.searchsorted(values, thresholds)) / len(values)


def _known_scores(predicted: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    truth = np.asarray(truth, np.intp)
    return np.asarray(predicted, np.float64)[truth > 0], truth[truth > 0]


def _stars(predicted: NDArray[np.float64]) -> NDArray[np.intp]:
    if not np.all((predicted >= 1) & (predicted <= 5)):
        raise ValueError("scores must be 1–5")
    return np.floor(predicted + 0.5).astype(np.intp)


def _counted(pairs: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The distinct rows and how often each is there."""
    return np.unique(pairs, axis=0, return_counts=True)
