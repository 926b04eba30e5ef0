"""From the models' probabilities to a score, dishes and tips, by the manifests and tables of models/."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from app.food.assessment import Assessment, Catalogue, Evidence, Thresholds, combine, read
from app.food.foods import load_foods, load_labels
from app.food.tips import Tip, TipContext, load_tips, rank
from app.messages import Scored
from app.schemas import ModelOut, ModelRef, Models, Profile
from models.manifest import TABLES, Manifest, load_manifest


class UnusableModelError(ValueError):
    """A model whose heads this service cannot turn into a score."""


class _Reader:
    """One model's output, read into evidence."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        foods = load_foods(TABLES / manifest.foods)
        self.catalogue = Catalogue(load_labels(TABLES / manifest.labels, foods))
        start = 0
        spans: dict[str, slice] = {}
        for head in manifest.heads:
            spans[head.kind] = slice(start, start + head.width)
            start += head.width
        if "classes" not in spans:
            raise UnusableModelError(f"{manifest.name}: a model needs a head of kind 'classes'")
        self._classes = spans["classes"]
        self._gate = spans.get("gate")

    def read(self, probabilities: NDArray[np.float32]) -> Evidence:
        gate = None if self._gate is None else float(probabilities[self._gate][0])
        return read(probabilities[self._classes], self.catalogue, gate)


class TableJudge:
    """Judges photos by the manifests' tables and thresholds. Immutable; ``adjusted`` gives a changed copy."""

    def __init__(self, names: Sequence[str], overrides: Mapping[str, float] | None = None) -> None:
        self._names = tuple(names)
        self._readers = [_Reader(load_manifest(name)) for name in names]
        self._tips = load_tips(TABLES / "tips.csv")
        # With several models the first one's thresholds count: they act on the average.
        own = self._readers[0].manifest.thresholds
        self.thresholds: Thresholds = dataclasses.replace(own, **dict[str, Any](overrides or {}))

    def adjusted(self, overrides: Mapping[str, float]) -> Self:
        """The same models under other thresholds.

        Raises:
            TypeError, ValueError: an unknown threshold, or one out of range.
        """
        return type(self)(self._names, overrides)

    @cached_property
    def model(self) -> ModelRef:
        """What a result is marked with: names and versions, joined by "+" where there are several models."""
        manifests = [reader.manifest for reader in self._readers]
        return ModelRef(
            name="+".join(m.name for m in manifests), version="+".join(m.version for m in manifests)
        )

    @cached_property
    def revision(self) -> str:
        """Models and thresholds: what must be equal for an analysis to be reused."""
        words = json.dumps(dataclasses.asdict(self.thresholds), sort_keys=True)
        return f"{self.model.name}@{self.model.version}#{hashlib.sha256(words.encode()).hexdigest()[:12]}"

    def assess(self, scored: Scored) -> Assessment:
        """Judge the probabilities of one photo."""
        outputs = zip(self._readers, scored.inference.probabilities, strict=True)
        return combine([reader.read(output) for reader, output in outputs], self.thresholds)

    def tips(self, context: TipContext, profile: Profile, seed: str) -> tuple[Tip, ...]:
        """Tips for this person and photo, best first; at least two."""
        return rank(self._tips, context, profile, seed)

    def describe(self) -> Models:
        """The models, for ``GET /v1/models``."""
        return Models(
            serving=self.model,
            models=tuple(
                ModelOut(
                    name=reader.manifest.name,
                    version=reader.manifest.version,
                    backbone=reader.manifest.backbone,
                    licence=reader.manifest.licence,
                    input_size=reader.manifest.input.size,
                    labels=reader.catalogue.classes,
                    foods=tuple(sorted(reader.catalogue.names)),
                    thresholds=dataclasses.asdict(self.thresholds),
                )
                for reader in self._readers
            ),
        )
