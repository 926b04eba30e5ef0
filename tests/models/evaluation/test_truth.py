import pytest

from app.food.foods import load_foods
from models.evaluation.truth import read_truths
from models.manifest import TABLES, load_manifest
from models.training.dataset import DatasetError
from tests.photos import coffee_jpeg

FOODS = load_foods(TABLES / "foods.csv")
MODELS = (load_manifest("imagenet-lite0"),)


def make(folder, files):
    """Photos by path; each number is another photo."""
    for name, number in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(coffee_jpeg(40 + number, 30, 60))


def by_label(folder, split="all"):
    return {photo.label: photo for photo in read_truths(folder, split, MODELS).photos}


def test_a_class_is_a_food_by_the_mapping_then_a_models_label_then_the_foods_own_name(tmp_path):
    make(tmp_path, {"Granny Smith apple/a.jpg": 0, "greek_salad/b.jpg": 1, "ours/c.jpg": 2, "pizza/d.jpg": 3})
    (tmp_path / "classes.csv").write_text("class,food\nours,hummus\npizza,caesar-salad\n")
    photos = by_label(tmp_path)
    assert photos["granny_smith_apple"].food == FOODS["apple"]  # a label of ImageNet
    assert photos["greek_salad"].food == FOODS["greek-salad"]
    assert photos["ours"].food == FOODS["hummus"]
    assert photos["pizza"].food == FOODS["caesar-salad"]
    assert photos["ours"].score == FOODS["hummus"].stars
    assert photos["ours"].group == FOODS["hummus"].group


def test_a_nutritionists_score_and_the_datas_group_come_first(tmp_path):
    make(tmp_path, {"a.jpg": 0, "b.jpg": 1, "c.jpg": 2, "d.jpg": 3})
    (tmp_path / "labels.csv").write_text(
        "image,class,score,group\na.jpg,pizza,5,lunch\nb.jpg,,2,\nc.jpg,not_food,,\nd.jpg,food,,\n"
    )
    photos = {photo.path.name: photo for photo in read_truths(tmp_path / "labels.csv", "all", MODELS).photos}
    assert (photos["a.jpg"].score, photos["a.jpg"].group) == (5, "lunch")
    assert (photos["b.jpg"].score, photos["b.jpg"].food, photos["b.jpg"].is_food) == (2, None, True)
    assert (photos["c.jpg"].score, photos["c.jpg"].is_food) == (0, False)
    assert (photos["d.jpg"].score, photos["d.jpg"].is_food) == (0, True)


def test_own_foods_count(tmp_path):
    make(tmp_path, {"stew/a.jpg": 0})
    header, _, rows = (TABLES / "foods.csv").read_text("utf-8").partition("\n")
    guacamole = next(row for row in rows.splitlines() if row.startswith("guacamole,"))
    own = guacamole.replace("guacamole,guacamole,", "stew-of-ours,stew of ours,", 1)
    (tmp_path / "foods.csv").write_text(f"{header}\n{own}\n")
    (tmp_path / "classes.csv").write_text("class,food\nstew,stew-of-ours\n")
    assert by_label(tmp_path)["stew"].food.name == "stew of ours"


def test_photos_count_once_and_not_under_two_labels(tmp_path):
    make(
        tmp_path,
        {"pizza/a.jpg": 0, "pizza/b.jpg": 0, "pizza/c.jpg": 1, "hummus/d.jpg": 1, "who knows/e.jpg": 2},
    )
    truths = read_truths(tmp_path, "all", MODELS)
    assert sorted(photo.path.name for photo in truths.photos) == ["a.jpg", "e.jpg"]
    once, twice, unknown = truths.warnings
    assert once.startswith("1 photos are there more than once")
    assert twice.startswith("1 photos are there under two labels")
    assert "who_knows" in unknown


def test_the_test_split_is_a_part_and_the_digest_is_of_everything(tmp_path):
    make(tmp_path, {f"pizza/{number}.jpg": number for number in range(60)})
    everything, test = (read_truths(tmp_path, split, MODELS) for split in ("all", "test"))
    assert 0 < len(test.photos) < len(everything.photos) == 60
    assert {photo.sha256 for photo in test.photos} < {photo.sha256 for photo in everything.photos}
    assert test.sha256 == everything.sha256
    (tmp_path / "pizza").rename(tmp_path / "hummus")
    assert read_truths(tmp_path, "test", MODELS).sha256 != test.sha256


def test_what_cannot_be_used_is_refused_in_words(tmp_path):
    make(tmp_path, {"pizza/a.jpg": 0})
    with pytest.raises(DatasetError, match="test split"):
        read_truths(tmp_path, "test", MODELS)
    (tmp_path / "classes.csv").write_text("class,food\npizza,no-such-food\n")
    with pytest.raises(DatasetError, match=r"classes\.csv:2: no food 'no-such-food'"):
        read_truths(tmp_path, "all", MODELS)
    (tmp_path / "classes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="header"):
        read_truths(tmp_path, "all", MODELS)


def test_a_photo_that_is_gone_is_left_out(tmp_path):
    make(tmp_path, {"a.jpg": 0})
    (tmp_path / "labels.csv").write_text("image,class\na.jpg,pizza\ngone.jpg,pizza\n")
    truths = read_truths(tmp_path / "labels.csv", "all", MODELS)
    assert len(truths.photos) == 1
    assert truths.warnings == ("1 photos cannot be read and are left out; the first: gone.jpg",)
