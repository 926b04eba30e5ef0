"""From a folder of photos to a model that can be registered, and what stops a run before it begins."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from app.food.foods import TableError
from models.build import weights_path
from models.manifest import MANIFEST, load_catalogue, read_manifest
from models.network import load_network
from models.registry import Registry
from models.training.dataset import DatasetError
from models.training.learning import Recipe
from models.training.run import FEWEST_NOT_FOOD, Options, train

COLOURS = {
    "pizza": (200, 60, 40),
    "apple_pie": (60, 180, 60),
    "Sushi": (50, 60, 210),
    "not_food": (90, 90, 90),
}
STARS = {"pizza": 1, "apple_pie": 3, "Sushi": 5}


def draw(path: Path, colour: tuple[int, int, int], number: int) -> None:
    noise = np.random.default_rng(number).integers(-40, 40, (64, 64, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos of each of three classes and of what is not food."""
    folder = tmp_path_factory.mktemp("photos")
    for label, colour in COLOURS.items():
        (folder / label).mkdir()
        for number in range(40):
            draw(folder / label / f"{number}.jpg", colour, hash((colour, number)) & 0xFFFF)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def options(
    data: Path, runs: Path, name: str = "canteen", base: str = "imagenet-lite0", **changes: int
) -> Options:
    return Options(
        data=data,
        name=name,
        version="1",
        licence="ours",
        base=base,
        recipe=Recipe(**({"epochs": 0, "sizes": (96,)} | changes)),  # type: ignore[arg-type]
        out=runs,
        registry=runs / "registry",
        device="cpu",
        threads=1,
        command="fooddx model train",
    )


@pytest.fixture(scope="module")
def canteen(photos: Path, runs: Path) -> Path:
    """The run folder of a model with heads alone."""
    return train(options(photos, runs), Console(quiet=True))


def answers(run: Path, photos: Path, label: str) -> torch.Tensor:
    """The logits for the photos of a class."""
    manifest = read_manifest(run / MANIFEST)
    network = load_network(manifest, weights_path(manifest))
    size = (manifest.input.size,) * 2
    pixels = [np.array(Image.open(path).resize(size)) for path in sorted((photos / label).iterdir())]
    with torch.inference_mode():
        return network(torch.from_numpy(np.stack(pixels)))


class TestClasses:
    def test_make_a_model_that_tells_them_apart_and_knows_what_is_no_food(self, canteen, photos):
        manifest = read_manifest(canteen / MANIFEST)
        catalogue = load_catalogue(manifest)
        assert [head.kind for head in manifest.heads] == ["classes", "gate"]
        assert (canteen / "labels.csv").read_text() == (
            "index,label,food\n0,apple_pie,apple-pie\n1,pizza,pizza\n2,sushi,sushi\n"
        )
        assert set(catalogue.names) == {"apple pie", "pizza", "sushi"}
        for place, label in enumerate(("apple_pie", "pizza", "Sushi")):
            logits = answers(canteen, photos, label)
            assert (logits[:, :3].argmax(1) == place).float().mean() > 0.9
            assert (logits[:, 3] > 0).float().mean() > 0.9
        assert (answers(canteen, photos, "not_food")[:, 3] < 0).float().mean() > 0.9

    def test_say_how_the_model_came_to_be(self, canteen):
        config = json.loads((canteen / "config.json").read_text())
        assert (config["command"], config["data"]["photos"]) == ("fooddx model train", 160)
        metrics = json.loads((canteen / "metrics.json").read_text())
        assert sum(metrics["photos"].values()) == 160
        assert metrics["heads alone"]["top1"] > 0.9
        training = read_manifest(canteen / MANIFEST).training
        assert (training["base"], training["epochs"]) == ("imagenet-lite0", 0)

    def test_come_with_foods_of_their_own(self, photos, runs, tmp_path):
        data = tmp_path / "data"
        data.mkdir()
        for label in ("pizza", "not_food"):
            (data / label).symlink_to(photos / label)
        (data / "wok_of_the_day").symlink_to(photos / "Sushi")
        with pytest.raises(DatasetError, match="no food is known for the class wok_of_the_day"):
            train(options(data, runs, "own"), Console(quiet=True))
        (data / "classes.csv").write_text("class,food\nWok of the day,pad-thai\n")
        run = train(options(data, runs, "own"), Console(quiet=True))
        assert set(load_catalogue(read_manifest(run / MANIFEST)).names) == {"pizza", "pad thai"}
        (data / "foods.csv").write_text("id,name\nx,y\n")
        with pytest.raises(TableError, match="columns must be"):
            train(options(data, runs, "own"), Console(quiet=True))


