import io
import json
import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.food.foods import load_foods
from models.evaluation.answers import Answers
from models.evaluation.corruptions import CORRUPTIONS
from models.evaluation.figures import (
    class_figures,
    confusion_of_scores,
    confusions_of_foods,
    curves,
    figures,
    group_figures,
)
from models.evaluation.pictures import DARK, class_bars, png, score_confusions
from models.evaluation.report import report
from models.evaluation.truth import Truth
from models.manifest import TABLES
from models.training.dataset import NOT_FOOD

FOODS = tuple(load_foods(TABLES / "foods.csv").values())


def truths(classes, count):
    draw = np.random.default_rng(0)
    photos = []
    for number in range(count):
        food = FOODS[number % classes]
        photos.append(Truth(Path("a.jpg"), str(number), food.id, food.group, food, food.stars))
        if draw.random() < 0.1:
            photos.append(Truth(Path("a.jpg"), str(number), NOT_FOOD, "gate", None, 0))
    return photos


def guesses(photos, classes, sharpness, seed):
    """A model of random guesses, the better the sharper."""
    draw = np.random.default_rng(seed)
    known = FOODS[:classes]
    place = {food.id: index for index, food in enumerate(known)}
    logits = draw.normal(0, 1, (len(photos), classes))
    for row, photo in zip(logits, photos, strict=True):
        if photo.food:
            row[place[photo.food.id]] += sharpness * draw.exponential()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p_food = 1 / (1 + np.exp(-draw.normal([5 if photo.is_food else -2 for photo in photos], 2)))
    scores = shares @ [[food.stars == stars for stars in range(1, 6)] for food in known]
    spread = np.sqrt(scores @ np.arange(1, 6) ** 2 - (scores @ np.arange(1, 6)) ** 2)
    passed = p_food >= 0.5
    names = tuple(food.id for food in known)
    return Answers(names, known, shares, p_food, shares, scores, passed, passed & (spread < 1))


def result(photos, own):
    """What ``measure`` makes of one model, but for the differences and speeds."""
    everything = figures(photos, own)
    kept = ("photos", "food top-1", "score within one", "gate recall")
    zero = dict.fromkeys(("score error", "food top-1"), -0.125)
    bounds = {f"{name}, {end}": value for name in zero for end, value in (("low", -0.2), ("high", 0.0))}
    return {
        "model": {"name": "m", "version": "1", "classes": 3, "foods": 3, "thresholds": {}, "training": {}},
        "overall": everything,
        "against the first": zero | bounds,
        "groups": group_figures(photos, own),
        "robustness": {one.name: {key: everything[key] for key in kept} for one in CORRUPTIONS},
        "speed": {"load ms": 80.0, "ms per image, batch 1": 2.5},
        "classes": class_figures(photos, own),
        "confusion": confusion_of_scores(photos, own),
        "worst confusions": [one._asdict() for one in confusions_of_foods(photos, own)],
        "curves": curves(photos, own),
    }


def drawn(names, classes=5, count=60):
    photos = truths(classes, count)
    data = {
        "source": "<photos>", "split": "test", "sha256": "0" * 64, "photos": len(photos),
        "photos that cannot be decoded": 2, "groups": {"dish": 3}, "warnings": ["one & two"],
    }  # fmt: skip
    models = {
        name: result(photos, guesses(photos, classes, 8 - 2 * place, place))
        for place, name in enumerate(names)
    }
    record = {
        "command": "python -m models.evaluate --data '<photos>'", "date": "2026-11-21T12:00:00+00:00",
        "machine": {"cpu": "a", "logical cores": 2}, "versions": {"python": "3.11"}, "data": data,
        "models": models,
    }  # fmt: skip
    return json.loads(json.dumps(record))  # as it comes back from evaluation.json


@pytest.fixture(scope="module")
def page():
    return report(drawn(["<first>", "second"]))


def test_the_page_stands_alone_and_escapes_what_it_was_given(page):
    assert not re.search(r"https?:|//|@import|<script|<link", re.sub(r"base64,[\w+/=]+", "", page))
    assert "<first>" not in page
    assert "<photos>" not in page
    assert "&lt;first&gt;" in page
    assert "one &amp; two" in page


def test_every_picture_is_there_for_light_and_dark_with_words_for_who_cannot_see_it(page):
    light = re.findall(r'<img src="data:image/png;base64,([^"]+)" width="\d+" alt="[^"]{40,}">', page)
    dark = re.findall(
        r'<source media="\(prefers-color-scheme: dark\)" srcset="data:image/png;base64,([^"]+)">', page
    )
    assert len(light) == len(dark) == 6
    for one, other in zip(light, dark, strict=True):
        assert one != other
        assert Image.open(io.BytesIO(b64decode(one))).getpixel((0, 0))[3] == 0  # the page shows through


def test_the_tables_hold_the_figures(page):
    overall = drawn(["<first>", "second"])["models"]["second"]["overall"]
    cells = re.search(r"<tr[^>]*><td>food top-1</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    assert cells[2] == f"{100 * overall['food top-1']:.1f} %"
    assert "<td>–</td><td>-0.125 (-0.200 … +0.000)</td>" in page


def test_a_hundred_and_forty_classes_and_five_models_fit():
    results = drawn(list("abcde"), classes=140, count=280)["models"]
    for draw in (class_bars, score_confusions):
        width, height = Image.open(io.BytesIO(png(draw, results, DARK))).size
        assert (width < 1600, height < 1400) == (True, True)


def test_nothing_measured_is_still_a_page(monkeypatch):
    monkeypatch.setattr("models.evaluation.report.png", lambda draw, *given: bytes(len(draw(*given).axes)))
    photos = [Truth(Path("a.jpg"), "0", "food", "dish", None, 0)]
    record = drawn(["only"])
    record["models"]["only"] = json.loads(json.dumps(result(photos, guesses(photos, 3, 1, 0))))
    page = report(record)
    assert page.count("<picture>") == 6
    assert "<td>food top-1</td><td>–</td>" in page
