"""The committed tables hold what they claim, and a mistake in a table is found and named."""

import csv
from pathlib import Path
from typing import get_args

import pytest

import models
from app.food.foods import (
    FDC_TYPES,
    FLAGS,
    FOOD_COLUMNS,
    GROUPS,
    MIX_COLUMNS,
    TAGS,
    TableError,
    flags,
    load_foods,
    load_labels,
)
from app.food.nutriscore import Category, Nutrients, score
from app.schemas import Avoid

TABLES = Path(*models.__path__) / "tables"
FOODS = load_foods(TABLES / "foods.csv")


def read(table):
    return list(csv.DictReader((TABLES / table).read_text(encoding="utf-8").splitlines()))


ROWS = read("foods.csv")
PARTS = read("mixes.csv")
MIXED = [row for row in ROWS if row["fdc_type"] == "mix"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_points_and_grade_follow_from_the_nutrients(row):
    result = score(
        Nutrients(
            energy_kj=float(row["energy_kj"]),
            sugars_g=float(row["sugars_g"]),
            saturated_fat_g=float(row["saturated_fat_g"]),
            fat_g=float(row["fat_g"]),
            salt_g=float(row["salt_g"]),
            fibre_g=float(row["fibre_g"]),
            protein_g=float(row["protein_g"]),
            fruit_veg_legume_pct=float(row["fvl_pct"]),
        ),
        Category(row["category"]),
        red_meat=row["red_meat"] == "yes",
        cheese=row["cheese"] == "yes",
        water=row["water"] == "yes",
        sweeteners=row["sweeteners"] == "yes",
    )
    assert (str(result.points), result.grade) == (row["points"], row["grade"])
    assert FOODS[row["id"]].stars == "EDCBA".index(row["grade"]) + 1


@pytest.mark.parametrize("food", FOODS.values(), ids=lambda food: food.id)
def test_the_energy_of_a_row_fits_its_nutrients(food):
    n = food.nutrients
    # EU conversion factors. Carbohydrate is not in the table: at least the sugars, at most what is left.
    # The slack is for rounding, for USDA's own factors by food, and for the acids of fruit.
    known = 37 * n.fat_g + 17 * n.protein_g + 8 * n.fibre_g
    assert n.energy_kj >= 0.8 * (known + 17 * n.sugars_g) - 15
    if "alcohol" not in food.contains:
        assert n.energy_kj <= 1.1 * (known + 17 * (100 - n.fat_g - n.protein_g - n.fibre_g))
    assert n.fat_g + n.protein_g + n.fibre_g + n.sugars_g + n.salt_g <= 100


@pytest.mark.parametrize("food", FOODS.values(), ids=lambda food: food.id)
def test_a_row_is_consistent(food):
    assert (food.group in ("drink", "alcoholic-drink")) == (food.category is Category.BEVERAGE)
    assert (food.group == "alcoholic-drink") <= ("alcohol" in food.contains)
    # SR Legacy has numbers of six digits, FNDDS 2021-2023 those from 2705384 to 2710814.
    for source in food.sources:
        assert source.fdc_type in FDC_TYPES
        survey = source.fdc_type.startswith("FNDDS")
        assert source.fdc_id in (range(2705384, 2710815) if survey else range(167512, 175305))
    if food.group in ("fruit", "vegetable"):
        assert food.nutrients.fruit_veg_legume_pct == 100
        assert food.stars >= 4
        assert not food.contains


@pytest.mark.parametrize("row", MIXED, ids=lambda row: row["id"])
def test_a_mix_follows_from_its_parts(row):
    parts = [part for part in PARTS if part["food"] == row["id"]]
    assert sum(float(part["share"]) for part in parts) == pytest.approx(1)
    for column in MIX_COLUMNS[5:]:
        total = sum(float(part["share"]) * float(part[column]) for part in parts)
        assert float(row[column]) == pytest.approx(total, rel=5e-4)
    assert [source.description for source in FOODS[row["id"]].sources] == [
        part["fdc_description"] for part in parts
    ]


def test_a_row_of_food_data_central_has_one_number_and_one_set_of_nutrients():
    rows = [(row, row["fdc_type"]) for row in [*ROWS, *PARTS] if row["fdc_type"] != "mix"]
    by_description, by_number = {}, {}
    for row, kind in rows:
        pinned = (row["fdc_id"], *(row[column] for column in MIX_COLUMNS[5:-1]))
        assert by_description.setdefault((kind, row["fdc_description"]), pinned) == pinned
        assert by_number.setdefault(row["fdc_id"], row["fdc_description"]) == row["fdc_description"]


def test_the_words_agree_with_what_a_profile_may_avoid():
    assert set(TAGS) == set(get_args(Avoid)) | {"poultry", "honey"}
    assert all(food.flags <= set(FLAGS) and food.group in GROUPS for food in FOODS.values())


def test_any_kind_of_meat_is_meat():
    assert "poultry" in FOODS["pot-pie"].contains
    assert "meat" in FOODS["pot-pie"].contains
    assert "meat" not in FOODS["pizza"].contains


def test_imagenet_has_a_thousand_classes_and_every_food_of_it():
    labels = load_labels(TABLES / "imagenet.csv", FOODS)
    assert len(labels) == 1000
    assert [label.index for label in labels] == list(range(1000))
    edible = {label.index for label in labels if label.food}
    assert edible == {*range(923, 970), 987, 998} - {958, 968}
    assert {labels[index].name for index in (958, 968, 988, 992)} == {"hay", "tea cup", "acorn", "agaric"}
    expected = {924: "guacamole", 930: "baguette", 948: "apple", 963: "pizza", 966: "red-wine", 987: "corn"}
    assert {index: labels[index].food.id for index in expected} == expected
    assert labels[998].food is labels[987].food


def test_meals_has_142_classes_and_all_of_them_are_food():
    labels = load_labels(TABLES / "meals.csv", FOODS)
    names = [label.name for label in labels]
    dishes, drinks, produce = names[:101], names[101:108], names[108:]
    assert [len(dishes), len(produce), len(drinks)] == [101, 34, 7]
    assert all(part == sorted(part) for part in (dishes, produce, drinks))
    assert (dishes[0], dishes[-1], produce[0], produce[-1]) == ("apple_pie", "waffles", "apple", "zucchini")
    assert all(label.food for label in labels)
    assert {label.food.group for label in labels[108:]} == {"fruit", "vegetable", "potato"}
    assert {label.food.group for label in labels[101:108]} == {"drink", "alcoholic-drink"}
    # Its classes differ from one another, and a class is a food of its own.
    assert len({label.food.id for label in labels}) == len(labels)
    red = {label.name for label in labels if "red meat" in " ".join(label.food.nutriscore.rules)}
    assert red == {"beef_carpaccio", "filet_mignon", "pork_chop"}
    alcoholic = {label.name for label in labels if label.food.group == "alcoholic-drink"}
    assert alcoholic == {"beer", "cocktail", "wine"}


NOTHING = dict.fromkeys(
    ("sugars_g", "saturated_fat_g", "fat_g", "salt_g", "fibre_g", "protein_g"), 0.0
)  # energy is given by each case


@pytest.mark.parametrize(
    ("energy_kj", "nutrients", "category", "expected"),
    [
        (400, {"sugars_g": 22.5}, "general", {"low-fibre"}),
        (400, {"sugars_g": 22.6}, "general", {"low-fibre", "high-sugar"}),
        (400, {"sugars_g": 11.25}, "beverage", set()),
        (400, {"sugars_g": 11.3}, "beverage", {"high-sugar"}),
        (400, {"salt_g": 1.5}, "general", {"low-fibre"}),
        (400, {"salt_g": 1.6}, "general", {"low-fibre", "high-salt"}),
        (400, {"salt_g": 0.8}, "beverage", {"high-salt"}),
        (400, {"saturated_fat_g": 5, "fat_g": 5}, "general", {"low-fibre"}),
        (400, {"saturated_fat_g": 5.1, "fat_g": 6}, "general", {"low-fibre", "high-saturated-fat"}),
        (400, {"saturated_fat_g": 2.6, "fat_g": 3}, "beverage", {"high-saturated-fat"}),
        (1150, {"fibre_g": 5}, "general", set()),
        (1151, {"fibre_g": 5}, "general", {"energy-dense"}),
        (1151, {}, "beverage", set()),
        (2000, {"fibre_g": 2.9}, "fat-nut", {"energy-dense", "low-fibre"}),
        (2000, {"fibre_g": 3}, "fat-nut", {"energy-dense"}),
        (2000, {"fibre_g": 6}, "fat-nut", {"energy-dense", "high-fibre"}),
        (100, {"fibre_g": 0.5}, "general", set()),  # 2.1 g per 100 kcal: a source
        (100, {"fibre_g": 0.8}, "general", {"high-fibre"}),  # 3.3 g per 100 kcal
        (170, {"protein_g": 2, "fibre_g": 1}, "general", {"high-protein"}),
        (171, {"protein_g": 2, "fibre_g": 1}, "general", set()),
        (0, {}, "beverage", set()),
    ],
)
def test_flags_at_their_limits(energy_kj, nutrients, category, expected):
    assert flags(Nutrients(energy_kj=energy_kj, **NOTHING | nutrients), Category(category)) == expected


GOOD = {
    "id": "soup", "name": "soup", "group": "soup", "category": "general", "red_meat": "no", "cheese": "no",
    "water": "no", "sweeteners": "no", "contains": "celery", "fdc_id": "1", "fdc_type": "SR Legacy",
    "fdc_description": "Soup", "energy_kj": "100", "sugars_g": "1", "saturated_fat_g": "0", "fat_g": "0",
    "salt_g": "0.9", "fibre_g": "1", "protein_g": "1", "fvl_pct": "0", "fvl_reason": "broth", "points": "4",
    "grade": "C",
}  # fmt: skip


def write(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def test_the_format_serves_other_foods_and_models(tmp_path):
    foods = load_foods(write(tmp_path / "foods.csv", FOOD_COLUMNS, [list(GOOD.values())]))
    labels = load_labels(
        write(tmp_path / "labels.csv", ["index", "label", "food"], [[0, "Pho", "soup"], [1, "no food", ""]]),
        foods,
    )
    assert labels[0].food is foods["soup"]
    assert labels[1].food is None


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"id": "Soup"}, "slug"),
        ({"name": "Soup"}, "lower case"),
        ({"group": "soups"}, "group"),
        ({"category": "solid"}, "Category"),
        ({"contains": "celery nuts"}, "nuts"),
        ({"red_meat": "1"}, "red_meat must be yes or no"),
        ({"water": "yes"}, "beverages"),
        ({"fdc_description": ""}, "fdc_description"),
        ({"fdc_id": ""}, "invalid literal"),
        ({"fdc_type": "Branded"}, "fdc_type"),
        ({"fdc_type": "mix"}, "no FoodData Central row of its own"),
        ({"fdc_type": "mix", "fdc_id": "", "fdc_description": ""}, "mix needs two parts"),
        ({"fvl_reason": ""}, "fvl_reason"),
        ({"fdc_id": "x"}, "invalid literal"),
        ({"energy_kj": ""}, "energy_kj"),
        ({"fvl_pct": "many"}, "fvl_pct"),
        ({"salt_g": "-1"}, "salt_g"),
        ({"salt_g": "nan"}, "salt_g"),
        ({"points": "5"}, "points and grade must be 4 and C"),
        ({"grade": "B"}, "points and grade must be 4 and C"),
        ({"name": " soup"}, "space"),
    ],
)
def test_a_wrong_cell_is_named_with_file_and_line(tmp_path, cells, message):
    rows = [list(GOOD.values()), list((GOOD | {"id": "stew", "name": "stew"} | cells).values())]
    with pytest.raises(TableError, match=rf"^foods\.csv:3: .*{message}"):
        load_foods(write(tmp_path / "foods.csv", FOOD_COLUMNS, rows))