class TestFineTuning:
    def test_is_mixed_with_another(self, photos, runs, tmp_path):
        one, other = (
            train(options(photos, tmp_path / name, epochs=1, batch=32, seed=seed), Console(quiet=True))
            for name, seed in (("one", 1), ("other", 2))
        )
        again = dataclasses.replace(
            options(photos, tmp_path / "one", epochs=1, batch=32, seed=1), mix=(other,)
        )
        parts = [load_network(m := read_manifest(run / MANIFEST), weights_path(m)) for run in (one, other)]
        middle = train(again, Console(quiet=True))  # goes on from the end of the first, which it replaces
        manifest = read_manifest(middle / MANIFEST)
        mixed = load_network(manifest, weights_path(manifest)).state_dict()
        for name, tensor in mixed.items():
            mean = torch.stack([part.state_dict()[name].float() for part in parts]).mean(0)
            torch.testing.assert_close(tensor.float(), mean, rtol=2e-3, atol=2e-3)
        assert "mixed" in json.loads((middle / "metrics.json").read_text())

    def test_is_not_mixed_with_another_network(self, canteen, photos, tmp_path):
        wider = dataclasses.replace(options(photos, tmp_path, base="imagenet-lite2"), mix=(canteen,))
        with pytest.raises(ValueError, match="another network"):
            train(wider, Console(quiet=True))

    def test_goes_on_where_it_stopped_and_draws_its_curves(self, photos, runs):
        asked = options(photos, runs, "tuned", epochs=2, batch=32, frozen=8)
        run = train(asked, Console(quiet=True))
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [0, 1]
        assert (run / "curves.png").stat().st_size > 5_000
        before = (run / "weights.safetensors").read_bytes()
        train(asked, Console(quiet=True))  # from the checkpoint, at its end
        assert (run / "weights.safetensors").read_bytes() == before


class TestScores:
    def test_make_a_head_beside_the_classes_of_the_base(self, canteen, photos, runs, tmp_path):
        Registry(runs / "registry").register(canteen)
        table = tmp_path / "scores.csv"
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("image", "score"))
            for label, stars in STARS.items():
                rows.writerows((path, stars) for path in sorted((photos / label).iterdir()))
        run = train(options(table, runs, "scored", base="canteen@1"), Console(quiet=True))
        manifest = read_manifest(run / MANIFEST)
        assert [head.kind for head in manifest.heads] == ["classes", "gate", "score"]
        assert (run / "labels.csv").read_text() == (canteen / "labels.csv").read_text()
        for label, stars in STARS.items():
            found = 1 + torch.sigmoid(answers(run, photos, label)[:, 4:]).sum(1)
            assert (found - stars).abs().mean() < 0.6, label


class TestWhatCannotBe:
    @pytest.mark.parametrize(("name", "words"), [("Canteen", "name 'Canteen'"), ("a/b", "name 'a/b'")])
    def test_a_name_that_is_none(self, photos, runs, name, words):
        with pytest.raises(ValueError, match=words):
            options(photos, runs, name)

    def test_a_recipe_that_is_none(self, photos, runs):
        with pytest.raises(ValueError, match="epochs must be at least 0"):
            options(photos, runs, epochs=-1)

    def test_fine_tuning_on_scores_alone(self, photos, runs, tmp_path):
        table = tmp_path / "scores.csv"
        rows = [f"{path},{1 + place % 5}" for place, path in enumerate(sorted((photos / "pizza").iterdir()))]
        table.write_text("image,score\n" + "\n".join(rows))
        with pytest.raises(DatasetError, match="leave out --epochs"):
            train(options(table, runs, epochs=1), Console(quiet=True))

    def test_a_gate_of_nothing(self, photos, runs, tmp_path):
        for label in ("pizza", "Sushi"):
            (tmp_path / label).symlink_to(photos / label)
        with pytest.raises(DatasetError, match=f"fewer than {FEWEST_NOT_FOOD} photos of the class not_food"):
            train(options(tmp_path, runs), Console(quiet=True))
        with pytest.raises(DatasetError, match="fine-tuning needs at least"):
            train(options(tmp_path, runs, epochs=1), Console(quiet=True))
