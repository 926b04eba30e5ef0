"""Labelled photos to train and evaluate on: a folder of class folders, or a CSV. Knows no torch.

Three splits by the hash of a photo's bytes. A photo is therefore always on the same side, whatever it is
called, whichever model is trained, and whatever else is added later: what a serving model was trained on
never becomes what its successor is compared on.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from app.errors import FoodDXError
from app.imaging.decode import decode
from app.imaging.guards import ImageLimits, inspect
from app.imaging.inputs import InputSpec

Split = Literal["train", "calibrate", "test"]

FOOD, NOT_FOOD = "food", "not_food"
"""Classes that say no more than that: they teach the gate alone."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif", ".avif"}
)
"""Files of a folder that are meant as photos; those that cannot be read are counted and named."""
CALIBRATE_SHARE, TEST_SHARE = 0.06, 0.10
FEWEST = 5
"""Below this many photos of a class (or of a score) a warning says that nothing can be learnt of it."""
MOST_UNREADABLE = 0.2
"""With a larger share of photos that cannot be read, the data is taken to be broken."""


class DatasetError(ValueError):
    """The labels cannot be trained on; the text says which line or folder, and what to do."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled photo: ``label`` is a class, FOOD, NOT_FOOD or None; ``score`` is 1–5 or None."""

    path: Path
    label: str | None
    score: int | None = None
    group: str = ""

    @property
    def is_food(self) -> bool:
        """What the gate should say of it."""
        return self.label != NOT_FOOD


@dataclass(frozen=True, slots=True)
class Photos:
    """Decoded photos and their labels, in one order.

    ``pixels`` is uint8 (N, side, side, 3), RGB. What was left out is told by ``warnings``.
    """

    examples: tuple[Example, ...]
    pixels: NDArray[np.uint8]
    splits: tuple[Split, ...]
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def where(self, split: Split) -> NDArray[np.intp]:
        """The places of the photos of one split."""
        return np.flatnonzero(np.array(self.splits) == split)


