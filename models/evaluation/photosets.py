"""Figures on the photos of installed packages: quick to fetch, few, and no training data of ours.

They say that an export is right and what becomes of raw foods. How good a model is: figures.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.food.assessment import Assessment, Catalogue
from models.evaluation.answers import Figures, Subject, ask
from models.evaluation.baseline import BASE
from models.manifest import load_catalogue, load_manifest
from models.photos import Photo, PhotosUnavailable, gate_photos, imagenet_photos, raw_food_photos

IFCT_GROUPS = {
    "Fruits": "fruit",
    "Green Leafy Vegetables": "vegetable",
    "Mushrooms": "vegetable",
    "Other Vegetables": "vegetable",
}
"""IFCT groups that an ImageNet model can be asked for: it has no class for a fish on a plate, a grain or a
nut, and some photos of the groups left out show the animal."""


@dataclass(frozen=True)
class Seen:
    """What a model made of one photo."""

    truth: str
    labels: NDArray[np.float32]
    answer: Assessment


def fetch_photos(cache: Path, gate: Path | None, warn: Callable[[str], None]) -> dict[str, list[Photo]]:
    """The photo sets that can be had, and the folder ``gate`` if one is given (see ``gate_photos``)."""
    sets: dict[str, list[Photo]] = {}
    for photo_set, fetch in (("imagenet", imagenet_photos), ("raw foods", raw_food_photos)):
        try:
            sets[photo_set] = fetch(cache)
        except PhotosUnavailable as reason:
            warn(f"Skipped {photo_set}: {reason}")
    if gate:
        sets["gate"] = gate_photos(gate)
    return sets


def look(subject: Subject, photos: Sequence[Photo]) -> list[Seen]:
    """What a model makes of the photos that can be decoded."""
    kept, (answers,) = ask([subject], [photo.data for photo in photos])
    return [
        Seen(photos[place].truth, answer.classes, answer.assessment)
        for place, answer in zip(kept, answers, strict=True)
    ]


def imagenet_figures(seen: Sequence[Seen], catalogue: Catalogue) -> Figures:
    """Accuracy on ImageNet's classes, of a model that has them, and how often no food passes for food."""
    imagenet = load_catalogue(load_manifest(BASE))
    foods = set(imagenet.food_classes.tolist())
    known = seen if catalogue.classes == imagenet.classes else []
    ranked = [(int(one.truth), np.argsort(-one.labels)[:5].tolist()) for one in known]
    others = [one for one in seen if int(one.truth) not in foods]
    return {
        "photos": len(seen),
        "top1": _share(truth == best[0] for truth, best in ranked),
        "top5": _share(truth in best for truth, best in ranked),
        "non-food photos": len(others),
        "non-food taken for food": _share(one.answer.status != "not_food" for one in others),
    }


def raw_food_figures(seen: Sequence[Seen], _: Catalogue) -> Figures:
    """What becomes of raw foods: past the gate, into the right group, and with which scores."""
    figures: Figures = {"photos": len(seen), "gate recall": _share(_is_food(one) for one in seen)}
    known = [one for one in seen if one.truth in IFCT_GROUPS]
    for group in sorted(set(IFCT_GROUPS.values())):
        members = [one for one in known if IFCT_GROUPS[one.truth] == group]
        passed = [one for one in members if _is_food(one)]
        figures[f"{group} photos"] = len(members)
        figures[f"{group} gate recall"] = _share(_is_food(one) for one in members)
        figures[f"{group} in its group, of all"] = _share(one.answer.group == group for one in members)
        figures[f"{group} in its group, past the gate"] = _share(one.answer.group == group for one in passed)
    scores = [one.answer.score for one in known if one.answer.score is not None]
    figures |= {f"fruit and vegetables scored {score}": scores.count(score) for score in range(1, 6)}
    figures["fruit and vegetables to review"] = sum(one.answer.status == "needs_review" for one in known)
    return figures


def gate_figures(seen: Sequence[Seen], _: Catalogue) -> Figures:
    """The gate on labelled food / not_food photos, and how many of the foods a nutritionist would get."""
    foods = [one for one in seen if one.truth == "food"]
    others = [one for one in seen if one.truth == "not_food"]
    return {
        "food photos": len(foods),
        "not_food photos": len(others),
        "gate recall": _share(_is_food(one) for one in foods),
        "taken for food": _share(_is_food(one) for one in others),
        "to review, past the gate": _share(
            one.answer.status == "needs_review" for one in foods if _is_food(one)
        ),
    }


FIGURES: dict[str, Callable[[Sequence[Seen], Catalogue], Figures]] = {
    "imagenet": imagenet_figures,
    "raw foods": raw_food_figures,
    "gate": gate_figures,
}


def _is_food(one: Seen) -> bool:
    return one.answer.status != "not_food"


def _share(hits: Iterable[bool]) -> float | None:
    """The share of True; None of nothing at all."""
    found = list(hits)
    return sum(found) / len(found) if found else None
