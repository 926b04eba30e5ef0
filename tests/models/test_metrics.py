import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.metrics import (
    ScoreFigures,
    area_under_risk,
    coverage_risk,
    expected_calibration_error,
    gate_curve,
    paired_difference,
    reliability,
    score_confusion,
    score_figures,
    thin,
    top_k,
    worst_confusions,
)

# A few values many times over: ties are where such measures go wrong.
UNIT = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))


def photos(*elements, least=1):
    """A list of photos, each with a value of every kind, as one array per kind."""
    return st.lists(st.tuples(*elements), min_size=least, max_size=40).map(
        lambda rows: [np.array(column) for column in zip(*rows, strict=True)]
    )


def shuffled(*columns):
    order = np.random.default_rng(len(columns[0])).permutation(len(columns[0]))
    return [column[order] for column in columns]


def test_top_k_counts_the_labelled_and_gives_no_credit_for_ties():
    probabilities = [[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [1, 0, 0]]
    truth = [0, 1, 0, 1, -1]
    assert [top_k(probabilities, truth, k) for k in (1, 2, 3)] == [0.25, 0.75, 1]


@given(hnp.arrays(np.float64, (6, 5), elements=UNIT), st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_top_k_rises_with_k_up_to_certainty(probabilities, truth):
    shares = [top_k(probabilities, truth, k) for k in range(1, 6)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_reliability_in_two_bins():
    rows = reliability([0.9, 0.2, 0.4, 1.0], [True, False, True, True], bins=2)
    assert rows == (pytest.approx((0.3, 0.5, 0.5)), pytest.approx((0.95, 1, 0.5)))
    assert expected_calibration_error([0.9, 0.2, 0.4, 1.0], [1, 0, 1, 1], bins=2) == pytest.approx(0.125)


@given(photos(UNIT, st.booleans()))
def test_reliability_loses_no_photo_and_asks_for_no_order(columns):
    confidence, correct = columns
    rows = np.array(reliability(confidence, correct))
    assert np.all(np.diff(rows[:, 0]) > 0)
    np.testing.assert_allclose(rows[:, 2].sum(), 1)
    np.testing.assert_allclose(rows[:, 0] @ rows[:, 2], confidence.mean(), atol=1e-12)
    np.testing.assert_allclose(rows[:, 1] @ rows[:, 2], correct.mean(), atol=1e-12)
    np.testing.assert_allclose(rows, reliability(*shuffled(confidence, correct)), atol=1e-12)
    gap = abs(confidence.mean() - correct.mean())
    assert gap - 1e-12 <= expected_calibration_error(confidence, correct) <= 1


def test_bins_hold_equally_many_photos_wherever_they_crowd():
    confidence = np.random.default_rng(0).random(1500) ** 0.01
    shares = [share for _, _, share in reliability(confidence, np.ones(1500))]
    assert shares == [pytest.approx(1 / 15)] * 15


def test_calibration_error_tells_the_calibrated_from_the_sure():
    draw = np.random.default_rng(1)
    confidence = draw.random(20_000)
    correct = draw.random(20_000) < confidence
    assert expected_calibration_error(confidence, correct) < 0.02
    assert expected_calibration_error(np.minimum(confidence + 0.2, 1), correct) > 0.15


def test_gate_curve_by_hand():
    curve = gate_curve([0.9, 0.6, 0.2, 0.6, 0.4, 0.1], [1, 1, 1, 0, 0, 0])
    assert curve == ((0.2, 1, 2 / 3), (0.6, 2 / 3, 1 / 3), (0.9, 1 / 3, 0))
    assert gate_curve([0.9, 0.6, 0.4], [1, 1, 0], at=[0.5])[0] == (0.5, 1, 0)


@given(photos(UNIT, st.booleans()), st.lists(UNIT, max_size=3))
def test_gate_curve_counts_what_passes_and_no_threshold_beats_it(columns, at):
    p_food, is_food = columns
    curve = gate_curve(p_food, is_food, at)
    foods, others = p_food[is_food], p_food[~is_food]
    assert bool(curve) == bool(len(foods))
    for threshold, recall, false_alarms in curve:
        assert recall == np.mean(foods >= threshold)
        if len(others):
            assert false_alarms == np.mean(others >= threshold)
        else:
            assert math.isnan(false_alarms)
    if curve and len(others):
        assert np.all(np.diff(curve, axis=0)[:, 0] > 0)
        assert np.all(np.diff(curve, axis=0)[:, 1:] <= 0)
        for threshold in [0, *p_food]:
            recall, alarms = np.mean(foods >= threshold), np.mean(others >= threshold)
            assert recall == 0 or any(row[1] >= recall and row[2] <= alarms for row in curve)


def test_coverage_and_risk_by_hand():
    curve = coverage_risk([0.1, 0.3, 0.3, 0.8], [0, 1, 0, 1])
    assert curve == ((0.1, 0.25, 0), (0.3, 0.75, pytest.approx(1 / 3)), (0.8, 1, 0.5))
    assert area_under_risk([0.1, 0.3, 0.3, 0.8], [0, 1, 0, 1]) == pytest.approx(0.5 / 3 + 0.25 * 0.5)
    # With no ties it is the mean of the risks of the surest 1, 2, 3, 4.
    assert area_under_risk([1, 2, 3, 4], [0, 0, 1, 1]) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


@given(photos(UNIT, st.integers(0, 4)))
def test_coverage_and_risk_are_those_of_the_photos_answered(columns):
    uncertainty, loss = columns
    curve = coverage_risk(uncertainty, loss)
    assert [row[0] for row in curve] == sorted(set(uncertainty.tolist()))
    for threshold, coverage, risk in curve:
        answered = uncertainty <= threshold
        assert (coverage, risk) == (pytest.approx(answered.mean()), pytest.approx(loss[answered].mean()))
    assert curve[-1][1:] == (1, pytest.approx(loss.mean()))
    area = area_under_risk(uncertainty, loss)
    assert area == pytest.approx(area_under_risk(*shuffled(uncertainty, loss)))
    best, worst = (np.argsort(np.argsort(loss * sign)) for sign in (1, -1))
    assert area_under_risk(best, loss) - 1e-9 <= area <= area_under_risk(worst, loss) + 1e-9
    assert area_under_risk(np.zeros(len(loss)), loss) == pytest.approx(loss.mean())


@given(photos(UNIT, st.booleans(), least=30), st.integers(2, 25))
def test_a_thinned_curve_stays_near_the_whole_one(columns, most):
    curve = coverage_risk(*columns)
    wanted = curve[len(curve) // 2]
    kept = thin(curve, most, keep=[wanted[0]])
    assert list(kept) == [row for row in curve if row in kept]
    assert {curve[0], curve[-1], wanted} <= set(kept)
    assert len(kept) <= most + 1
    ranges = np.where(np.ptp(curve, axis=0) > 0, np.ptp(curve, axis=0), 1)
    step = np.abs(np.diff(curve, axis=0) / ranges).sum() / (most - 1)
    for row in curve:
        assert min(np.abs((np.array(row) - other) / ranges).sum() for other in kept) <= step + 1e-9


def test_a_curve_of_food_alone_is_thinned_too():
    curve = gate_curve(np.linspace(0, 1, 500), np.ones(500))
    assert len(thin(curve)) == 20


def test_scores_are_compared_as_the_service_rounds_them():
    predicted, truth = [2.5, 2.4, 5, 1, 4], [3, 3, 1, 1, 0]
    assert score_figures(predicted, truth) == ScoreFigures(4, 0.5, 0.75, pytest.approx(5.1 / 4))
    confusion = score_confusion(predicted, truth)
    assert confusion.shape == (5, 5)
    assert confusion.sum() == 4
    assert [confusion[2, 2], confusion[2, 1], confusion[0, 4], confusion[0, 0]] == [1, 1, 1, 1]
    for wrong in (0.9, 5.1, math.nan):
        with pytest.raises(ValueError, match="1–5"):
            score_figures([wrong], [3])


@given(photos(st.integers(1, 5), st.integers(1, 5)))
def test_the_figures_follow_from_the_confusion(columns):
    confusion = score_confusion(*columns)
    count, exact, within_one, error = score_figures(*columns)
    off = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert count == confusion.sum()
    assert exact == pytest.approx(np.trace(confusion) / count)
    assert within_one == pytest.approx(confusion[off <= 1].sum() / count)
    assert error == pytest.approx((confusion * off).sum() / count)
    np.testing.assert_array_equal(score_confusion(*columns[::-1]), confusion.T)


def test_the_worst_confusions_are_those_that_move_scores():
    names, stars = ["salad", "steak", "cake", "pie", "plate"], [5, 3, 1, 1, 0]
    truth = [2, 2, 2, 2, 2, 0, 1, 1, 1, 4, 0, 0, -1]
    taken = [3, 3, 3, 3, 3, 2, 0, 0, 2, 0, 4, 0, 2]
    found = worst_confusions(truth, taken, stars, names, k=9)
    assert found == (
        ("steak", "salad", 2, 2, 4),
        ("salad", "cake", 1, -4, 4),
        ("steak", "cake", 1, -2, 2),
        ("cake", "pie", 5, 0, 0),
        ("plate", "salad", 1, 0, 0),
        ("salad", "plate", 1, 0, 0),
    )
    assert worst_confusions(truth, taken, stars, names, k=1) == found[:1]


def test_the_interval_holds_the_true_difference_19_times_in_20():
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        hard = draw.normal(0, 5, 60)  # what both models suffer from
        found = paired_difference(hard + draw.normal(0.3, 1, 60), hard, resamples=300)
        assert found.low <= found.mean <= found.high
        assert found.high - found.low < 1
        held += found.low <= 0.3 <= found.high
    assert 180 <= held <= 198


@given(photos(UNIT, UNIT, least=2))
def test_a_comparison_can_be_turned_round_and_repeated(columns):
    forth = paired_difference(*columns, resamples=50)
    assert forth == paired_difference(*columns, resamples=50)
    back = paired_difference(*columns[::-1], resamples=50)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low))
    assert paired_difference(columns[0], columns[0], resamples=50) == (0, 0, 0)


def test_of_nothing_a_mean_is_nan_and_a_table_is_empty():
    nothing = np.empty(0)
    assert math.isnan(top_k(np.empty((0, 3)), nothing, 1))
    assert math.isnan(top_k([[0.5, 0.5]], [-1], 1))
    assert math.isnan(expected_calibration_error(nothing, nothing))
    assert math.isnan(area_under_risk(nothing, nothing))
    assert (
        reliability(nothing, nothing) == gate_curve(nothing, nothing) == coverage_risk(nothing, nothing) == ()
    )
    assert gate_curve([0.5], [False]) == thin(()) == ()
    figures = score_figures([3], [0])
    assert figures.photos == 0
    assert all(map(math.isnan, figures[1:]))
    assert score_confusion(nothing, nothing).sum() == 0
    assert worst_confusions(nothing, nothing, [], [], 5) == ()
    assert all(map(math.isnan, paired_difference(nothing, nothing)))
    one = paired_difference([1], [0.5])
    assert one.mean == 0.5
    assert math.isnan(one.low)