def read_examples(source: Path) -> list[Example]:
    """The labels in ``source``: a CSV, a folder with a ``manifest.csv``, or a folder of class folders.

    A CSV has a header with ``image`` (or ``path``), relative to the CSV, and ``class``, ``score`` (1–5) or
    both; ``group`` only sorts the report. Photos are not opened yet.

    Raises:
        DatasetError: what is wrong, with the line or the folder.
    """
    if not source.exists():
        raise DatasetError(f"{source} does not exist")
    if source.is_file():
        return _read_csv(source)
    if (table := source / "manifest.csv").is_file():
        return _read_csv(table)
    examples = [
        Example(path, class_name(folder.name))
        for folder in sorted(source.iterdir())
        if folder.is_dir()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not examples:
        raise DatasetError(
            f"{source} holds no photos: make one folder per class with photos in it, or give a CSV"
        )
    return examples


def _read_csv(table: Path) -> list[Example]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            columns = set(rows.fieldnames or ())
            image = next((name for name in ("image", "path") if name in columns), None)
            if image is None or not columns & {"class", "score"}:
                raise DatasetError(
                    f"{table.name}:1: the header must name image, and class or score; "
                    f"it is {','.join(rows.fieldnames or ()) or 'empty'}"
                )
            return [_example(table, rows.line_num, row, image) for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{table.name} is not a CSV in UTF-8: {error}") from None


def _example(table: Path, line: int, row: dict[str, str | None], image: str) -> Example:
    where = f"{table.name}:{line}"
    if None in row or None in row.values():
        raise DatasetError(f"{where}: another number of cells than the header has")
    cells = {key: (value or "").strip() for key, value in row.items()}
    label, score = cells.get("class") or None, cells.get("score") or None
    if not cells[image] or (label is None and score is None):
        raise DatasetError(f"{where}: image, or both class and score, are empty")
    if score is not None and score not in {"1", "2", "3", "4", "5"}:
        raise DatasetError(f"{where}: score must be 1, 2, 3, 4 or 5, not {score!r}")
    return Example(
        path=table.parent / cells[image],
        label=class_name(label) if label else None,
        score=int(score) if score else None,
        group=cells.get("group") or "",
    )


def stated_foods(folder: Path, foods: Collection[str]) -> dict[str, str]:
    """The food of each class by ``classes.csv`` (class,food) in ``folder``; empty where there is none.

    Raises:
        DatasetError: another header, or a food that is not one of ``foods``.
    """
    if not (table := folder / "classes.csv").is_file():
        return {}
    stated = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"class", "food"} <= {*(rows.fieldnames or ())}:
            raise DatasetError(f"{table.name}:1: the header must name class and food")
        for row in rows:
            food = (row["food"] or "").strip()
            if food and food not in foods:
                near = get_close_matches(food, foods, 3)
                raise DatasetError(
                    f"{table.name}:{rows.line_num}: no food {food!r} in the food table"
                    + (f"; near it are {', '.join(near)}" if near else "")
                )
            if food:
                stated[class_name(row["class"] or "")] = food
    return stated


def class_name(written: str) -> str:
    """One spelling for "Apple pie", "apple-pie" and "apple_pie"."""
    return "_".join(written.lower().replace("-", " ").replace("_", " ").split())


def labels_digest(examples: Sequence[Example]) -> str:
    """SHA-256 of what the photos are called and labelled, hex: the same labels, the same run."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.path.name} {example.label} {example.score}\n".encode())
    return digest.hexdigest()


def split_of(data: bytes) -> Split:
    """Which split a photo with these bytes belongs to, for ever."""
    place = int.from_bytes(hashlib.sha256(b"fooddx split 1" + data).digest()[:4]) / 2**32
    if place < TEST_SHARE:
        return "test"
    return "calibrate" if place < TEST_SHARE + CALIBRATE_SHARE else "train"


def load_photos(examples: Sequence[Example], side: int, progress: Iterable[int] | None = None) -> Photos:
    """Decode the photos as the service does: upright, the centre square, ``side`` × ``side``.

    Left out, with a warning: what cannot be read, the same photo again, and a photo that is there under two
    labels. ``progress`` is iterated along: it gives 0, 1, 2 … once per example.

    Raises:
        DatasetError: too few photos or classes remain, or too many were unreadable.
    """
    spec = InputSpec(side, 1.0)
    pixels = np.empty((len(examples), side, side, 3), np.uint8)
    splits: list[Split | None] = [None] * len(examples)
    first: dict[bytes, int] = {}
    unreadable: list[str] = []
    repeated = contradictory = 0
    for place in progress or range(len(examples)):
        example = examples[place]
        try:
            data = example.path.read_bytes()
            seen = first.setdefault(hashlib.sha256(data).digest(), place)
            if seen != place:
                repeated += 1
                known = examples[seen]
                if splits[seen] and (known.label, known.score) != (example.label, example.score):
                    contradictory += 1
                    splits[seen] = None
                continue
            pixels[place] = decode(data, inspect(data, ImageLimits()), [spec]).pixels[0]
            splits[place] = split_of(data)
        except (OSError, FoodDXError) as error:
            detail = error.detail if isinstance(error, FoodDXError) else error.strerror or "cannot be read"
            unreadable.append(f"{example.path.name}: {detail}")
    kept = [place for place, split in enumerate(splits) if split]
    if len(unreadable) > MOST_UNREADABLE * len(examples):
        raise DatasetError(
            f"{len(unreadable)} of {len(examples)} photos cannot be read; the first: {unreadable[0]}"
        )
    photos = Photos(
        examples=tuple(examples[place] for place in kept),
        pixels=pixels if len(kept) == len(examples) else pixels[kept],
        splits=tuple(split for split in splits if split),
        warnings=(),
    )
    _check_enough(photos)
    warnings = _warnings(photos.examples, unreadable, repeated, contradictory)
    return replace(photos, warnings=tuple(warnings))


def _check_enough(photos: Photos) -> None:
    labels = {example.label for example in photos.examples} - {FOOD, NOT_FOOD, None}
    scores = {example.score for example in photos.examples} - {None}
    if len(labels) == 1:
        raise DatasetError(f"there is one class only, {labels.pop()}: a model needs something to tell apart")
    if not labels and len(scores) < 2:
        raise DatasetError("there are neither two classes nor two different scores to tell apart")
    for split in get_args(Split):
        if split not in photos.splits:
            raise DatasetError(f"{len(photos)} photos are too few: none falls into the {split} split")


def _warnings(
    examples: Sequence[Example], unreadable: Sequence[str], repeated: int, contradictory: int
) -> Iterator[str]:
    if unreadable:
        yield f"{len(unreadable)} photos cannot be read and are left out; the first: {unreadable[0]}"
    if repeated:
        yield f"{repeated} photos are there more than once and count once"
    if contradictory:
        yield f"{contradictory} photos are there under two labels and are left out"
    counts = Counter(example.label for example in examples if example.label)
    for label, count in sorted(counts.items()):
        if count < FEWEST:
            yield f"class {label} has {count} photos: too few to learn it from"
