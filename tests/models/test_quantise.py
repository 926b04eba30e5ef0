from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from models import quantise
from models.build import build
from models.evaluation.answers import Answers
from models.manifest import Int8, load_manifest, parse_manifest
from models.quantise import calibration_photos, main, shift, with_section

MEALS = load_manifest("meals-lite2")
PLAIN = load_manifest("imagenet-lite0").source.read_text("utf-8")
INT8 = Int8(file="weights/x-1-int8.safetensors", sha256="ab" * 32, photos=700, cost={"score exact": -0.001})


@pytest.fixture
def data(tmp_path):
    """Twenty photos of two classes, one of them twice, and a file that is none."""
    for number in range(20):
        colour = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        path = tmp_path / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(colour).save(path)
    (tmp_path / "class-0" / "again.png").write_bytes((tmp_path / "class-0" / "0.png").read_bytes())
    (tmp_path / "class-1" / "none.jpg").write_text("not a photo")
    return tmp_path


def test_only_the_calibration_split_is_measured(data, monkeypatch):
    chosen = {(data / "class-0" / f"{number}.png").read_bytes() for number in (0, 2, 4)}
    chosen.add((data / "class-1" / "none.jpg").read_bytes())
    monkeypatch.setattr(quantise, "split_of", lambda content: "calibrate" if content in chosen else "test")
    photos = list(calibration_photos(data, MEALS))
    assert [photo.shape for photo in photos] == [(224, 224, 3)] * 3


def test_without_a_photo_to_calibrate_on_nothing_is_written(data, monkeypatch, capsys, models_dir):
    monkeypatch.setattr(quantise, "split_of", lambda _: "test")
    folder = build(MEALS, models_dir)
    monkeypatch.setattr(quantise, "build", lambda *_: folder)
    before = MEALS.source.read_bytes()
    with pytest.raises(SystemExit):
        main(["meals-lite2", "--data", str(data), "--models-dir", str(models_dir)])
    assert "no photo" in capsys.readouterr().err
    assert MEALS.source.read_bytes() == before


def test_the_section_goes_into_a_manifest_and_takes_the_place_of_an_older_one():
    once = with_section(PLAIN, INT8)
    assert parse_manifest(once, "model.toml").int8 == INT8
    newer = INT8.model_copy(update={"photos": 3, "cost": {}})
    twice = with_section(once, newer)
    assert parse_manifest(twice, "model.toml").int8 == newer
    assert with_section(twice, INT8) == once
    assert once.replace(once[once.index("[int8]") : once.index("[thresholds]")], "") == PLAIN  # comments too


def test_how_far_answers_moved():
    scores = np.eye(5)[[0, 2, 4, 4]]
    exact = Answers(
        (), (), np.zeros((4, 0)), np.ones(4), np.zeros((4, 0)), scores, np.ones(4, bool), np.ones(4, bool)
    )
    assert shift(exact, exact) == {"score moved": 0, "shown otherwise": 0}
    moved = replace(exact, scores=np.eye(5)[[1, 2, 4, 4]], scored=np.array([True, True, False, True]))
    assert shift(moved, exact) == {"score moved": 0.25, "shown otherwise": 0.5}
