"""From the models' probabilities to a score, dishes and tips, by the manifests and tables of models/."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from app.food.assessment import Assessment, Evidence, Thresholds, combine, read
from app.food.tips import Tip, TipContext, load_tips, rank
from app.messages import Scored
from app.schemas import ModelOut, ModelRef, Models, Profile
from models.manifest import TABLES, Manifest, load_catalogue, load_manifest


class _Reader:
    """One model's output, read into evidence."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.catalogue = load_catalogue(manifest)
        self._classes = cast(slice, manifest.columns("classes"))  # every manifest has such a head
        self._gate = manifest.columns("gate")

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
        operator.index(self.thresholds.dishes)  # half a dish would fail only at the first photo

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
