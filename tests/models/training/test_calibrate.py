import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import models
from app.food.assessment import Catalogue, Thresholds, combine, read
from app.food.foods import Label, load_foods
from models.heads import Head, probabilities
from models.manifest import Manifest, load_manifest
from models.training.calibrate import (
    FEWEST,
    LEAST_COVERAGE,
    MOST_FALSE_ALARMS,
    MOST_FOOD,
    MOST_RISK,
    RECALL,
    calibrate,
    fit_gate_temperature,
    fit_score_temperature,
    fit_temperature,
    gate_threshold,
    review_threshold,
    stars_of_class,
)

FOODS = load_foods(Path(*models.__path__) / "tables" / "foods.csv")
# A food of each score, 1 to 5, so that a class is a score less one; and a class that is no food.
STARS = [food.id for _, food in sorted({food.stars: food for food in FOODS.values()}.items())]
CATALOGUE = Catalogue([*(Label(n, name, FOODS[name]) for n, name in enumerate(STARS)), Label(5, "cat", None)])
CLASSES = Head(name="labels", kind="classes", size=6)
GATE = Head(name="food", kind="gate", size=1)
SCORE = Head(name="stars", kind="score", size=4)
CURRENT = Thresholds()
PLANTED = st.floats(0.4, 3)
SEEDS = st.integers(0, 2**32 - 1)


def drawn(logits, head, draw):
    """True labels that happen as often as the logits say."""
    shares = probabilities(np.asarray(logits, np.float32), [head]).astype(float)
    return (draw.random((len(shares), 1)) > np.cumsum(shares, axis=1)[:, :-1]).sum(axis=1)


def cumulative(draw, photos):
    """Logits of a score head: a place on a line, minus four cuts."""
    return draw.normal(0, 3, (photos, 1)) - [-3, -1, 1, 3]


@settings(max_examples=25)
@given(PLANTED, SEEDS)
def test_the_temperature_of_a_softmax_is_found(planted, seed):
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (4000, 6))
    assert fit_temperature(logits * planted, drawn(logits, CLASSES, draw)) == pytest.approx(planted, rel=0.15)


@settings(max_examples=25)
@given(PLANTED, SEEDS)
def test_the_temperature_of_a_gate_is_found(planted, seed):
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, 6000)
    is_food = draw.random(6000) < probabilities(logits[:, None].astype(np.float32), [GATE])[:, 0]
    assert fit_gate_temperature(logits * planted, is_food) == pytest.approx(planted, rel=0.15)


@settings(max_examples=25)
@given(PLANTED, SEEDS)
def test_the_temperature_of_a_score_head_is_found(planted, seed):
    draw = np.random.default_rng(seed)
    logits = cumulative(draw, 4000)
    scores = 1 + drawn(logits, SCORE, draw)
    assert fit_score_temperature(logits * planted, scores) == pytest.approx(planted, rel=0.15)


@pytest.mark.parametrize("head", [CLASSES, SCORE])
def test_the_temperature_is_the_most_probable_one(head):
    draw = np.random.default_rng(3)
    logits = 2.5 * (draw.normal(0, 2, (50, 6)) if head is CLASSES else cumulative(draw, 50))
    truth = drawn(logits / 2.5, head, draw)
    fit = fit_temperature if head is CLASSES else fit_score_temperature

    def cost(temperature):
        found = probabilities(
            logits.astype(np.float32), [head.model_copy(update={"temperature": temperature})]
        )
        likelihood = np.log(found[np.arange(50), truth].astype(float)).sum()
        return np.log(temperature) ** 2 / (2 * 0.5**2) - likelihood

    best = fit(logits, truth if head is CLASSES else truth + 1)
    everywhere = np.geomspace(0.5, 8, 1000)
    assert best == pytest.approx(everywhere[np.argmin([cost(t) for t in everywhere])], rel=0.01)


def test_a_dozen_photos_cannot_run_away_with_the_temperature():
    right, classes = np.eye(12) * 10, np.arange(12)
    assert 0.3 < fit_temperature(right, classes) < 1
    assert 1 < fit_temperature(right, (classes + 1) % 12) < 15
    assert 0.3 < fit_gate_temperature(np.full(12, 5.0), np.ones(12)) < 1
    assert 1 < fit_gate_temperature(np.full(12, 5.0), np.zeros(12)) < 15
    assert fit_temperature(np.empty((0, 6)), []) == 1
    assert fit_gate_temperature([], []) == 1
    assert fit_score_temperature(np.empty((0, 4)), []) == 1


