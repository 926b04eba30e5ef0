"""Every figure of several models on the same photos: asks them, also with the photos corrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from models.evaluation.answers import Answers, Figures, Subject, ask
from models.evaluation.corruptions import CORRUPTIONS, Corruption, corrupted
from models.evaluation.figures import (
    class_figures,
    confusion_of_scores,
    confusions_of_foods,
    curves,
    figures,
    food_hits,
    group_figures,
    rounded,
    score_means,
    score_truth,
)
from models.evaluation.truth import Truth
from models.metrics import Difference, paired_difference

ROBUSTNESS_PHOTOS = 300
ROBUSTNESS_FIGURES = ("food top-1", "score within one", "gate recall")

Track = Callable[[Sequence[Truth], str], Iterable[Truth]]
"""Passes the photos on and shows how far it is; told what is being done."""


def measure(
    subjects: Mapping[str, Subject], photos: Sequence[Truth], track: Track
) -> tuple[dict[str, dict[str, Any]], int]:
    """Every figure of the models, by the models' names; and how many of the photos could be decoded.

    What a model's figures are is in figures.py; "against the first" are differences to the first
    model on the same photos, and "robustness" a few figures under each corruption.
    """
    kept, answers = answers_to([*subjects.values()], photos, track)
    robust = _robustness([*subjects.values()], kept, track)
    found: dict[str, dict[str, Any]] = {}
    for (name, subject), own, robustness in zip(subjects.items(), answers, robust, strict=True):
        manifest = subject.manifest
        found[name] = {
            "model": {
                "name": manifest.name,
                "version": manifest.version,
                "classes": len(subject.names),
                "foods": len(subject.foods),
                "thresholds": asdict(manifest.thresholds),
                "training": dict(manifest.training),
            },
            "overall": figures(kept, own),
            "against the first": _against(kept, own, answers[0]),
            "groups": group_figures(kept, own),
            "robustness": robustness,
            "speed": {key: rounded(value) for key, value in subject.speed().items()},
            "classes": class_figures(kept, own),
            "confusion": confusion_of_scores(kept, own),
            "worst confusions": [one._asdict() for one in confusions_of_foods(kept, own)],
            "curves": curves(kept, own),
        }
    return found, len(kept)


def answers_to(
    subjects: Sequence[Subject],
    photos: Sequence[Truth],
    track: Track = lambda photos, _: photos,
    corruption: Corruption | None = None,
) -> tuple[list[Truth], list[Answers]]:
    """The photos that can be decoded, and each model's answers to them."""
    tracked = track(photos, f"Photos, {corruption.name}" if corruption else "Photos")
    files = (photo.path.read_bytes() for photo in tracked)
    kept, found = ask(subjects, (corrupted(file, corruption) for file in files) if corruption else files)
    answers = [subject.answers(own) for subject, own in zip(subjects, found, strict=True)]
    return [photos[place] for place in kept], answers


def error_difference(photos: Sequence[Truth], mine: Answers, theirs: Answers) -> Difference:
    """By how much the score's absolute error differs, on the photos whose score is known."""
    truth = score_truth(photos)
    known = truth > 0
    errors = [np.abs(score_means(answers) - truth)[known] for answers in (mine, theirs)]
    return paired_difference(*errors)


def _robustness(
    subjects: Sequence[Subject], photos: Sequence[Truth], track: Track
) -> list[dict[str, Figures]]:
    # The same photos whatever else is in the data: the first by their hash.
    known = [photo for photo in photos if photo.score]
    chosen = sorted(known, key=lambda photo: photo.sha256)[:ROBUSTNESS_PHOTOS]
    found: list[dict[str, Figures]] = [{} for _ in subjects]
    for corruption in CORRUPTIONS:
        kept, answers = answers_to(subjects, chosen, track, corruption)
        for own, robust in zip(answers, found, strict=True):
            everything = figures(kept, own)
            robust[corruption.name] = {key: everything[key] for key in ("photos", *ROBUSTNESS_FIGURES)}
    return found


def _against(photos: Sequence[Truth], mine: Answers, first: Answers) -> Figures:
    """How far a model is from the first one on the same photos, with 95 % bootstrap intervals."""
    hits = [food_hits(photos, answers) for answers in (mine, first)]
    known = ~np.isnan(hits[0])
    found: Figures = {}
    for name, (mean, low, high) in {
        "score error": error_difference(photos, mine, first),
        "food top-1": paired_difference(*(hit[known] for hit in hits)),
    }.items():
        found |= {name: rounded(mean), f"{name}, low": rounded(low), f"{name}, high": rounded(high)}
    return found
