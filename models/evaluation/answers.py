"""What models answer to photos, by the path that serves them: imaging → engine → assessment."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from app.engines import Device, Engine, Pixels, create_engine
from app.engines.inputs import input_spec, input_specs
from app.errors import FoodDXError
from app.food.assessment import Assessment, Evidence, combine, read
from app.food.foods import Food, load_foods, load_labels
from app.imaging.guards import ImageLimits
from app.imaging.prepare import prepare
from models.manifest import Manifest, load_catalogue

Floats = NDArray[np.float64]
Figures = dict[str, float | int | None]

BATCHES = (1, 8, 32)
_CHUNK = 32


class Answer(NamedTuple):
    """One photo's: the probabilities of the classes (C,), what they were read as, and what would be shown."""

    classes: NDArray[np.float32]
    evidence: Evidence
    assessment: Assessment


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model made of N photos.

    Attributes:
        names: of its C classes.
        foods: the F distinct foods that it knows.
        classes: (N, C), the probabilities of the classes.
        p_food: (N,), P(food).
        shares: (N, F), the foods' shares, given that the photo is food; all 0 where it saw none at all.
        scores: (N, 5), the distribution of the score, given that the photo is food, whatever the gate says;
            five times 0.2 where it saw no food at all.
        passed: bool (N,), whether the gate lets it pass as food.
        scored: bool (N,), whether the service would show a score.
    """

    names: tuple[str, ...]
    foods: tuple[Food, ...]
    classes: Floats
    p_food: Floats
    shares: Floats
    scores: Floats
    passed: NDArray[np.bool_]
    scored: NDArray[np.bool_]

    def __getitem__(self, places: NDArray[Any]) -> Answers:
        arrays = (self.classes, self.p_food, self.shares, self.scores, self.passed, self.scored)
        return Answers(self.names, self.foods, *(array[places] for array in arrays))


class Subject:
    """A model under evaluation.

    Attributes:
        engine: with one thread on a CPU.
        load_ms: how long loading took, with the self-test.
        megabytes: of what the engine loads.
    """

    def __init__(self, manifest: Manifest, artefacts: Path, device: Device) -> None:
        started = time.perf_counter()
        self.engine: Engine = create_engine(device, manifest, artefacts, threads=1)
        self.load_ms = 1000 * (time.perf_counter() - started)
        files = ("weights.safetensors",) if device == "cuda" else ("model.xml", "model.bin")
        self.megabytes = sum((artefacts / file).stat().st_size for file in files) / 1e6
        self.manifest = manifest
        self.catalogue = load_catalogue(manifest)
        labels = load_labels(manifest.table(manifest.labels), load_foods(manifest.table(manifest.foods)))
        foods = {label.food.name: label.food for label in labels if label.food}
        self.names = tuple(label.name for label in labels)
        self.foods = tuple(foods[name] for name in self.catalogue.names)

    def answer(self, pixels: Pixels) -> Iterator[Answer]:
        """The answer to each of the photos, uint8 (N, size, size, 3), as the service would give it."""
        manifest = self.manifest
        classes, gate, score = (manifest.columns(kind) for kind in ("classes", "gate", "score"))
        for row in self.engine.predict(pixels):
            found = row[cast(slice, classes)]  # every manifest has such a head
            p_food = None if gate is None else float(row[gate][0])
            evidence = read(found, self.catalogue, p_food, None if score is None else row[score])
            yield Answer(found, evidence, combine([evidence], manifest.thresholds))

    def answers(self, answers: Sequence[Answer]) -> Answers:
        """Answers to one photo each, as arrays."""
        evidence = [answer.evidence for answer in answers]
        status = np.array([answer.assessment.status for answer in answers], dtype=np.str_)
        seen = np.array([one.shares.any() for one in evidence], dtype=np.bool_)
        scores = np.array([one.traits[:5] for one in evidence], np.float64).reshape(-1, 5)
        return Answers(
            self.names,
            self.foods,
            np.array([answer.classes for answer in answers], np.float64).reshape(-1, len(self.names)),
            np.array([one.food_probability for one in evidence], np.float64),
            np.array([one.shares for one in evidence], np.float64).reshape(-1, len(self.foods)),
            np.where(seen[:, None], scores, 0.2),
            status != "not_food",
            status == "scored",
        )

    def speed(self) -> Figures:
        """Size on disk; milliseconds: loading, and per image in batches (median of at least 10)."""
        size = self.engine.input_size
        figures: Figures = {"MB on disk": self.megabytes, "load ms": self.load_ms}
        for batch in BATCHES:
            pixels = np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
            times = []
            for _ in range(max(10, 64 // batch)):
                started = time.perf_counter()
                self.engine.predict(pixels)
                times.append(time.perf_counter() - started)
            figures[f"ms per image, batch {batch}"] = 1000 * median(times) / batch
        return figures


def ask(subjects: Sequence[Subject], photos: Iterable[bytes]) -> tuple[list[int], list[list[Answer]]]:
    """Every model's answers to the photos that can be decoded.

    Each photo is decoded once for all models, and only a few are held at a time.

    Args:
        subjects: the models.
        photos: the photos' files; they may be read as they are asked for.

    Returns:
        The places of the photos that could be decoded, and for each subject its answers to those.
    """
    manifests = [subject.manifest for subject in subjects]
    specs = input_specs(manifests)
    columns = [specs.index(input_spec(manifest)) for manifest in manifests]
    kept: list[int] = []
    found: list[list[Answer]] = [[] for _ in subjects]
    remaining = enumerate(photos)
    while chunk := list(islice(remaining, _CHUNK)):
        pixels = []
        for place, data in chunk:
            try:
                pixels.append(prepare(data, ImageLimits(), specs).pixels)
            except FoodDXError:
                continue
            kept.append(place)
        if not pixels:
            continue
        for subject, column, own in zip(subjects, columns, found, strict=True):
            own.extend(subject.answer(np.stack([photo[column] for photo in pixels])))
    return kept, found
