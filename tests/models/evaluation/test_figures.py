import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.food.foods import load_foods
from models.evaluation.answers import Answers
from models.evaluation.figures import (
    class_figures,
    confusion_of_scores,
    confusions_of_foods,
    curves,
    figures,
    group_figures,
)
from models.evaluation.truth import Truth
from models.manifest import TABLES
from models.training.dataset import NOT_FOOD

FOODS = load_foods(TABLES / "foods.csv")
APPLE, PIZZA, HUMMUS, DONUTS = (FOODS[food] for food in ("apple", "pizza", "hummus", "donuts"))


def photo(food=None, label=None, score=None, group="dish"):
    label = label or (food.id if food else "food")
    return Truth(
        Path("a.jpg"), "0" * 64, label, group, food, (food.stars if food else 0) if score is None else score
    )


OTHER = photo(label=NOT_FOOD, group="gate")


def answers(rows, foods=(APPLE, PIZZA), names=None, passed=None, scored=None):
    """A model that gives each photo these shares; its score is what the foods' stars add up to."""
    shares = np.array(rows, np.float64).reshape(-1, len(foods))
    passed = np.ones(len(shares), bool) if passed is None else np.array(passed, bool)
    return Answers(
        names=names or tuple(food.id for food in foods),
        foods=foods,
        classes=shares,
        p_food=np.where(passed, 0.9, 0.1),
        shares=shares,
        scores=shares @ [[food.stars == stars for stars in range(1, 6)] for food in foods],
        passed=passed,
        scored=passed if scored is None else np.array(scored, bool),
    )


def test_foods_are_what_models_are_compared_by():
    photos = [photo(APPLE), photo(PIZZA), photo(HUMMUS), photo()]
    found = figures(photos, answers([[1, 0], [0.6, 0.4], [0, 1], [1, 0]]))
    assert found["photos"] == 4
    assert found["photos of a known food"] == 3
    assert found["food top-1"] == 0.3333  # hummus is not known to the model, and counts against it
    assert found["knows the food"] == found["food top-5"] == 0.6667
    other_way_round = answers([[0, 1], [0.4, 0.6], [1, 0], [0, 1]], (PIZZA, APPLE))
    assert figures(photos, other_way_round)["food top-1"] == found["food top-1"]


def test_classes_are_looked_at_where_the_model_has_one_of_that_name():
    photos = [photo(APPLE, "Granny Smith"), photo(PIZZA, "margherita"), photo(PIZZA, "margherita")]
    found = figures(photos, answers([[1, 0], [1, 0], [0, 1]], names=("apple", "margherita")))
    assert found["photos of its classes"] == 2
    assert (found["class top-1"], found["class top-5"]) == (0.5, 1)
    assert found["food top-1"] == 0.6667


def test_scores_count_over_all_photos_and_over_the_answered_ones():
    assert (APPLE.stars, PIZZA.stars) == (5, 2)
    photos = [photo(APPLE), photo(APPLE, score=4), photo(PIZZA), photo(PIZZA), OTHER]
    found = figures(
        photos,
        answers([[1, 0], [1, 0], [0, 1], [1, 0], [1, 0]], scored=[1, 1, 1, 0, 1]),
    )
    assert found["photos of a known score"] == 4
    assert (found["score exact"], found["score within one"], found["score error"]) == (0.5, 0.75, 1)
    assert found["answered"] == 0.75
    assert (found["answered exact"], found["answered within one"]) == (0.6667, 1)
    assert found["answered error"] == 0.3333
    assert confusion_of_scores(photos, answers([[1, 0]] * 5))[1] == [0, 0, 0, 0, 2]


def test_the_gate_and_the_review_are_counted_on_their_own_photos():
    photos = [photo(APPLE), photo(APPLE), photo(), photo(), OTHER, OTHER]
    found = figures(photos, answers([[1, 0]] * 6, passed=[1, 1, 1, 0, 1, 0], scored=[1, 0, 0, 0, 1, 0]))
    assert (found["gate recall"], found["false alarms"], found["to review"]) == (0.75, 0.5, 0.6667)


def test_calibration_is_of_the_likeliest_food_and_of_the_score_shown():
    found = figures([photo(APPLE), photo(PIZZA)], answers([[0.9, 0.1], [0.7, 0.3]]))
    # Foods: right at 0.9, wrong at 0.7. Scores: 4.7 is shown as 5 at 0.9, right; 4.1 as 4 at 0, wrong.
    assert found["calibration error of the food"] == pytest.approx((0.1 + 0.7) / 2)
    assert found["calibration error of the score"] == pytest.approx((0.1 + 0) / 2)


def test_worst_confusions_weigh_photos_by_what_they_do_to_the_score():
    photos = [photo(APPLE), photo(HUMMUS), photo(HUMMUS), photo(DONUTS), OTHER]
    worst = confusions_of_foods(photos, answers([[0, 1], [1, 0], [1, 0], [0, 1], [0, 1]]))
    assert [(one.truth, one.predicted, one.difference, one.consequence) for one in worst] == sorted(
        (
            ("apple", "pizza", PIZZA.stars - 5, 5 - PIZZA.stars),
            ("hummus", "apple", 5 - HUMMUS.stars, 2 * (5 - HUMMUS.stars)),
            ("donuts", "pizza", PIZZA.stars - DONUTS.stars, abs(PIZZA.stars - DONUTS.stars)),
        ),
        key=lambda row: -row[3],
    )


def test_groups_and_classes_are_parts_of_the_whole():
    photos = [photo(APPLE, group="produce"), photo(PIZZA), photo(PIZZA), photo(PIZZA, "margherita"), OTHER]
    given = answers([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], passed=[1, 1, 1, 1, 0])
    groups = group_figures(photos, given)
    assert {name: found["photos"] for name, found in groups.items()} == {"dish": 3, "gate": 1, "produce": 1}
    assert groups["dish"]["food top-1"] == 0.6667
    assert groups["gate"]["food top-1"] is None
    assert groups["gate"]["false alarms"] == 0
    classes = class_figures(photos, given)
    assert {name: (found["photos"], found["food top-1"]) for name, found in classes.items()} == {
        "apple": (1, 1), "margherita": (1, 1), "pizza": (2, 0.5),
    }  # fmt: skip


PHOTOS = st.sampled_from([photo(APPLE), photo(PIZZA), photo(HUMMUS), photo(), photo(score=3), OTHER])


@settings(deadline=None)
@given(
    st.lists(st.tuples(PHOTOS, st.floats(0, 1), st.booleans(), st.booleans()), max_size=12),
    st.randoms(use_true_random=False),
)
def test_figures_are_json_of_shares_and_do_not_depend_on_the_order(given_photos, random):
    def told(rows):
        photos = [row[0] for row in rows]
        own = answers(
            [[row[1], 1 - row[1]] for row in rows],
            passed=[row[2] for row in rows],
            scored=[row[2] and row[3] for row in rows],
        )
        return figures(photos, own), curves(photos, own)

    found, lines = told(given_photos)
    json.dumps([found, lines], allow_nan=False)
    for name, value in found.items():
        assert value is None or 0 <= value <= (len(given_photos) if "photos" in name else 4), name
    shuffled = random.sample(given_photos, len(given_photos))
    assert told(shuffled)[0] == pytest.approx(found, abs=2e-4)
