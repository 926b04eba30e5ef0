"""The manifest: everything that defines a model, in one TOML file.

Models come from two places. Those of the project are ``models/manifests/<name>.toml`` and are called by their
name. Those a team trained are folders ``<registry>/<name>-<version>`` (see models/registry.py), each with its
``manifest.toml``, weights and tables, and are called ``<name>@<version>``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from app.food.assessment import Catalogue, Thresholds
from app.food.foods import load_foods, load_labels
from models.heads import Head, Kind

MODELS = Path(__file__).parent
MANIFESTS = MODELS / "manifests"
TABLES = MODELS / "tables"
MANIFEST = "manifest.toml"

Table = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+\.csv$")]
# Names and versions become folder names and parts of Redis keys.
NAME = r"^[a-z0-9][a-z0-9.-]{0,63}$"
VERSION = r"^[a-z0-9][a-z0-9.]{0,31}$"
Version = Annotated[str, StringConstraints(pattern=VERSION)]
Curve = Literal["gate", "coverage_risk", "reliability"]
Slug = Annotated[str, StringConstraints(pattern=NAME)]


class ManifestError(ValueError):
    """A manifest is missing, cannot be read, or says something that is not allowed."""


class _Part(BaseModel):
    """Immutable; a misspelt key is an error, and a string is never taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Part):
    """Where the weights are: in an installed package or, without one, under ``Manifest.root``."""

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


