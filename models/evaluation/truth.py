"""What is true of labelled photos: which food they show, and its score. Photos are read, not decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.food.foods import Food, load_foods, load_labels
from models.manifest import Manifest, available, load_manifest
from models.training.dataset import (
    FOOD,
    NOT_FOOD,
    DatasetError,
    Example,
    class_name,
    read_examples,
    split_of,
    stated_foods,
)

Chosen = Literal["test", "all"]
"""Photos to judge a model on: the test split, or all, where no photo was ever trained on."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A labelled photo.

    Attributes:
        path: its file.
        sha256: of its bytes, in hex.
        label: its class, FOOD, NOT_FOOD or None.
        group: what to sort it under: the data's own group, else the food's, else the label.
        food: what it shows; None where the class says nothing of it.
        score: 1–5: a nutritionist's, else the food's own; 0 where neither is known.
    """

    path: Path
    sha256: str
    label: str | None
    group: str
    food: Food | None
    score: int

    @property
    def is_food(self) -> bool:
        """What the gate should say."""
        return self.label != NOT_FOOD


@dataclass(frozen=True, slots=True)
class Truths:
    """The photos of one split, each once; ``sha256`` is of all the data and labels, whatever the split."""

    photos: tuple[Truth, ...]
    sha256: str
    warnings: tuple[str, ...]


def read_truths(source: Path, split: Chosen, manifests: Sequence[Manifest]) -> Truths:
    """The photos of a split of ``source`` (see ``read_examples``), and what is true of them.

    A class stands for the food that ``classes.csv`` beside the photos says; else for that of the label of
    this name, of the first of ``manifests`` that has one or of the project's own; else for the food of this
    id or name. As in training, the same photo counts once, and not at all under two labels.

    Raises:
        DatasetError: the data cannot be read, or no photo falls into the split.
        TableError, OSError: a table of foods or labels cannot be read.
    """
    examples = read_examples(source)
    foods = _foods_of_classes(source if source.is_dir() else source.parent, manifests)
    same: dict[str, list[Example]] = {}
    chosen: set[str] = set()
    unreadable: list[Path] = []
    for example in examples:
        try:
            data = example.path.read_bytes()
        except OSError:
            unreadable.append(example.path)
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        same.setdefault(sha256, []).append(example)
        if split in ("all", split_of(data)):
            chosen.add(sha256)
    clear = {sha256: found[0] for sha256, found in same.items() if len({*map(_labels, found)}) == 1}
    photos = tuple(_truth(sha256, example, foods) for sha256, example in clear.items() if sha256 in chosen)
    if not photos:
        raise DatasetError(f"none of the {len(examples)} photos of {source} is in the {split} split")
    content = sorted(
        f"{sha256} {_labels(example)} {food.id if (food := foods.get(example.label or '')) else ''}"
        for sha256, example in clear.items()
    )
    warnings = [*_warnings(unreadable, same, clear), *_unknown(photos)]
    return Truths(photos, hashlib.sha256("\n".join(content).encode()).hexdigest(), tuple(warnings))


def _truth(sha256: str, example: Example, foods: Mapping[str, Food]) -> Truth:
    food = foods.get(example.label or "")
    score = example.score or (food.stars if food else 0)
    group = example.group or (food.group if food else example.label or "unnamed")
    return Truth(example.path, sha256, example.label, group, food, score if example.is_food else 0)


def _labels(example: Example) -> tuple[str | None, int | None]:
    return example.label, example.score


def _foods_of_classes(folder: Path, manifests: Sequence[Manifest]) -> dict[str, Food]:
    foods: dict[str, Food] = {}
    labelled: dict[str, Food] = {}
    for manifest in (*manifests, *map(load_manifest, available())):
        own = load_foods(manifest.table(manifest.foods))
        foods = own | foods
        labels = load_labels(manifest.table(manifest.labels), own)
        labelled = {class_name(label.name): label.food for label in labels if label.food} | labelled
    if (table := folder / "foods.csv").is_file():
        foods |= load_foods(table)
    stated = {name: foods[food] for name, food in stated_foods(folder, foods).items()}
    named = {class_name(name): food for food in foods.values() for name in (food.id, food.name)}
    return named | labelled | stated


def _warnings(
    unreadable: Sequence[Path], same: Mapping[str, Sequence[Example]], clear: Mapping[str, Example]
) -> Iterator[str]:
    if unreadable:
        yield f"{len(unreadable)} photos cannot be read and are left out; the first: {unreadable[0].name}"
    if repeated := sum(len(same[sha256]) - 1 for sha256 in clear):
        yield f"{repeated} photos are there more than once and count once"
    if contradictory := len(same) - len(clear):
        yield f"{contradictory} photos are there under two labels and are left out"


def _unknown(photos: Iterable[Truth]) -> Iterator[str]:
    names = {photo.label for photo in photos if photo.food is None} - {FOOD, NOT_FOOD, None}
    if names:
        some = ", ".join(sorted(map(str, names))[:5])
        yield f"no food is known for {len(names)} classes, {some}: classes.csv beside the photos can name it"
