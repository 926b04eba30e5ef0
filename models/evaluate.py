"""``python -m models.evaluate [--model NAME]``: how good the models are on real photos, good or bad.

Prints one table and writes the same figures to ``build/eval/evaluation.json``; the model card quotes them.
The models run as they are served: imaging → engine → assessment, with the manifest's thresholds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from app.engines import Device, Engine, EngineError, create_engine
from app.food.assessment import Assessment, Catalogue, assess
from app.imaging.decode import InputSpec
from app.imaging.guards import ImageLimits
from app.imaging.prepare import prepare
from models.build import build
from models.manifest import Manifest, available, load_catalogue, load_manifest
from models.photos import Photo, PhotosUnavailable, gate_photos, imagenet_photos, raw_food_photos

IFCT_GROUPS = {
    "Fruits": "fruit",
    "Green Leafy Vegetables": "vegetable",
    "Mushrooms": "vegetable",
    "Other Vegetables": "vegetable",
}
"""IFCT groups that an ImageNet model can be asked for: it has no class for a fish on a plate, a grain or a
nut, and some photos of the groups left out show the animal."""

BATCHES = (1, 8, 32)

Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Seen:
    """What a model made of one photo."""

    truth: str
    labels: NDArray[np.float32]
    answer: Assessment


class Subject:
    """A model under evaluation: its manifest, engine (one thread on a CPU) and the time that loading took."""

    def __init__(self, manifest: Manifest, artefacts: Path, device: Device) -> None:
        started = time.perf_counter()
        self.engine: Engine = create_engine(device, manifest, artefacts, threads=1)
        self.load_ms = 1000 * (time.perf_counter() - started)
        self.manifest = manifest
        self.catalogue: Catalogue = load_catalogue(manifest)

    def look(self, photo: Photo) -> Seen:
        """Score one photo as the service would."""
        spec = self.manifest.input
        prepared = prepare(
            photo.data, ImageLimits(), [InputSpec(spec.size, spec.crop_fraction, spec.interpolation)]
        )
        row = self.engine.predict(prepared.pixels[0][None])[0]
        gate = self.manifest.columns("gate")
        labels = row[self.manifest.columns("classes")]
        food_probability = None if gate is None else float(row[gate][0])
        return Seen(
            photo.truth, labels, assess(labels, self.catalogue, self.manifest.thresholds, food_probability)
        )


def imagenet_figures(seen: Sequence[Seen], catalogue: Catalogue) -> Figures:
    """Accuracy on the classes, and how often a photo of no food passes for food."""
    foods = set(catalogue.food_classes.tolist())
    ranked = [(int(one.truth), np.argsort(-one.labels)[:5].tolist()) for one in seen]
    others = [one for one in seen if int(one.truth) not in foods]
    return {
        "photos": len(seen),
        "top1": _share(truth == best[0] for truth, best in ranked),
        "top5": _share(truth in best for truth, best in ranked),
        "non-food photos": len(others),
        "non-food taken for food": _share(one.answer.status != "not_food" for one in others),
    }


def raw_food_figures(seen: Sequence[Seen], _: Catalogue) -> Figures:
    """What becomes of raw foods: past the gate, into the right group, and with which scores."""
    figures: Figures = {"photos": len(seen), "gate recall": _share(_is_food(one) for one in seen)}
    known = [one for one in seen if one.truth in IFCT_GROUPS]
    for group in sorted(set(IFCT_GROUPS.values())):
        members = [one for one in known if IFCT_GROUPS[one.truth] == group]
        passed = [one for one in members if _is_food(one)]
        figures[f"{group} photos"] = len(members)
        figures[f"{group} gate recall"] = _share(_is_food(one) for one in members)
        figures[f"{group} in its group, of all"] = _share(one.answer.group == group for one in members)
        figures[f"{group} in its group, past the gate"] = _share(one.answer.group == group for one in passed)
    scores = [one.answer.score for one in known if one.answer.score is not None]
    figures |= {f"fruit and vegetables scored {score}": scores.count(score) for score in range(1, 6)}
    figures["fruit and vegetables to review"] = sum(one.answer.status == "needs_review" for one in known)
    return figures


def gate_figures(seen: Sequence[Seen], _: Catalogue) -> Figures:
    """The gate on labelled food / not_food photos, and how many of the foods a nutritionist would get."""
    foods = [one for one in seen if one.truth == "food"]
    others = [one for one in seen if one.truth == "not_food"]
    return {
        "food photos": len(foods),
        "not_food photos": len(others),
        "gate recall": _share(_is_food(one) for one in foods),
        "taken for food": _share(_is_food(one) for one in others),
        "to review, past the gate": _share(
            one.answer.status == "needs_review" for one in foods if _is_food(one)
        ),
    }


FIGURES: dict[str, Callable[[Sequence[Seen], Catalogue], Figures]] = {
    "imagenet": imagenet_figures,
    "raw foods": raw_food_figures,
    "gate": gate_figures,
}


def speed_figures(subject: Subject) -> Figures:
    """Milliseconds: loading with the self-test, and per image in batches (median of at least 10)."""
    size = subject.engine.input_size
    figures: Figures = {"load ms": subject.load_ms}
    for batch in BATCHES:
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        times = []
        for _ in range(max(10, 64 // batch)):
            started = time.perf_counter()
            subject.engine.predict(pixels)
            times.append(time.perf_counter() - started)
        figures[f"ms per image, batch {batch}"] = 1000 * median(times) / batch
    return figures


def _is_food(one: Seen) -> bool:
    return one.answer.status != "not_food"


def _share(hits: Iterable[bool]) -> float | None:
    """The share of True; None of nothing at all."""
    found = list(hits)
    return sum(found) / len(found) if found else None


def _table(results: Mapping[str, Mapping[str, Figures]]) -> Table:
    """One column per model, one row per figure."""
    table = Table(Column(no_wrap=True), *(Column(name, min_width=len(name)) for name in results))
    first = next(iter(results.values()))
    for section, figures in first.items():
        table.add_section()
        for figure in figures:
            cells = [result[section][figure] for result in results.values()]
            table.add_row(f"{section}: {figure}", *map(_cell, cells))
    return table


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def main() -> None:
    """Evaluate the models named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description="Evaluate on real photos.")
    parser.add_argument("--model", action="append", choices=available(), help="default: all; may be repeated")
    parser.add_argument(
        "--models-dir", type=Path, default=Path("build/models"), help="where models are built"
    )
    parser.add_argument("--out", type=Path, default=Path("build/eval"), help="for the photos and the figures")
    parser.add_argument("--gate", type=Path, help="a folder of your own with food/*.jpg and not_food/*.jpg")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="OpenVINO on a CPU, or torch on a GPU"
    )
    options = parser.parse_args()
    console = Console()

    sets: dict[str, list[Photo]] = {}
    for photo_set, fetch in (("imagenet", imagenet_photos), ("raw foods", raw_food_photos)):
        try:
            sets[photo_set] = fetch(options.out)
        except PhotosUnavailable as reason:
            console.print(f"Skipped {photo_set}: {reason}", style="yellow")
    if options.gate:
        sets["gate"] = gate_photos(options.gate)

    results: dict[str, dict[str, Figures]] = {}
    with Progress(console=console) as progress:
        for name in options.model or available():
            artefacts = build(name, options.models_dir, progress.console.print)
            try:
                subject = Subject(load_manifest(name), artefacts, options.device)
            except EngineError as error:
                parser.exit(1, f"{error}\n")
            results[name] = {"speed": speed_figures(subject)}
            for photo_set, photos in sets.items():
                seen = [
                    subject.look(photo)
                    for photo in progress.track(photos, description=f"{name}: {photo_set}")
                ]
                results[name][photo_set] = FIGURES[photo_set](seen, subject.catalogue)
    console.print(_table(results))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
