"""From the models' probabilities to a score, dishes and tips, by the manifests and tables of models/."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from app.errors import ScorerUnavailable
from app.food.assessment import Assessment, Evidence, Thresholds, combine, read
from app.food.foods import Food, TableError
from app.food.tips import Tip, TipContext, load_tips, rank
from app.messages import Scored
from app.schemas import FoodOut, ModelOut, ModelRef, Models, Profile
from app.telemetry import logger
from models.manifest import TABLES, Manifest, ManifestError, load_catalogue, load_manifest

# A judge holds the tables of its models, about a megabyte.
_JUDGES_KEPT: Final = 64


class _Reader:
    """One model's output, read into evidence."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.catalogue = load_catalogue(manifest)
        self._classes = cast(slice, manifest.columns("classes"))  # every manifest has such a head
        self._gate = manifest.columns("gate")
        self._score = manifest.columns("score")
        tables = (manifest.table(manifest.labels), manifest.table(manifest.foods))
        self.tables = hashlib.sha256(b"".join(table.read_bytes() for table in tables)).hexdigest()

    def foods(self) -> tuple[FoodOut, ...]:
        known = zip(self.catalogue.foods, self.catalogue.labels, strict=True)
        return tuple(_described(food, classes) for food, classes in sorted(known, key=lambda k: k[0].name))

    def read(self, probabilities: NDArray[np.float32]) -> Evidence:
        gate = None if self._gate is None else float(probabilities[self._gate][0])
        scores = None if self._score is None else probabilities[self._score]
        return read(probabilities[self._classes], self.catalogue, gate, scores)


def _described(food: Food, classes: tuple[str, ...]) -> FoodOut:
    found = food.nutriscore
    return FoodOut(
        name=food.name,
        classes=classes,
        score=food.stars,
        grade=found.grade,
        points=found.points,
        category=food.category.value,
        components=found.negative | {name: -points for name, points in found.positive.items()},
        per_100=dataclasses.asdict(food.nutrients),
        sources=tuple(
            f"{source.share:.0%} FDC {source.fdc_id}: {source.description} ({source.fdc_type})"
            for source in food.sources
        ),
    )


class TableJudge:
    """Judges photos by the manifests' tables and thresholds. Immutable."""

    def __init__(
        self,
        models: Sequence[str],
        overrides: Mapping[str, float] | None = None,
        *,
        registry: Path | None = None,
    ) -> None:
        """Read the manifests and tables.

        Args:
            models: what the models are called, see models/manifest.py.
            overrides: thresholds over the first model's own, by name.
            registry: folder of the registered models.

        Raises:
            ManifestError, TableError: a model that does not exist, or cannot be read.
            TypeError, ValueError: an unknown threshold, or one out of range.
        """
        self.models = tuple(models)
        self._registry = registry
        self._readers = [_Reader(load_manifest(ref, registry)) for ref in models]
        self._tips = load_tips(TABLES / "tips.csv")
        # With several models the first one's thresholds count: they act on the average.
        own = self._readers[0].manifest.thresholds
        self.thresholds: Thresholds = dataclasses.replace(own, **dict[str, Any](overrides or {}))
        operator.index(self.thresholds.dishes)  # half a dish would fail only at the first photo

    def adjusted(self, overrides: Mapping[str, float]) -> Self:
        """The same models under other thresholds; raises as above."""
        return type(self)(self.models, overrides, registry=self._registry)

    @cached_property
    def model(self) -> ModelRef:
        """What a result is marked with: names and versions, joined by "+" where there are several models."""
        manifests = [reader.manifest for reader in self._readers]
        return ModelRef(
            name="+".join(m.name for m in manifests), version="+".join(m.version for m in manifests)
        )

    @cached_property
    def revision(self) -> str:
        """Models, tables and thresholds: what must be equal for an analysis to be reused."""
        tables = [reader.tables for reader in self._readers]
        words = json.dumps([dataclasses.asdict(self.thresholds), tables], sort_keys=True)
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
                    foods=reader.foods(),
                    thresholds=dataclasses.asdict(self.thresholds),
                )
                for reader in self._readers
            ),
        )


class Judges:
    """Each tenant's judge: of the models that serve, or of those that are the tenant's own.

    Attributes:
        serving: of everybody who has no models of its own; may be replaced while requests run.
    """

    def __init__(
        self,
        serving: TableJudge,
        models_of: Callable[[str], tuple[str, ...]],
        *,
        registry: Path | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            serving: see above.
            models_of: by tenant's id, the models of its own, or none.
            registry: folder of the registered models.
        """
        self.serving = serving
        self._models_of = models_of
        self._read = functools.lru_cache(maxsize=_JUDGES_KEPT)(
            functools.partial(TableJudge, registry=registry)
        )

    async def of(self, tenant: str) -> TableJudge:
        """The tenant's judge.

        Raises:
            ScorerUnavailable: its models are not on this node, or cannot be read.
        """
        models = self._models_of(tenant)
        if not models or models == self.serving.models:
            return self.serving
        try:
            return await asyncio.to_thread(self._read, models)
        except (ManifestError, TableError):
            logger.exception("models cannot be loaded", extra={"models": list(models)})
            raise ScorerUnavailable("The models of this tenant are not here yet.", retry_after_s=1) from None
