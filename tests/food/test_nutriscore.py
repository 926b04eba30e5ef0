"""Every threshold from both sides, every class limit, published examples, and the laws of the arithmetic."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.food.nutriscore import Category, Nutrients, score

NOTHING = Nutrients(0, 0, 0, 0, 0, 0, 0)
GENERAL, BEVERAGE, FAT_NUT = Category.GENERAL, Category.BEVERAGE, Category.FAT_NUT

# The official tables written out again, as strings, so that a slip in one copy does not pass in the other.
GENERAL_SUGARS = "3.4 6.8 10 14 17 20 24 27 31 34 37 41 44 48 51"
SALT = "0.2 0.4 0.6 0.8 1 1.2 1.4 1.6 1.8 2 2.2 2.4 2.6 2.8 3 3.2 3.4 3.6 3.8 4"
ONE_TO_TEN = "1 2 3 4 5 6 7 8 9 10"
FIBRE = "3 4.1 5.2 6.3 7.4"
PROTEIN = "2.4 4.8 7.2 9.6 12 14 17"
TABLES = [
    (GENERAL, "energy_kj", "energy", "335 670 1005 1340 1675 2010 2345 2680 3015 3350"),
    (GENERAL, "sugars_g", "sugars", GENERAL_SUGARS),
    (GENERAL, "saturated_fat_g", "saturates", ONE_TO_TEN),
    (GENERAL, "salt_g", "salt", SALT),
    (GENERAL, "fibre_g", "fibre", FIBRE),
    (GENERAL, "protein_g", "protein", PROTEIN),
    (BEVERAGE, "energy_kj", "energy", "30 90 150 210 240 270 300 330 360 390"),
    (BEVERAGE, "sugars_g", "sugars", "0.5 2 3.5 5 6 7 8 9 10 11"),
    (BEVERAGE, "saturated_fat_g", "saturates", ONE_TO_TEN),
    (BEVERAGE, "salt_g", "salt", SALT),
    (BEVERAGE, "fibre_g", "fibre", FIBRE),
    (BEVERAGE, "protein_g", "protein", "1.2 1.5 1.8 2.1 2.4 2.7 3"),
    (FAT_NUT, "sugars_g", "sugars", GENERAL_SUGARS),
    (FAT_NUT, "salt_g", "salt", SALT),
    (FAT_NUT, "fibre_g", "fibre", FIBRE),
    (FAT_NUT, "protein_g", "protein", PROTEIN),
]
BOUNDARIES = [
    pytest.param(category, field, component, float(limit), points, id=f"{category}-{component}-{limit}")
    for category, field, component, table in TABLES
    for points, limit in enumerate(table.split())
]
FRUIT_VEG = [
    (GENERAL, 40, 0, 1), (GENERAL, 60, 1, 2), (GENERAL, 80, 2, 5),
    (FAT_NUT, 40, 0, 1), (FAT_NUT, 60, 1, 2), (FAT_NUT, 80, 2, 5),
    (BEVERAGE, 40, 0, 2), (BEVERAGE, 60, 2, 4), (BEVERAGE, 80, 4, 6),
]  # fmt: skip


def components(result):
    return {**result.negative, **result.positive}


@pytest.mark.parametrize(("category", "field", "component", "limit", "points"), BOUNDARIES)
def test_a_point_is_due_only_above_the_threshold(category, field, component, limit, points):
    def at(value):
        return components(score(replace(NOTHING, fat_g=100, **{field: value}), category))[component]

    assert at(limit) == points
    assert at(limit - 0.001) == points
    assert at(limit + 0.001) == points + 1


@pytest.mark.parametrize(("category", "limit", "at", "above"), FRUIT_VEG)
def test_fruit_vegetables_and_legumes(category, limit, at, above):
    def points(share):
        return score(replace(NOTHING, fruit_veg_legume_pct=share), category).positive["fruit_veg_legume"]

    assert (points(limit), points(limit + 0.01), points(0)) == (at, above, 0)


@pytest.mark.parametrize(("points", "ratio"), list(enumerate([10, 16, 22, 28, 34, 40, 46, 52, 58, 64], 1)))
def test_the_ratio_of_saturates_scores_on_reaching_the_threshold(points, ratio):
    def at(saturates):
        result = score(replace(NOTHING, fat_g=100, saturated_fat_g=saturates), FAT_NUT)
        return result.negative["saturates"]

    assert (at(ratio - 0.001), at(ratio)) == (points - 1, points)


@pytest.mark.parametrize(("points", "kilojoules"), [(k, 120 * (k + 1)) for k in range(10)])
def test_a_fat_counts_the_energy_of_its_saturates(points, kilojoules):
    def at(energy):
        saturates = energy / 37
        return score(replace(NOTHING, fat_g=saturates, saturated_fat_g=saturates), FAT_NUT).negative["energy"]

    assert (at(kilojoules), at(kilojoules + 0.1)) == (points, points + 1)


def test_a_food_of_the_fat_tables_without_fat_has_no_ratio():
    assert score(NOTHING, FAT_NUT).points == 0


def test_the_noise_of_binary_arithmetic_earns_no_point():
    assert 0.2 * 3 > 0.6
    assert score(replace(NOTHING, salt_g=0.2 * 3)).negative["salt"] == 2
    assert score(replace(NOTHING, fat_g=0.3, saturated_fat_g=0.1 * 0.3), FAT_NUT).negative["saturates"] == 1


# Sugars set the unfavourable points exactly; fibre and fruit take them down to what is wanted.
SUGARS_FOR = [0.0, *(float(limit) + 0.01 for limit in GENERAL_SUGARS.split())]


@pytest.mark.parametrize(
    ("points", "grade", "stars"),
    [(0, "A", 5), (1, "B", 4), (2, "B", 4), (3, "C", 3), (10, "C", 3), (11, "D", 2), (15, "D", 2)],
)
def test_class_limits_of_general_foods(points, grade, stars):
    result = score(replace(NOTHING, sugars_g=SUGARS_FOR[points]))
    assert (result.points, result.grade, result.stars) == (points, grade, stars)


def test_the_last_class_limit_of_general_foods():
    sweet = replace(NOTHING, sugars_g=60)  # 15 points
    assert score(replace(sweet, salt_g=0.7)).grade == "D"  # 18
    result = score(replace(sweet, salt_g=0.9))
    assert (result.points, result.grade, result.stars) == (19, "E", 1)


@pytest.mark.parametrize(
    ("energy", "points", "grade"),
    [(0, 0, "B"), (100, 2, "B"), (200, 3, "C"), (290, 6, "C"), (310, 7, "D"), (380, 9, "D"), (400, 10, "E")],
)
def test_class_limits_of_beverages(energy, points, grade):
    result = score(replace(NOTHING, energy_kj=energy), BEVERAGE)
    assert (result.points, result.grade) == (points, grade)


def test_water_alone_is_an_a():
    assert score(NOTHING, BEVERAGE, water=True).grade == "A"
    best = replace(NOTHING, fibre_g=10, protein_g=10, fruit_veg_legume_pct=100)
    assert score(best, BEVERAGE).grade == "B"


@pytest.mark.parametrize(
    ("nutrients", "points", "grade"),
    [
        (replace(NOTHING, fibre_g=4.2, protein_g=8, fruit_veg_legume_pct=50), -6, "A"),
        (replace(NOTHING, fibre_g=4.2, protein_g=8), -5, "B"),
        (replace(NOTHING, sugars_g=7), 2, "B"),
        (replace(NOTHING, sugars_g=11), 3, "C"),
        (replace(NOTHING, sugars_g=35), 10, "C"),
        (replace(NOTHING, sugars_g=38), 11, "D"),
        (replace(NOTHING, sugars_g=60, salt_g=0.7), 18, "D"),
        (replace(NOTHING, sugars_g=60, salt_g=0.9), 19, "E"),
    ],
)
def test_class_limits_of_fats_and_nuts(nutrients, points, grade):
    result = score(nutrients, FAT_NUT)
    assert (result.points, result.grade) == (points, grade)


@pytest.mark.parametrize(("category", "limit"), [(GENERAL, 11), (FAT_NUT, 7)])
def test_protein_stops_counting_at_the_limit(category, limit):
    def protein(unfavourable):
        food = replace(NOTHING, sugars_g=SUGARS_FOR[unfavourable], protein_g=20, fibre_g=5)
        return score(food, category).positive

    assert protein(limit - 1)["protein"] == 7
    assert protein(limit)["protein"] == 0
    assert protein(limit)["fibre"] == 2


def test_protein_of_cheese_and_beverages_always_counts():
    rich = replace(NOTHING, sugars_g=60, protein_g=20)
    assert score(rich, cheese=True).points == 15 - 7
    assert score(rich, BEVERAGE).points == 10 - 7
    assert score(replace(rich, energy_kj=500), BEVERAGE).points == 20 - 7


@pytest.mark.parametrize(("protein", "points"), [(2, 0), (3, 1), (5, 2), (20, 2)])
def test_protein_of_red_meat_is_capped(protein, points):
    assert score(replace(NOTHING, protein_g=protein), red_meat=True).positive["protein"] == points


def test_sweeteners_cost_four_points():
    assert score(NOTHING, BEVERAGE, sweeteners=True).points == 4


# Products whose nutrients, points and class Open Food Facts publishes under the 2023 algorithm.
@pytest.mark.parametrize(
    ("nutrients", "options", "points", "grade"),
    [
        # a cream-filled cocoa biscuit: energy 5, sugars 11, saturates 5, salt 3
        (Nutrients(2007.7, 38, 5.4, 20, 0.73, 2.7, 5), {}, 24, "E"),
        (Nutrients(3460, 0, 15, 90, 0, 0, 0), {}, 20, "E"),
        # frozen vegetables
        (Nutrients(138, 3.33, 0, 0, 0.1, 2.2, 1.11, 100), {}, -5, "A"),
        # peach ice tea with sugar and steviol glycosides: energy 1, sugars 3, sweeteners 4
        (Nutrients(82, 4.5, 0, 0, 0.03, 0, 0, 0.1), {"category": BEVERAGE, "sweeteners": True}, 8, "D"),
        # an almond drink: energy 2, sugars 2
        (Nutrients(107.3, 3.1, 0.1, 1, 0.15, 0, 0.5), {"category": BEVERAGE}, 4, "C"),
        # an apple drink: energy 1, sugars 1, fruit 6
        (Nutrients(37.4, 2, 0, 0, 0, 0, 0, 100), {"category": BEVERAGE}, -4, "B"),
        # a soy powder among the beverages: energy 10, sugars 1, protein 7
        (Nutrients(477.1, 1, 0.2, 2, 0.1, 0.5, 24), {"category": BEVERAGE}, 4, "C"),
        # walnut oil with a tenth of its fat saturated: 370 kJ of saturates 3, ratio 10 % 1
        (Nutrients(3378, 0, 10, 100, 0, 0, 0), {"category": FAT_NUT}, 4, "C"),
    ],
)
def test_published_examples(nutrients, options, points, grade):
    result = score(nutrients, **options)
    assert (result.points, result.grade) == (points, grade)


@pytest.mark.parametrize("field", [field.name for field in fields(Nutrients)])
@pytest.mark.parametrize("value", [-0.001, math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_amount_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        replace(NOTHING, fat_g=100, **{field: value}) if field != "fat_g" else replace(NOTHING, fat_g=value)


def test_impossible_amounts_are_refused():
    with pytest.raises(ValueError, match="at most 100"):
        replace(NOTHING, fruit_veg_legume_pct=100.1)
    with pytest.raises(ValueError, match="exceeds fat_g"):
        replace(NOTHING, fat_g=1, saturated_fat_g=1.1)


@pytest.mark.parametrize(
    ("category", "flag"),
    [(BEVERAGE, "cheese"), (FAT_NUT, "red_meat"), (GENERAL, "water"), (FAT_NUT, "sweeteners")],
)
def test_a_flag_of_another_category_is_refused(category, flag):
    with pytest.raises(ValueError, match=flag):
        score(NOTHING, category, **{flag: True})


@st.composite
def foods(draw):
    fat = draw(st.floats(0, 100))
    return Nutrients(
        energy_kj=draw(st.floats(0, 4000)),
        sugars_g=draw(st.floats(0, 100)),
        saturated_fat_g=fat * draw(st.floats(0, 1)),
        fat_g=fat,
        salt_g=draw(st.floats(0, 100)),
        fibre_g=draw(st.floats(0, 100)),
        protein_g=draw(st.floats(0, 100)),
        fruit_veg_legume_pct=draw(st.floats(0, 100)),
    )


categories = st.sampled_from(Category)


@given(foods(), categories)
def test_points_are_the_sum_of_the_components(food, category):
    result = score(food, category)
    assert result.points == sum(result.negative.values()) - sum(result.positive.values())
    assert result.points == sum(-c.points if c.favourable else c.points for c in result.components)
    assert -18 <= result.points <= 55


@given(foods(), categories, st.booleans(), st.booleans())
def test_a_component_names_the_threshold_that_earned_its_points(food, category, red_meat, cheese):
    general = category is GENERAL
    result = score(food, category, red_meat=general and red_meat, cheese=general and cheese)
    for component in result.components:
        assert (component.threshold is None) == (component.earned == 0)
        # Compared as score() does it, which lets no noise of binary arithmetic pass a threshold.
        assert component.threshold is None or round(component.value, 6) >= component.threshold
        assert 0 <= component.points <= component.earned
    cut = [c.name for c in result.components if c.points < c.earned]
    assert cut in ([], ["protein"])
    assert bool(cut) <= bool(result.rules)


def component(result, name):
    return next(c for c in result.components if c.name == name)


def test_the_components_of_a_food_and_of_a_fat():
    result = score(replace(NOTHING, energy_kj=1238.5, fat_g=20, saturated_fat_g=5, salt_g=0.1))
    energy = component(result, "energy")
    assert (energy.value, energy.unit, energy.threshold, energy.earned, energy.points) == (
        1238.5, "kJ", 1005, 3, 3,
    )  # fmt: skip
    assert component(result, "saturates").threshold == 4
    assert component(result, "salt").threshold is None
    fat = score(replace(NOTHING, energy_kj=3700, fat_g=100, saturated_fat_g=10), FAT_NUT)
    assert (component(fat, "energy").value, component(fat, "energy").threshold) == (370, 360)
    ratio = component(fat, "saturates")
    assert (ratio.value, ratio.unit, ratio.threshold, ratio.points) == (10, "%", 10, 1)
    sweet = component(score(NOTHING, BEVERAGE, sweeteners=True), "sweeteners")
    assert (sweet.points, sweet.threshold, sweet.favourable) == (4, None, False)


@pytest.mark.parametrize(
    ("nutrients", "options", "counted", "rules"),
    [
        ({"protein_g": 20}, {}, 7, []),
        ({"protein_g": 20}, {"red_meat": True}, 2, ["red meat counts for 2"]),
        ({"protein_g": 3}, {"red_meat": True}, 1, []),
        ({"protein_g": 20, "sugars_g": 38}, {"red_meat": True}, 0, ["does not count with 11"]),
        ({"protein_g": 20, "sugars_g": 38}, {"cheese": True}, 7, ["cheese counts even with 11"]),
        ({"protein_g": 20, "sugars_g": 25}, {"category": FAT_NUT}, 0, ["does not count with 7"]),
        ({"protein_g": 1, "sugars_g": 38}, {}, 0, []),
        ({"protein_g": 20, "sugars_g": 38}, {"category": BEVERAGE}, 7, []),
        ({}, {"category": BEVERAGE, "water": True}, 0, ["water is the only drink in class A"]),
    ],
)
def test_a_rule_that_made_a_difference_is_named(nutrients, options, counted, rules):
    result = score(replace(NOTHING, **nutrients), **options)
    assert result.positive["protein"] == counted
    assert len(result.rules) == len(rules)
    assert all(words in rule for words, rule in zip(rules, result.rules, strict=True))


@given(foods(), categories, st.sampled_from(["energy_kj", "sugars_g", "salt_g"]), st.floats(0, 100))
def test_more_of_a_bad_thing_is_never_better(food, category, field, more):
    worse = replace(food, **{field: getattr(food, field) + more})
    assert score(worse, category).points >= score(food, category).points
    assert score(worse, category).stars <= score(food, category).stars


@given(foods(), categories, st.floats(0, 1))
def test_more_saturates_in_the_same_fat_are_never_better(food, category, part):
    worse = replace(food, saturated_fat_g=max(food.saturated_fat_g, food.fat_g * part))
    assert score(worse, category).points >= score(food, category).points


@given(foods(), categories, st.sampled_from(["fibre_g", "protein_g"]), st.floats(0, 100))
def test_more_of_a_good_thing_is_never_worse(food, category, field, more):
    better = replace(food, **{field: getattr(food, field) + more})
    assert score(better, category).points <= score(food, category).points


@given(foods(), categories, st.floats(0, 100))
def test_more_fruit_is_never_worse(food, category, share):
    better = replace(food, fruit_veg_legume_pct=max(food.fruit_veg_legume_pct, share))
    assert score(better, category).points <= score(food, category).points


@given(foods())
def test_red_meat_is_never_better_and_cheese_never_worse(food):
    assert score(food, red_meat=True).points >= score(food).points >= score(food, cheese=True).points
