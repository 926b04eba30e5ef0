"""What a run leaves behind: the model, how it came to be, and its curves as a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from numpy.typing import ArrayLike
from safetensors.torch import save

from models.heads import Head
from models.manifest import MANIFEST, Manifest, Weights, load_catalogue, read_manifest, write_manifest
from models.network import Network
from models.training.calibrate import calibrate
from models.training.classes import Classes, write_tables
from models.training.dataset import Example, labels_digest
from models.training.learning import Recipe


def write_config(run: Path, command: str, base: str, recipe: Recipe, examples: Sequence[Example]) -> None:
    """``config.json``: what a run was asked for, with which labels and which versions."""
    record = {
        "command": command,
        "data": {"photos": len(examples), "labels_sha256": labels_digest(examples)},
        "base": base,
        "recipe": asdict(recipe),
        "versions": {name: version(name) for name in ("timm", "torch", "torchvision")},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (run / "config.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def write_model(
    run: Path,
    base: Manifest,
    named: dict[str, str],
    classes: Classes,
    heads: Sequence[Head],
    network: Network,
) -> Manifest:
    """Weights, tables and a manifest whose temperatures and thresholds are still to be chosen.

    ``named`` has the model's ``name``, ``version`` and ``licence``.
    """
    data = save(network.compact_state())
    (run / "weights.safetensors").write_bytes(data)
    labels, foods = write_tables(run, base, classes)
    own = {
        "labels": labels,
        "foods": foods,
        "weights": Weights(file="weights.safetensors", sha256=hashlib.sha256(data).hexdigest()),
        "heads": tuple(heads),
        "curves": {},
    }
    write_manifest(base.model_copy(update=named | own), run / MANIFEST)
    return read_manifest(run / MANIFEST)


def write_calibrated(
    manifest: Manifest,
    logits: ArrayLike,
    examples: Sequence[Example],
    classes: Classes,
    training: dict[str, str | int],
) -> tuple[str, ...]:
    """Choose temperatures and thresholds on photos the network has not learnt from, and write them down.

    Args:
        manifest: as ``write_model`` gave it; its file is written anew.
        logits: (N, ``manifest.logits``) for these photos.
        examples: the photos' labels.
        classes: of the run; none where the base's were kept.
        training: what the manifest should say of how the weights came to be.

    Returns:
        What could not be chosen, in words.
    """
    truth = classes.targets(examples)
    found = calibrate(
        logits,
        manifest.heads,
        load_catalogue(manifest),
        truth.classes.numpy(),
        truth.gate.numpy() > 0.5,
        [example.score or 0 for example in examples],
        manifest.thresholds,
    )
    heads = tuple(
        head.model_copy(update={"temperature": found.temperatures[head.name]}) for head in manifest.heads
    )
    chosen = {"heads": heads, "thresholds": found.thresholds, "curves": found.curves, "training": training}
    write_manifest(manifest.model_copy(update=chosen), manifest.source)
    return found.notes


def draw_curves(run: Path) -> None:
    """``curves.png``: loss and accuracy by epoch; nothing for heads alone, which have no epochs."""
    log = run / "log.jsonl"
    if not log.is_file():
        return
    import matplotlib as mpl  # noqa: PLC0415 - seconds that a run of heads alone does not need

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    epochs = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    numbers = [entry["epoch"] + 1 for entry in epochs]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(numbers, [entry["loss"] for entry in epochs], label="loss on training photos, augmented")
    for key, words in (("top1", "top-1"), ("top5", "top-5")):
        right.plot(numbers, [entry[key] for entry in epochs], label=f"{words} on the calibration split")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(run / "curves.png", dpi=120)
    pyplot.close(figure)