@given(
    hnp.arrays(np.float64, (20, 6), elements=st.floats(-50, 50)),
    hnp.arrays(np.intp, 20, elements=st.integers(0, 5)),
    hnp.arrays(np.float64, (20, 1), elements=st.floats(-50, 50)),
)
def test_a_softmax_is_blind_to_what_all_classes_share_and_to_the_order(logits, truth, shared):
    temperature = fit_temperature(logits, truth)
    assert 0.05 <= temperature <= 20
    assert fit_temperature(logits + shared, truth) == pytest.approx(temperature, rel=1e-4)
    assert fit_temperature(logits[::-1, ::-1], 5 - truth[::-1]) == pytest.approx(temperature, rel=1e-4)


@given(hnp.arrays(np.float64, 20, elements=st.floats(-50, 50)), SEEDS)
def test_yes_and_no_and_up_and_down_are_alike(logits, seed):
    draw = np.random.default_rng(seed)
    is_food = draw.random(20) < 0.5
    assert fit_gate_temperature(logits, is_food) == pytest.approx(fit_gate_temperature(-logits, ~is_food))
    cuts, scores = logits[:, None] - [-3, -1, 1, 3], draw.integers(1, 6, 20)
    temperature = fit_score_temperature(cuts, scores)
    assert 0.05 <= temperature <= 20
    assert fit_score_temperature(-cuts[:, ::-1], 6 - scores) == pytest.approx(temperature, rel=1e-4)


def test_cuts_that_cross_do_no_harm():
    assert 0.05 <= fit_score_temperature([[1, 2, 0, 0], [0, 0, 0, 0]], [2, 3]) <= 20


@given(
    st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.1, 0.5, 0.9])), min_size=1, max_size=80),
    st.sampled_from([0.5, 0.9, 0.98, 1]),
)
def test_the_gate_keeps_its_recall_and_no_higher_step_does(p_food, recall):
    p_food = np.array(p_food)
    threshold = gate_threshold(p_food, np.ones(len(p_food)), recall)
    assert threshold == round(threshold, 3)
    assert np.mean(p_food >= threshold) >= recall
    assert np.mean(p_food >= threshold + 0.001) < recall
    assert gate_threshold([*p_food, 0.0, 1.0], [True] * len(p_food) + [False] * 2, recall) == threshold


def test_the_gate_by_hand():
    assert gate_threshold(np.arange(1, 101) / 100, np.ones(100)) == 0.03
    assert gate_threshold(np.arange(1, 50) / 100, np.ones(49)) == 0.01  # one of 49 is more than 2 %
    with pytest.raises(ValueError, match="no photo of food"):
        gate_threshold([0.3], [False])