SOUR = {
    "food": "soup", "share": "0.25", "fdc_id": "167512", "fdc_type": "SR Legacy",
    "fdc_description": "Vinegar", "energy_kj": "40", "sugars_g": "4", "saturated_fat_g": "0", "fat_g": "0",
    "salt_g": "0.6", "fibre_g": "1", "protein_g": "1", "fvl_pct": "0",
}  # fmt: skip
REST = SOUR | {
    "share": "0.75", "fdc_description": "Stock", "energy_kj": "120", "sugars_g": "0", "salt_g": "1",
}  # fmt: skip
MIX = GOOD | {"fdc_type": "mix", "fdc_id": "", "fdc_description": ""}


def load_mix(folder, row, parts):
    write(folder / "mixes.csv", MIX_COLUMNS, [part.values() for part in parts])
    return load_foods(write(folder / "foods.csv", FOOD_COLUMNS, [row.values()]))


def test_a_mix_knows_its_parts(tmp_path):
    food = load_mix(tmp_path, MIX, [SOUR, REST])["soup"]
    assert [(source.share, source.description) for source in food.sources] == [
        (0.25, "Vinegar"),
        (0.75, "Stock"),
    ]
    assert food.nutrients.energy_kj == 100


@pytest.mark.parametrize(
    ("row", "parts", "message"),
    [
        (MIX | {"sugars_g": "1.01"}, [SOUR, REST], r"foods\.csv:2: sugars_g of this mix must be 1,"),
        (MIX, [SOUR, REST | {"share": "0.7"}], r"foods\.csv:2: .*sum to 1"),
        (MIX, [SOUR | {"share": "1"}], r"foods\.csv:2: .*two parts"),
        (MIX, [SOUR, REST | {"share": "0"}], r"mixes\.csv:3: share"),
        (MIX, [SOUR, REST | {"share": "most"}], r"mixes\.csv:3: share 'most' is not a number"),
        (MIX, [SOUR, REST | {"fdc_type": "mix"}], r"mixes\.csv:3: fdc_type"),
        (MIX, [SOUR, REST | {"salt_g": ""}], r"mixes\.csv:3: salt_g"),
        (MIX, [SOUR, REST, SOUR | {"food": "stew"}], r"mixes\.csv:1: .*stew"),
        (GOOD, [SOUR, REST], r"mixes\.csv:1: .*soup"),
    ],
)
def test_a_wrong_mix_is_named(tmp_path, row, parts, message):
    with pytest.raises(TableError, match=rf"^{message}"):
        load_mix(tmp_path, row, parts)


