"""The least that a trained model must beat: one linear layer on features that saw none of the data."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from models.manifest import MANIFEST, Manifest, load_manifest, read_manifest

BASE = "imagenet-lite0"


def train_baseline(source: Path, sha256: str, out: Path, console: Console) -> Manifest:
    """One linear layer on the frozen features of BASE, trained and calibrated on the data's own splits.

    It is trained once for the same data and recipe, and kept in ``out``. Imports torch.

    Raises:
        DatasetError: the data are too few to train on.
    """
    from models.training.learning import Recipe  # noqa: PLC0415
    from models.training.run import Options, train  # noqa: PLC0415 - torch takes seconds and 700 MB

    recipe = Recipe(epochs=0)
    base = load_manifest(BASE)
    words = json.dumps([sha256, asdict(recipe), base.weights.sha256], sort_keys=True)
    key = hashlib.sha256(words.encode()).hexdigest()[:16]
    options = Options(
        data=source,
        name="linear-baseline",
        version=key,
        base=BASE,
        recipe=recipe,
        out=out,
        licence=base.licence,
        registry=None,
        device="cpu",
        threads=os.cpu_count() or 1,
        command="python -m models.evaluate",
    )
    folder = out / f"{options.name}-{key}"
    if not (folder / "metrics.json").is_file():  # what a run writes last
        train(options, console)
    return read_manifest(folder / MANIFEST)