class Int8(_Part):
    """What a network needs to run in 8-bit integers on a CPU: see models/int8.py.

    ``file``, made by models/quantise.py, is under ``Manifest.root``; ``photos`` is how many it was measured
    on, none of them of the test split. ``cost`` is for the reader: figures of the test split, int8 less f32.
    """

    file: Annotated[str, StringConstraints(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*\.safetensors$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    photos: Annotated[int, Field(ge=1)]
    cost: Mapping[str, float] = {}


class Manifest(_Part):
    """One version of one model.

    ``labels`` and ``foods`` name tables: what each class of the one "classes" head is called, and the foods
    the classes stand for. ``thresholds`` act on probabilities, so that a new value needs no new build.
    ``int8`` is there when the model may also run in 8-bit integers.
    ``curves`` are what the thresholds were chosen on and ``training`` says how the weights came to be; both
    are for the reader, and nothing is computed from them.
    """

    name: Slug
    version: Version
    backbone: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    licence: str
    labels: Table
    foods: Table
    weights: Weights
    input: ModelInput
    heads: Annotated[tuple[Head, ...], Field(min_length=1)]
    thresholds: Thresholds
    int8: Int8 | None = None
    curves: Mapping[Curve, tuple[tuple[float, float, float], ...]] = {}
    training: Mapping[str, str | int | float] = {}
    _source: Path = PrivateAttr(default=MANIFESTS / "unsaved.toml")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = [head.kind for head in self.heads]
        if len({head.name for head in self.heads}) < len(self.heads):
            raise ValueError("two heads have the same name")
        if kinds.count("classes") != 1:
            raise ValueError('exactly one head must be of kind "classes"')
        if max(kinds.count("gate"), kinds.count("score")) > 1:
            raise ValueError("at most one gate and one score head are read")
        return self

    @property
    def source(self) -> Path:
        """The file it was read from."""
        return self._source

    @property
    def registered(self) -> bool:
        """Whether it has a folder of its own, and is not one of the project's."""
        return self._source.parent != MANIFESTS

    @property
    def root(self) -> Path:
        """The folder that weights are relative to."""
        return self._source.parent if self.registered else MODELS

    @property
    def ref(self) -> str:
        """What ``load_manifest`` finds it by."""
        return f"{self.name}@{self.version}" if self.registered else self.name

    def table(self, file: str) -> Path:
        """Where a table is: in the model's own folder, else among the project's."""
        own = self.root / file
        return own if own.is_file() else TABLES / file

    @property
    def folder(self) -> str:
        """Name of the folder that holds what was built of this version."""
        return f"{self.name}-{self.version}"

    @property
    def logits(self) -> int:
        """Number of outputs of the network."""
        return sum(head.size for head in self.heads)

    @property
    def gate_logit(self) -> int | None:
        """Where the gate is among the logits; None where there is none."""
        kinds = [head.kind for head in self.heads]
        return sum(head.size for head in self.heads[: kinds.index("gate")]) if "gate" in kinds else None

    @property
    def outputs(self) -> int:
        """Number of probabilities that an engine gives for one photo."""
        return sum(head.outputs for head in self.heads)

    def columns(self, kind: Kind) -> slice | None:
        """Where, in an engine's answer, the first head of ``kind`` is; None where there is none."""
        start = 0
        for head in self.heads:
            if head.kind == kind:
                return slice(start, start + head.outputs)
            start += head.outputs
        return None


def available(registry: Path | None = None) -> tuple[str, ...]:
    """What every model is called, the project's first, each in alphabetical order."""
    own = sorted(path.stem for path in MANIFESTS.glob("*.toml"))
    found = sorted((registry or MANIFESTS).glob("*/manifest.toml"))
    return (*own, *(_ref_of(path.parent.name) for path in found))


def load_manifest(ref: str, registry: Path | None = None) -> Manifest:
    """The manifest of the model called ``ref``.

    Raises:
        ManifestError: there is none of that name, or which key of it is wrong in which way.
    """
    if ref not in available(registry):
        raise ManifestError(f"there is no model {ref!r}; there are: {', '.join(available(registry))}")
    name, _, version = ref.partition("@")
    if not version:
        return read_manifest(MANIFESTS / f"{name}.toml")
    manifest = read_manifest((registry or MANIFESTS) / f"{name}-{version}" / MANIFEST)
    if manifest.ref != ref:
        raise ManifestError(f"the folder of {ref} holds {manifest.ref}")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file, whatever it is called. Raises ManifestError."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from None
    manifest = parse_manifest(text, path.name)
    manifest._source = path.absolute()
    if not manifest.registered and manifest.name != path.stem:
        raise ManifestError(f"{path.name} calls itself {manifest.name!r}")
    missing = [file for file in (manifest.labels, manifest.foods) if not manifest.table(file).is_file()]
    if missing:
        raise ManifestError(f"{path.name}: no table {missing[0]}")
    return manifest


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest so that ``read_manifest`` gives the same one."""
    record = manifest.model_dump(mode="json", exclude_none=True)
    lines = [f"{key} = {_toml(value)}" for key, value in record.items() if isinstance(value, str)]
    for key, value in record.items():
        if isinstance(value, dict) and value:
            lines += ["", f"[{key}]"]
            lines += [f"{name} = {_toml(part)}" for name, part in value.items()]
    for head in record["heads"]:
        lines += ["", "[[heads]]", *(f"{name} = {json.dumps(part)}" for name, part in head.items())]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _toml(value: Any) -> str:
    """A value of a manifest: JSON's form is mostly TOML's too; a curve gets a line per row."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(part)}" for key, part in value.items()) + "}"
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + "".join(f"  {json.dumps(row)},\n" for row in value) + "]"


def load_catalogue(manifest: Manifest) -> Catalogue:
    """The meaning of the classes. Raises TableError, or ManifestError if their number is not the head's."""
    foods = load_foods(manifest.table(manifest.foods))
    catalogue = Catalogue(load_labels(manifest.table(manifest.labels), foods))
    size = next(head.size for head in manifest.heads if head.kind == "classes")
    if catalogue.classes != size:
        raise ManifestError(f"{manifest.ref}: {manifest.labels} has {catalogue.classes} labels, not {size}")
    return catalogue


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest in ``text``, a TOML document that messages call ``where``. Raises ManifestError."""
    try:
        # By way of JSON, because strict validation of Python objects takes no list for a tuple.
        return Manifest.model_validate_json(json.dumps(tomllib.loads(text), default=str), strict=True)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{where} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "manifest"
        raise ManifestError(f"{where}: {key}: {first['msg']}") from None


def _ref_of(folder: str) -> str:
    """``name-1.2`` → ``name@1.2``: a version holds no dash, a name may."""
    name, _, version = folder.rpartition("-")
    return f"{name}@{version}"
