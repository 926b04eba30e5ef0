"""``python -m models.quantise MODEL --data DATA``: let a model run in 8-bit integers; say what that costs.

What the calibration split of DATA says of the network (models/int8.py) goes beside the model's weights, as
``<name>-<version>-int8.safetensors``, and ``[int8]`` into its manifest. Then the model answers the photos of
the test split in every precision: the figures are printed, and the manifest keeps what int8 changes.

A team's own model is quantised in its run folder, before it is registered: MODEL is then that folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from app.engines import Precision
from app.engines.inputs import input_spec
from app.engines.openvino import OpenVinoEngine
from app.errors import FoodDXError
from app.food.foods import TableError
from app.imaging.guards import ImageLimits
from app.imaging.prepare import prepare
from app.settings import SettingsError, load_settings
from models.build import BuildError, build
from models.evaluation.answers import Answers, Figures, Subject, ask
from models.evaluation.figures import figures, score_means
from models.evaluation.truth import read_truths
from models.int8 import measure
from models.manifest import MANIFEST, Int8, Manifest, ManifestError, load_manifest, read_manifest
from models.training.dataset import DatasetError, read_examples, split_of

PHOTOS = 1000
"""Measured on at most so many: ranges and means hardly move after some hundred."""
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
COSTS = (
    "food top-1",
    "food top-5",
    "score exact",
    "score within one",
    "score error",
    "calibration error of the food",
    "calibration error of the score",
    "gate recall",
    "false alarms",
    "score moved",
    "shown otherwise",
)
"""What goes into a manifest: figures of ``models.evaluation.figures``, and of ``shift``."""


def calibration_photos(source: Path, manifest: Manifest) -> Iterator[NDArray[np.uint8]]:
    """The photos of the calibration split that can be decoded, each once, as the model sees them.

    Raises:
        DatasetError: the data cannot be read.
    """
    seen = set()
    for example in read_examples(source):
        try:
            data = example.path.read_bytes()
            if split_of(data) != "calibrate" or (digest := hashlib.sha256(data).digest()) in seen:
                continue
            seen.add(digest)
            yield prepare(data, ImageLimits(), [input_spec(manifest)]).pixels[0]
        except (OSError, FoodDXError):
            continue


def quantised(manifest: Manifest, source: Path, models_dir: Path) -> Manifest:
    """Measure a model and write the file beside its weights; the manifest that names it, not yet written.

    Raises:
        DatasetError: the data cannot be read, or has no photo to calibrate on.
        BuildError, OSError: the model cannot be built, the file cannot be written.
    """
    plain = manifest.model_copy(update={"int8": None})
    model = openvino.Core().read_model(build(plain, models_dir) / "model.xml")
    photos = list(islice(calibration_photos(source, manifest), PHOTOS))
    if not photos:
        raise DatasetError(f"no photo of {source} falls into the calibration split")
    file = str(Path(manifest.weights.file).parent / f"{manifest.folder}-int8.safetensors")
    if manifest.weights.package:
        file = f"weights/{manifest.folder}-int8.safetensors"
    path = manifest.root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    measure(model, photos).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return manifest.model_copy(update={"int8": Int8(file=file, sha256=sha256, photos=len(photos))})


def compare(manifest: Manifest, source: Path, models_dir: Path) -> dict[str, Figures]:
    """How good the answers of each precision to the photos of the test split are, and how far they moved.

    Raises:
        DatasetError: the data cannot be read, or has no photo to test on.
        BuildError, EngineError: the model cannot be built or loaded.
    """
    truths = read_truths(source, "test", [manifest]).photos
    artefacts = build(manifest, models_dir)
    subjects = []
    for precision in PRECISIONS:
        subject = Subject(manifest, artefacts, "cpu")
        subject.engine = OpenVinoEngine(manifest, artefacts, threads=1, precision=precision)
        subjects.append(subject)
    kept, found = ask(subjects, (truth.path.read_bytes() for truth in truths))
    photos = [truths[place] for place in kept]
    answers = [subject.answers(own) for subject, own in zip(subjects, found, strict=True)]
    return {
        precision: figures(photos, own) | shift(own, answers[PRECISIONS.index("f32")])
        for precision, own in zip(PRECISIONS, answers, strict=True)
    }


def with_section(text: str, int8: Int8) -> str:
    """A manifest's text with its ``[int8]`` section put in, or replaced; comments stay."""
    cost = ", ".join(f"{json.dumps(name)} = {value}" for name, value in int8.cost.items())
    section = (
        f'[int8]\nfile = "{int8.file}"\nsha256 = "{int8.sha256}"\nphotos = {int8.photos}\ncost = {{{cost}}}\n'
    )
    text = re.sub(r"^\[int8\]\n(?:[^\[\n].*\n|\n)*", "", text, flags=re.MULTILINE)
    before, mark, after = text.partition("[thresholds]")
    return f"{before}{section}\n{mark}{after}"


def shift(mine: Answers, exact: Answers) -> Figures:
    """How far answers to the same photos moved from the exact ones.

    *score moved* is the mean distance of the means of the score distributions, in points; *shown otherwise*
    the share of photos that get another score, or are turned away or sent to review by one of them alone.
    """

    def shown(answers: Answers) -> NDArray[np.float64]:
        score = np.floor(score_means(answers) + 0.5)
        return np.where(answers.scored, score, np.where(answers.passed, 0.0, -1.0))

    return {
        "score moved": float(np.abs(score_means(mine) - score_means(exact)).mean()),
        "shown otherwise": float((shown(mine) != shown(exact)).mean()),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Quantise one model."""
    parser = argparse.ArgumentParser(
        prog="python -m models.quantise", description="Let a model run in 8-bit integers on CPUs."
    )
    parser.add_argument("model", metavar="MODEL", help="a model of the project, or your run folder")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="labelled photos, see docs/models.md"
    )
    parser.add_argument(
        "--models-dir", type=Path, metavar="DIR", help="where models are built (default: as the service)"
    )
    options = parser.parse_args(None if arguments is None else list(arguments))
    own = Path(options.model) / MANIFEST
    try:
        models_dir = options.models_dir or load_settings().models_dir
        manifest = read_manifest(own) if own.is_file() else load_manifest(options.model)
        _quantise(manifest, options.data, models_dir)
    except (ManifestError, DatasetError, TableError, BuildError, SettingsError) as error:
        parser.exit(1, f"{error}\n")


def _quantise(manifest: Manifest, source: Path, models_dir: Path) -> None:
    console = Console(stderr=True)
    console.print(f"{manifest.ref}: measuring", style="dim")
    manifest = quantised(manifest, source, models_dir)
    console.print(f"{manifest.ref}: asking about the test split", style="dim")
    rows = compare(manifest, source, models_dir)
    table = Table("", *PRECISIONS, box=SIMPLE)
    for name in ("photos", *COSTS):
        table.add_row(name, *(_cell(row[name]) for row in rows.values()))
    Console(file=sys.stdout).print(table)
    cost = {
        name: round(float(after) - float(before), 4)
        for name in COSTS
        for after, before in [(rows["int8"][name], rows["f32"][name])]
        if after is not None and before is not None
    }
    if manifest.int8:
        section = manifest.int8.model_copy(update={"cost": cost})
        manifest.source.write_text(with_section(manifest.source.read_text("utf-8"), section), "utf-8")
        console.print(f"{manifest.source} and {manifest.root / section.file} are written")


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