@pytest.mark.parametrize("other", [{"id": "stew"}, {"name": "stew"}, {}])
def test_a_food_is_there_once(tmp_path, other):
    rows = [list(GOOD.values()), list((GOOD | other).values())]
    with pytest.raises(TableError, match=r"^foods\.csv:3: .*already"):
        load_foods(write(tmp_path / "foods.csv", FOOD_COLUMNS, rows))


def test_columns_and_cells_must_be_complete(tmp_path):
    with pytest.raises(TableError, match=r"^foods\.csv:1: columns"):
        load_foods(write(tmp_path / "foods.csv", FOOD_COLUMNS[:-1], []))
    with pytest.raises(TableError, match=r"^foods\.csv:2: 1 cells"):
        load_foods(write(tmp_path / "foods.csv", FOOD_COLUMNS, [["soup"]]))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(TableError, match=r"^empty\.csv:1: columns"):
        load_foods(tmp_path / "empty.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, "a", ""], [2, "b", ""]], "index must be 1"),
        ([[0, "a", ""], ["01", "b", ""]], "index must be 1"),
        ([[0, "a", ""], [1, "a", ""]], "already"),
        ([[0, "a", ""], [1, "", ""]], "empty"),
        ([[0, "a", ""], [1, "b", "cake"]], "no food 'cake'"),
    ],
)
def test_a_wrong_label_is_named_with_file_and_line(tmp_path, rows, message):
    with pytest.raises(TableError, match=rf"^labels\.csv:3: .*{message}"):
        load_labels(write(tmp_path / "labels.csv", ["index", "label", "food"], rows), {})