@given(
    st.lists(st.tuples(st.floats(0, 2), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([0, 0.1, 0.5]),
    st.sampled_from([0, 0.3, 0.7, 1]),
)
def test_review_answers_most_at_the_risk_it_may_take(photos, most_risk, least_coverage):
    spread, off = map(np.array, zip(*photos, strict=True))
    threshold = review_threshold(spread, off, most_risk, least_coverage)
    assert threshold == round(threshold, 2)
    assert 0 < threshold <= 2

    def outcome(at):
        return np.mean(spread <= at), off[spread <= at].mean() if np.any(spread <= at) else 0

    coverage, risk = outcome(threshold)
    others = [outcome(step / 100) for step in range(1, 201)]
    allowed = [one for one in others if one[0] >= least_coverage and one[0] > 0]
    assert coverage >= least_coverage
    if good := [one for one in allowed if one[1] <= most_risk]:
        assert risk <= most_risk
        assert coverage == max(one[0] for one in good)
    else:
        assert (risk, -coverage) == min((one[1], -one[0]) for one in allowed)


def test_review_by_hand():
    spread = np.arange(1, 11) / 10
    assert review_threshold(spread, spread > 0.9) == 0.9
    assert review_threshold(spread, spread > 2) == 1
    # Only the two surest are right: that is no service, and of seven or more, seven hold the fewest errors.
    assert review_threshold(spread, spread > 0.25) == 0.7
    with pytest.raises(ValueError, match="no photo"):
        review_threshold([], [])


def test_stars_of_the_classes():
    assert stars_of_class(CATALOGUE).tolist() == [1, 2, 3, 4, 5, 0]


@dataclass(frozen=True)
class Labelled:
    """Photos with labels, and what a model's heads said of them."""

    logits: np.ndarray
    heads: tuple[Head, ...]
    classes: np.ndarray
    is_food: np.ndarray
    scores: np.ndarray

    def only(self, places):
        return replace(
            self,
            logits=self.logits[places],
            classes=self.classes[places],
            is_food=self.is_food[places],
            scores=self.scores[places],
        )

    def calibrate(self, current=CURRENT):
        return calibrate(self.logits, self.heads, CATALOGUE, self.classes, self.is_food, self.scores, current)

    def answers(self, found):
        """What the service answers with the temperatures and thresholds that were found."""
        heads = [
            head.model_copy(update={"temperature": found.temperatures[head.name]}) for head in self.heads
        ]
        rows = probabilities(self.logits.astype(np.float32), heads)
        starts = np.cumsum([0, *(head.outputs for head in heads[:-1])])
        place = dict(zip([head.kind for head in heads], starts, strict=True))
        for row in rows:
            gate = float(row[place["gate"]]) if "gate" in place else None
            stars = row[place["score"] :][:5] if "score" in place else None
            seen = read(row[place["classes"] :][:6], CATALOGUE, gate, stars)
            yield combine([seen], found.thresholds)


def labelled(*heads, photos=1500, sharpness=4.0, seed=0):
    """Photos whose labels happen as often as the logits say, once those are divided by 1.8, 0.6 and 1.4."""
    draw = np.random.default_rng(seed)
    classes = draw.normal(0, sharpness, (photos, 6))
    truth = drawn(classes, CLASSES, draw)
    is_food = truth < 5
    # Two bells of deviation 1 at ±1.5 have this log odds between them.
    gate = 3 * draw.normal(np.where(is_food, 1.5, -1.5)) + np.log(is_food.mean() / (1 - is_food.mean()))
    stars = cumulative(draw, photos)
    scores = 1 + drawn(stars, SCORE, draw)
    said = {"classes": 1.8 * classes, "gate": 0.6 * gate[:, None], "score": 1.4 * stars}
    return Labelled(
        np.concatenate([said[head.kind] for head in heads], axis=1),
        heads,
        truth,
        is_food,
        np.where(is_food, scores, 0) if SCORE in heads else np.zeros(photos, int),
    )


@pytest.mark.parametrize("heads", [(CLASSES, GATE), (SCORE, GATE, CLASSES), (CLASSES,)])
def test_the_service_keeps_what_the_calibration_promises(heads):
    photos = labelled(*heads)
    found = photos.calibrate(Thresholds(dish=0.2, dishes=3))
    planted = {CLASSES.name: 1.8, GATE.name: 0.6, SCORE.name: 1.4}
    assert found.temperatures == pytest.approx({head.name: planted[head.name] for head in heads}, rel=0.12)
    assert (found.thresholds.dish, found.thresholds.dishes) == (0.2, 3)
    assert found.notes == ()

    answers = list(photos.answers(found))
    passed = np.array([answer.status != "not_food" for answer in answers])
    recall, false_alarms = passed[photos.is_food].mean(), passed[~photos.is_food].mean()
    assert recall >= RECALL
    assert rounded(found.thresholds.food, recall, false_alarms) in found.curves["gate"]

    meals = photos.is_food & passed
    truth = np.where(photos.scores > 0, photos.scores, photos.classes + 1)
    score = np.array([answer.score or 0 for answer in answers])
    scored = meals & (score > 0)
    coverage, risk = scored.sum() / meals.sum(), (abs(score - truth) > 1)[scored].mean()
    assert coverage >= LEAST_COVERAGE
    assert risk <= MOST_RISK
    assert rounded(found.thresholds.review, coverage, risk) in found.curves["coverage_risk"]


def rounded(*row):
    return tuple(round(float(value), 4) for value in row)


def test_what_is_found_fits_into_a_manifest():
    found = labelled(CLASSES, GATE, SCORE).calibrate()
    assert set(found.curves) == {"gate", "coverage_risk", "reliability"}
    for curve in found.curves.values():
        assert 10 <= len(curve) <= 21
        assert all(rounded(*row) == row for row in curve)
        assert [*curve] == sorted(curve)
    for name in ("gate", "coverage_risk"):
        changes = np.diff(found.curves[name], axis=0)
        assert np.all(changes[:, 1] * (-1 if name == "gate" else 1) >= 0)
    chosen = found.thresholds.food, found.thresholds.review
    assert rounded(*chosen) == chosen
    manifest = load_manifest("imagenet-lite0")
    changed = {"curves": found.curves, "thresholds": asdict(found.thresholds)}
    parsed = Manifest.model_validate_json(json.dumps(manifest.model_dump() | changed), strict=True)
    assert (parsed.curves, parsed.thresholds) == (found.curves, found.thresholds)
    # Calibrated by construction: what the model believes of itself is what happens.
    assert all(abs(confidence - right) < 0.1 for confidence, right, _ in found.curves["reliability"])


def test_the_same_photos_in_any_order_give_the_same():
    photos = labelled(CLASSES, GATE)
    order = np.random.default_rng(1).permutation(len(photos.logits))
    assert photos.only(order).calibrate() == photos.calibrate()


def test_a_model_that_guesses_says_that_it_misses_its_aim():
    photos = labelled(CLASSES, GATE, sharpness=0.5)
    found = photos.calibrate()
    threshold = found.thresholds.review
    _, coverage, risk = next(row for row in found.curves["coverage_risk"] if row[0] == threshold)
    assert risk > MOST_RISK
    assert coverage >= LEAST_COVERAGE
    assert [note for note in found.notes if "review misses its aim" in note and f"{risk:.1%}" in note]


def test_without_other_photos_the_gate_goes_by_recall_alone():
    photos = labelled(CLASSES, GATE)
    found = photos.only(photos.is_food).calibrate()
    assert found.temperatures[GATE.name] == 1
    assert "gate" not in found.curves
    assert 0 < found.thresholds.food <= MOST_FOOD
    assert (
        len([note for note in found.notes if "'food' rests on 0" in note or "by recall alone" in note]) == 2
    )


def test_a_sure_gate_still_lets_everything_pass_that_is_likelier_food():
    photos = labelled(CLASSES, GATE)
    logits = photos.logits.copy()
    logits[:, 6] = np.where(photos.is_food, 9, -9)
    found = replace(photos, logits=logits).calibrate()
    assert found.thresholds.food == MOST_FOOD
    assert (MOST_FOOD, 1, 0) in found.curves["gate"]


@pytest.mark.parametrize(("meals", "raised"), [(6.0, True), (1.0, False)])
def test_a_gate_that_lets_too_much_else_pass_is_raised_where_meals_can_bear_it(meals, raised):
    photos = labelled(CLASSES, GATE)
    logits = photos.logits.copy()
    logits[:, 6] = np.where(photos.is_food, meals, -3)
    logits[np.flatnonzero(~photos.is_food)[::5], 6] = 2.0  # one in five of the others
    found = replace(photos, logits=logits).calibrate()
    threshold, recall, alarms = next(r for r in found.curves["gate"] if r[0] == found.thresholds.food)
    assert (threshold > MOST_FOOD, recall) == (raised, 1)
    assert (alarms <= MOST_FALSE_ALARMS) == raised


def test_with_no_gate_and_nothing_but_food_every_photo_passes():
    photos = labelled(CLASSES)
    meals = photos.only(photos.is_food)
    catalogue = Catalogue([Label(n, name, FOODS[name]) for n, name in enumerate(STARS)])
    head = CLASSES.model_copy(update={"size": 5})
    found = calibrate(meals.logits[:, :5], [head], catalogue, meals.classes, meals.is_food, meals.scores)
    assert found.thresholds.food == Thresholds().food
    assert any("every photo is food" in note for note in found.notes)
    assert set(found.curves) == {"coverage_risk", "reliability"}


@pytest.mark.parametrize("photos", [0, 1, FEWEST - 1])
def test_too_few_photos_leave_the_thresholds_and_say_so(photos):
    few = labelled(CLASSES, GATE, SCORE).only(slice(photos))
    current = Thresholds(food=0.3, review=0.9)
    found = few.calibrate(current)
    assert found.thresholds == current
    assert found.curves == {}
    assert len(found.notes) == 5
    assert all(0.2 < temperature < 5 for temperature in found.temperatures.values())


def test_photos_without_a_class_teach_the_gate_alone():
    photos = labelled(CLASSES, GATE)
    nameless = replace(photos, classes=np.full(len(photos.classes), -1))
    found = nameless.calibrate()
    assert found.temperatures == {CLASSES.name: 1, GATE.name: photos.calibrate().temperatures[GATE.name]}
    assert found.thresholds.review == Thresholds().review
    assert set(found.curves) == {"gate"}


def test_a_nutritionist_counts_for_more_than_the_table():
    photos = labelled(CLASSES, GATE)
    wrong = replace(photos, scores=np.where(photos.is_food, 6 - (photos.classes + 1), 0))
    assert any("misses" in note for note in wrong.calibrate().notes)
    assert wrong.calibrate().temperatures == photos.calibrate().temperatures
    assert replace(photos, scores=np.where(photos.is_food, 0, 3)).calibrate() == photos.calibrate()


def test_labels_that_do_not_fit_are_refused():
    photos = labelled(CLASSES, GATE, photos=40)
    with pytest.raises(ValueError, match="7 logits"):
        replace(photos, heads=(CLASSES,)).calibrate()
    with pytest.raises(ValueError, match="39 is_food"):
        replace(photos, is_food=photos.is_food[1:]).calibrate()
