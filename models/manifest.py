"""The manifest: everything that defines a model, in one TOML file under ``models/manifests``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from app.food.assessment import Catalogue, Thresholds
from app.food.foods import load_foods, load_labels
from models.heads import Head, Kind

MODELS = Path(__file__).parent
MANIFESTS = MODELS / "manifests"
TABLES = MODELS / "tables"

Table = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+\.csv$")]
# Names and versions become folder names and parts of Redis keys.
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]


class ManifestError(ValueError):
    """A manifest is missing, cannot be read, or says something that is not allowed."""


class _Part(BaseModel):
    """Immutable; a misspelt key is an error, and a string is never taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Part):
    """Where the weights come from: a file inside an installed package or, without one, under ``models/``."""

    package: str | None = None
    file: Annotated[str, StringConstraints(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*\.(pth|safetensors)$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModelInput(_Part):
    """A centre crop with ``crop_fraction`` of the shorter side, resized to ``size`` × ``size`` RGB bytes.

    The network sees ``(byte - mean) / std``; ``mean`` and ``std`` are in bytes (0…255).
    """

    size: Annotated[int, Field(ge=32, le=1024)]
    crop_fraction: Annotated[float, Field(gt=0, le=1)]
    interpolation: Literal["bicubic", "bilinear"]
    mean: Annotated[float, Field(ge=0, le=255)]
    std: Annotated[float, Field(gt=0, le=255)]


class Manifest(_Part):
    """One version of one model.

    ``labels`` and ``foods`` name tables under ``models/tables``: what each class of the one "classes" head
    is called, and the foods the classes stand for. ``temperature`` divides the logits (see ``models.heads``).
    ``thresholds`` act on probabilities, so that a new value needs no new build.
    """

    name: Slug
    version: Slug
    backbone: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    licence: str
    labels: Table
    foods: Table
    temperature: Annotated[float, Field(gt=0)]
    weights: Weights
    input: ModelInput
    heads: Annotated[tuple[Head, ...], Field(min_length=1)]
    thresholds: Thresholds

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({head.name for head in self.heads}) < len(self.heads):
            raise ValueError("two heads have the same name")
        if [head.kind for head in self.heads].count("classes") != 1:
            raise ValueError('exactly one head must be of kind "classes"')
        missing = [table for table in (self.labels, self.foods) if not (TABLES / table).is_file()]
        if missing:
            raise ValueError(f"no table {missing[0]}")
        return self

    @property
    def folder(self) -> str:
        """Name of the folder that holds what was built of this version."""
        return f"{self.name}-{self.version}"

    @property
    def logits(self) -> int:
        """Number of outputs of the network, and of probabilities an engine gives for one photo."""
        return sum(head.size for head in self.heads)

    def columns(self, kind: Kind) -> slice | None:
        """Where, in an engine's answer, the first head of ``kind`` is; None where there is none."""
        start = 0
        for head in self.heads:
            if head.kind == kind:
                return slice(start, start + head.size)
            start += head.size
        return None


def available() -> tuple[str, ...]:
    """The names of all models, sorted."""
    return tuple(sorted(path.stem for path in MANIFESTS.glob("*.toml")))


def load_manifest(name: str) -> Manifest:
    """The manifest of the model ``name``, or ManifestError that says what is wrong with which key."""
    if name not in available():
        raise ManifestError(f"there is no model {name!r}; there are: {', '.join(available())}")
    return parse_manifest(name, (MANIFESTS / f"{name}.toml").read_text("utf-8"))


def load_catalogue(manifest: Manifest) -> Catalogue:
    """The meaning of the classes. Raises TableError, or ManifestError if their number is not the head's."""
    catalogue = Catalogue(load_labels(TABLES / manifest.labels, load_foods(TABLES / manifest.foods)))
    size = next(head.size for head in manifest.heads if head.kind == "classes")
    if catalogue.classes != size:
        raise ManifestError(f"{manifest.name}: {manifest.labels} has {catalogue.classes} labels, not {size}")
    return catalogue


def parse_manifest(name: str, text: str) -> Manifest:
    """The manifest in ``text``, a TOML document whose ``name`` must be ``name``."""
    try:
        # By way of JSON, because strict validation of Python objects takes no list for a tuple.
        manifest = Manifest.model_validate_json(json.dumps(tomllib.loads(text), default=str), strict=True)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{name}.toml is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "manifest"
        raise ManifestError(f"{name}.toml: {key}: {first['msg']}") from None
    if manifest.name != name:
        raise ManifestError(f"{name}.toml calls itself {manifest.name!r}")
    return manifest
