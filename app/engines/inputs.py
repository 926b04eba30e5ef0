"""From a model's manifest to how a photo must be cut for it. Imports no engine."""

from __future__ import annotations

from collections.abc import Iterable

from app.imaging.inputs import InputSpec
from models.manifest import Manifest


def input_spec(manifest: Manifest) -> InputSpec:
    """How the Preprocessor must crop and resize for a model."""
    wanted = manifest.input
    return InputSpec(wanted.size, wanted.crop_fraction, wanted.interpolation)


def input_specs(manifests: Iterable[Manifest]) -> tuple[InputSpec, ...]:
    """The distinct inputs of the models, in their order. Models with equal ones share their pixels."""
    return tuple(dict.fromkeys(map(input_spec, manifests)))
