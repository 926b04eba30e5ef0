"""From class probabilities to an answer: the sums, the gate, the review, and several models at once."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import models
from app.food.assessment import Catalogue, Thresholds, assess, combine, read
from app.food.foods import Label, load_foods, load_labels

TABLES = Path(*models.__path__) / "tables"
FOODS = load_foods(TABLES / "foods.csv")
IMAGENET = load_labels(TABLES / "imagenet.csv", FOODS)
IMAGENET_CATALOGUE = Catalogue(IMAGENET)
# A small model: foods that score 5, 2 and 1, one of them under two labels, and one class that is no food.
LABELS = (
    Label(0, "street", None),
    Label(1, "broccoli", FOODS["broccoli"]),
    Label(2, "pizza", FOODS["pizza"]),
    Label(3, "fudge", FOODS["chocolate-sauce"]),
    Label(4, "pizza slice", FOODS["pizza"]),
)
CATALOGUE = Catalogue(LABELS)
ANYTHING = Thresholds(food=0, review=2, dish=1e-6)


def softmaxes(classes):
    return hnp.arrays(np.float64, classes, elements=st.floats(0, 1)).map(
        lambda weights: ((weights + 1e-3) / (weights + 1e-3).sum()).astype(np.float32)
    )


def test_the_small_model_is_what_the_tests_say():
    assert [label.food.stars for label in LABELS if label.food] == [5, 2, 1, 2]


def test_a_photo_is_scored():
    answer = assess([0.05, 0.1, 0.5, 0.05, 0.3], CATALOGUE, Thresholds())
    assert answer.status == "scored"
    assert answer.food_probability == pytest.approx(0.95)
    assert answer.score_probabilities == pytest.approx((0.05 / 0.95, 0.8 / 0.95, 0, 0, 0.1 / 0.95))
    assert answer.score_mean == pytest.approx((0.05 + 1.6 + 0.5) / 0.95)
    assert answer.score == 2
    assert [name for name, _ in answer.dishes] == ["pizza", "broccoli", "chocolate sauce"]
    assert [p for _, p in answer.dishes] == pytest.approx([0.8, 0.1, 0.05])
    assert answer.group == "fast-food"
    assert answer.flags == FOODS["pizza"].flags
    assert answer.contains == {"dairy", "gluten"}


def test_below_the_gate_there_is_nothing_but_the_probability():
    answer = assess([0.6, 0.4, 0, 0, 0], CATALOGUE, Thresholds(food=0.41))
    assert answer.status == "not_food"
    assert answer.food_probability == pytest.approx(0.4)
    assert (answer.score, answer.score_mean, answer.score_probabilities, answer.group) == (None,) * 4
    assert answer.dishes == ()
    assert answer.flags == answer.contains == frozenset()


def test_at_the_gate_it_is_food():
    assert assess([0.5, 0.5, 0, 0, 0], CATALOGUE, Thresholds(food=0.5)).status == "scored"


def test_doubt_between_far_scores_needs_review():
    torn = [0, 0.5, 0, 0.5, 0]
    answer = assess(torn, CATALOGUE, Thresholds(review=1.9))
    assert (answer.status, answer.score) == ("needs_review", None)
    assert answer.score_mean == pytest.approx(3)
    assert answer.score_probabilities == pytest.approx((0.5, 0, 0, 0, 0.5))
    assert [name for name, _ in answer.dishes] == ["broccoli", "chocolate sauce"]
    assert assess(torn, CATALOGUE, Thresholds(review=2)).score == 3


def test_doubt_between_near_scores_does_not():
    near = assess([0, 0, 0.5, 0.5, 0], CATALOGUE, Thresholds(review=0.5))
    assert (near.status, near.score) == ("scored", 2)  # a mean of 1.5 rounds up


def test_a_gate_of_its_own_overrides_the_mass():
    says_food = assess([0.9, 0.1, 0, 0, 0], CATALOGUE, Thresholds(), food_probability=0.8)
    assert (says_food.status, says_food.score, says_food.food_probability) == ("scored", 5, 0.8)
    assert says_food.dishes == (("broccoli", pytest.approx(0.8)),)
    says_no = assess([0, 1, 0, 0, 0], CATALOGUE, Thresholds(), food_probability=0.1)
    assert (says_no.status, says_no.food_probability) == ("not_food", 0.1)


def test_food_that_no_class_explains_needs_review():
    answer = assess([1, 0, 0, 0, 0], CATALOGUE, Thresholds(), food_probability=0.9)
    assert (answer.status, answer.score_probabilities, answer.dishes) == ("needs_review", None, ())


def test_dishes_are_few_and_likely():
    shares = [0.0, 0.3, 0.3, 0.3, 0.1]
    some = assess(shares, CATALOGUE, replace(ANYTHING, dish=0.35))
    assert [name for name, _ in some.dishes] == ["pizza"]
    two = assess(shares, CATALOGUE, replace(ANYTHING, dishes=2))
    assert [name for name, _ in two.dishes] == ["pizza", "broccoli"]
    assert assess(shares, CATALOGUE, replace(ANYTHING, dishes=0)).dishes == ()


def test_flags_need_half_and_tags_a_fifth():
    def answer(fudge):
        return assess([0, 1 - fudge, 0, fudge, 0], CATALOGUE, ANYTHING)

    assert "high-sugar" in FOODS["chocolate-sauce"].flags
    assert "high-sugar" in answer(0.5).flags
    assert "high-sugar" not in answer(0.49).flags
    assert answer(0.2).contains == {"dairy", "soy"}
    assert answer(0.19).contains == set()


def test_models_with_other_labels_are_averaged():
    one = read([0.2, 0.8, 0, 0, 0], CATALOGUE)
    labels = (Label(0, "salad", FOODS["broccoli"]), Label(1, "pie", FOODS["pot-pie"]))
    other = read([0.4, 0.6], Catalogue(labels))
    answer = combine([one, other], ANYTHING)
    assert answer.food_probability == pytest.approx(0.9)
    dishes = dict(answer.dishes)
    assert dishes == pytest.approx({"broccoli": 0.6, "pot pie": 0.3})
    # The first is 0.8 sure of food and all for 5; the second is sure of it and gives 0.6 to the pie's 3.
    assert answer.score_probabilities == pytest.approx((0, 0, 0.6 / 1.8, 0, (0.8 + 0.4) / 1.8))


def test_a_model_that_sees_no_food_has_no_say_in_which():
    blind = read([1, 0, 0, 0, 0], CATALOGUE)
    seeing = read([0, 1, 0, 0, 0], CATALOGUE)
    answer = combine([blind, seeing], ANYTHING)
    assert answer.score == 5
    assert answer.food_probability == 0.5
    assert combine([blind, blind], ANYTHING).status == "needs_review"
    assert combine([blind, seeing], Thresholds(food=0.51)).status == "not_food"


@pytest.mark.parametrize(
    "probabilities",
    [[1.0], [0.2] * 6, [[0.2] * 5], [0.2, 0.2, 0.2, 0.2, math.nan], [0.5] * 5, [0] * 5, [1.5, -0.5, 0, 0, 0]],
)
def test_what_is_no_softmax_is_refused(probabilities):
    with pytest.raises(ValueError, match="probabilities"):
        read(probabilities, CATALOGUE)


def test_other_broken_input_is_refused():
    for gate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="food_probability"):
            read([1, 0, 0, 0, 0], CATALOGUE, gate)
    with pytest.raises(ValueError, match="no evidence"):
        combine([], ANYTHING)
    with pytest.raises(ValueError, match="no label"):
        Catalogue(LABELS[:1])


@pytest.mark.parametrize(
    "setting", [{"food": 1.1}, {"review": -1}, {"review": math.nan}, {"dish": 0}, {"dishes": -1}]
)
def test_thresholds_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="out of range"):
        Thresholds(**setting)


@pytest.mark.parametrize("index", [label.index for label in IMAGENET if label.food])
def test_every_food_of_imagenet_gets_its_own_score(index):
    food = IMAGENET[index].food
    answer = assess(np.eye(1000, dtype=np.float32)[index], IMAGENET_CATALOGUE, Thresholds())
    assert (answer.status, answer.score, answer.group) == ("scored", food.stars, food.group)
    assert answer.dishes == ((food.name, 1.0),)
    assert (answer.flags, answer.contains) == (food.flags, food.contains)


@given(softmaxes(5))
def test_the_answer_is_a_distribution(probabilities):
    answer = assess(probabilities, CATALOGUE, ANYTHING)
    assert math.fsum(answer.score_probabilities) == pytest.approx(1)
    assert all(0 <= p <= 1 + 1e-9 for p in answer.score_probabilities)
    assert 1 <= answer.score <= 5
    assert abs(answer.score - answer.score_mean) <= 0.5
    assert math.fsum(p for _, p in answer.dishes) == pytest.approx(answer.food_probability)
    assert [p for _, p in answer.dishes] == sorted((p for _, p in answer.dishes), reverse=True)


@given(softmaxes(5), st.permutations(range(5)))
def test_the_order_of_the_classes_plays_no_part(probabilities, order):
    shuffled = Catalogue([replace(LABELS[old], index=new) for new, old in enumerate(order)])
    one = assess(probabilities, CATALOGUE, ANYTHING)
    other = assess(probabilities[list(order)], shuffled, ANYTHING)
    assert other.score_probabilities == pytest.approx(one.score_probabilities)
    assert other.food_probability == pytest.approx(one.food_probability)
    assert dict(other.dishes) == pytest.approx(dict(one.dishes))


@given(softmaxes(5), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)))
def test_a_higher_gate_only_ever_turns_food_into_no_food(probabilities, food, gate):
    answer = assess(probabilities, CATALOGUE, replace(ANYTHING, food=food), gate)
    assert (answer.status == "not_food") == (answer.food_probability < food)
    assert (answer.score is None) == (answer.status != "scored")


@given(softmaxes(5), st.floats(0.01, 1))
def test_a_gate_leaves_the_distribution_alone(probabilities, gate):
    alone = assess(probabilities, CATALOGUE, ANYTHING)
    gated = assess(probabilities, CATALOGUE, ANYTHING, gate)
    assert gated.score_probabilities == pytest.approx(alone.score_probabilities)


@given(softmaxes(5), st.integers(1, 4))
def test_models_that_agree_change_nothing(probabilities, count):
    thresholds = Thresholds()
    alone = assess(probabilities, CATALOGUE, thresholds)
    together = combine([read(probabilities, CATALOGUE)] * count, thresholds)
    if count == 1:
        assert together == alone
    else:
        assume(abs(alone.food_probability - thresholds.food) > 1e-9)
        assert together.food_probability == pytest.approx(alone.food_probability)
        assert dict(together.dishes) == pytest.approx(dict(alone.dishes))
        assert (together.score_mean or 0) == pytest.approx(alone.score_mean or 0)


@given(softmaxes(5), softmaxes(5))
def test_the_order_of_the_models_plays_no_part(one, other):
    first = combine([read(one, CATALOGUE), read(other, CATALOGUE)], ANYTHING)
    second = combine([read(other, CATALOGUE), read(one, CATALOGUE)], ANYTHING)
    assert first.score_probabilities == pytest.approx(second.score_probabilities)
    assert first.food_probability == second.food_probability
    assert dict(first.dishes) == pytest.approx(dict(second.dishes))
