"""Every food of every model can be asked about, and the answer adds up to its score."""

import re
from pathlib import Path

import pytest

import models
from app.food.explain import UnknownFood, explain, render
from app.food.foods import load_foods, load_labels

TABLES = Path(*models.__path__) / "tables"
FOODS = load_foods(TABLES / "foods.csv")
MEALS = load_labels(TABLES / "meals.csv", FOODS)
IMAGENET = load_labels(TABLES / "imagenet.csv", FOODS)


@pytest.mark.parametrize("name", ["apple_pie", "apple-pie", "apple pie", " Apple Pie "])
def test_a_food_is_found_by_class_id_and_name(name):
    explanation = explain(name, MEALS, FOODS)
    assert explanation.food is FOODS["apple-pie"]
    assert explanation.classes == ("apple_pie",)


def test_a_food_may_have_several_classes_or_none():
    assert explain("corn", IMAGENET, FOODS).classes == ("corn", "fruiting spike of a cereal plant")
    assert explain("corn", MEALS, FOODS).classes == ()


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("aple_pie", MEALS, r"^no food or class 'aple_pie'; did you mean apple_pie"),
        ("xyzzy", MEALS, r"^no food or class 'xyzzy'$"),
        ("", MEALS, r"^no food or class ''$"),
        ("tench", IMAGENET, r"^'tench' is a class that is not food$"),
    ],
)
def test_an_unknown_name_is_refused_and_near_ones_are_offered(name, labels, message):
    with pytest.raises(UnknownFood, match=message):
        explain(name, labels, FOODS)


def test_what_is_offered_are_different_foods_and_can_be_asked_for():
    with pytest.raises(UnknownFood) as refusal:
        explain("onion_soup", MEALS, FOODS)
    offered = str(refusal.value).partition("did you mean ")[2].rstrip("?").split(", ")
    foods = [explain(name, MEALS, FOODS).food.id for name in offered]
    assert 1 < len(foods) == len(set(foods)) <= 3


@pytest.mark.parametrize("food", FOODS.values(), ids=lambda food: food.id)
def test_the_lines_add_up(food):
    lines = render(explain(food.id, MEALS, FOODS))
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("per 100 ")) + 1 :]
    components = table[: table.index("")]
    *summands, total = [int(line[22:].partition("  instead")[0].split()[-1]) for line in components]
    assert sum(summands) == total == food.nutriscore.points
    assert lines[0].startswith(f"{food.name}: {food.stars} of 5 stars, Nutri-Score {food.nutriscore.grade} ")
    for source in food.sources:
        assert any(f"{source.description} (" in line and f"FDC {source.fdc_id})" in line for line in lines)
    assert max(map(len, lines)) <= 120


def test_the_whole_text_of_a_dish():
    assert render(explain("apple_pie", MEALS, FOODS)) == [
        "apple pie: 2 of 5 stars, Nutri-Score D with 14 points",
        "",
        "classes   apple_pie",
        "group     dessert",
        "contains  dairy, gluten",
        "source    Pie, apple (USDA FNDDS 2021-2023, FDC 2707995)",
        "",
        "per 100 g                   amount      over   points",
        "energy                     1238 kJ      1005        3",
        "sugars                     15.92 g        14        4",
        "saturates                   5.34 g         5        5",
        "salt                      0.5425 g       0.4        2",
        "protein                      2.7 g       2.4        0  instead of -1",
        "fibre                        1.8 g                  0",
        "fruit, veg., legumes          40 %                  0",
        "total                                              14",
        "",
        "rule: protein does not count with 11 unfavourable points or more",
        "grades, general: A to 0, B to 2, C to 10, D to 18, E above",
        "fruit, vegetables and legumes: apples are about half of the pie; no more than 40 claimed",
    ]


def test_a_mix_shows_its_shares():
    lines = render(explain("fish_and_chips", MEALS, FOODS))
    assert "source    50 % Fish, cod, fried (USDA FNDDS 2021-2023, FDC 2706244)" in lines
    assert any(re.match(r" {10}50 % Potato, french fries, restaurant \(", line) for line in lines)


@pytest.mark.parametrize("drink", ["beer", "cocktail", "wine", "red-wine"])
def test_alcohol_is_said_to_be_outside_of_nutri_score(drink):
    rules = explain(drink, MEALS, FOODS).rules
    assert any("leaves drinks over 1.2 % alcohol out" in rule for rule in rules)


def test_a_drink_is_per_100_ml_and_only_water_is_an_a():
    lines = render(explain("tea", MEALS, FOODS))
    assert any(line.startswith("per 100 ml ") for line in lines)
    assert "grades, beverage: B to 2, C to 6, D to 9, E above" in lines
