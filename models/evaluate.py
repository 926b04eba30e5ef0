"""``python -m models.evaluate [--data DATA]``: how good the models are on labelled photos, good or bad.

With ``--data`` they are asked about the photos of its test split, as they are served (imaging → engine →
assessment), beside one linear layer trained on the same data. Without, about photos from installed packages
(models/evaluation/photosets.py). A table goes to the terminal, every figure to ``evaluation.json`` and, with
data, pictures to ``report.html``, in ``build/eval`` unless ``--out`` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from app.engines import Device, EngineError
from app.food.foods import TableError
from app.settings import SettingsError, load_settings
from models.build import BuildError, build, build_apart
from models.evaluation.answers import Figures, Subject
from models.evaluation.baseline import BASE, train_baseline
from models.evaluation.figures import figures, score_truth
from models.evaluation.measure import ROBUSTNESS_FIGURES, answers_to, error_difference, measure
from models.evaluation.photosets import FIGURES, fetch_photos, look
from models.evaluation.truth import Chosen, Truth, Truths, read_truths
from models.manifest import Manifest, ManifestError, available, load_manifest, read_manifest
from models.registry import Registry
from models.training.dataset import DatasetError

BASELINE = "linear baseline"
GATE_MARGIN = 0.05
"""How much worse, as a share of photos, the gate of a promoted model may be."""
_GROUP_FIGURES = ("photos", "food top-1", "score within one", "score error", "gate recall", "false alarms")


@dataclass(frozen=True)
class Comparison:
    """A candidate and the serving model on the same photos.

    Attributes:
        photos: how many have a known score, and so count in ``difference``.
        candidate: its figures, see ``models.evaluation.figures``; None where there was nothing to measure.
        serving: those of the serving model.
        difference: the mean over these photos of the candidate's error less the serving model's, in points.
            The error is the distance of the mean of the score distribution from the true score. Below 0 the
            candidate is better.
        interval: 95 % bootstrap interval of ``difference``; NaN for a single photo.
        worse: ``difference`` is above 0 or, at exactly 0, the candidate's top-1 of foods is the lower one; or
            its gate turns away GATE_MARGIN more of the food, or lets as much more of anything else pass.
            Whether chance may explain it is for the interval to say.
    """

    photos: int
    candidate: Mapping[str, float | None]
    serving: Mapping[str, float | None]
    difference: float
    interval: tuple[float, float]
    worse: bool


def compare(
    candidate: Manifest,
    serving: Manifest,
    source: Path,
    *,
    split: Chosen,
    models_dir: Path,
    device: Device = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Both models on the same photos, as they are served. Does not import torch unless ``device`` is cuda.

    Args:
        candidate: the model that may be promoted.
        serving: the model that serves now.
        source: labelled photos, see ``models.training.dataset.read_examples``.
        split: "test", or "all" for photos that neither model was trained on.
        models_dir: where models are built.
        device: what the models run on.
        progress: told each step.

    Raises:
        DatasetError: the data cannot be read, or no photo has a known score.
        BuildError, EngineError, ManifestError, TableError: a model cannot be built or loaded.
    """
    say = progress or (lambda _: None)
    say("reading the labels")
    truths = read_truths(source, split, (candidate, serving))
    subjects = []
    for manifest in (candidate, serving):
        say(f"loading {manifest.ref}")
        build_apart([manifest], models_dir)
        subjects.append(Subject(manifest, models_dir / manifest.folder, device))
    say(f"asking both models about {len(truths.photos)} photos")
    photos, (mine, theirs) = answers_to(subjects, truths.photos)
    difference, low, high = error_difference(photos, mine, theirs)
    known = int((score_truth(photos) > 0).sum())
    if not known:
        raise DatasetError(f"no photo of {source} has a score, or a class whose food is known")
    new, old = figures(photos, mine), figures(photos, theirs)
    less_right = (new["food top-1"] or 0) < (old["food top-1"] or 0)
    worse = difference > 0 or (difference == 0 and less_right) or gate_is_worse(new, old)
    return Comparison(known, new, old, difference, (low, high), worse)


def gate_is_worse(candidate: Mapping[str, float | None], serving: Mapping[str, float | None]) -> bool:
    """Whether a gate turns away, or lets pass, more of what it should not, by more than GATE_MARGIN."""
    less_food = (serving["gate recall"] or 0) - (candidate["gate recall"] or 0)
    more_else = (candidate["false alarms"] or 0) - (serving["false alarms"] or 0)
    return max(less_food, more_else) > GATE_MARGIN


def _frame() -> dict[str, Any]:
    """What every figure depends on beside models and photos."""
    tools = ("fooddx", "numpy", "openvino", "pillow", "torch")
    return {
        "command": shlex.join(["python", "-m", "models.evaluate", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu(), "logical cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {tool: version(tool) for tool in tools},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _described(truths: Truths, source: Path, split: Chosen, counted: int) -> dict[str, Any]:
    groups = Counter(photo.group for photo in truths.photos)
    return {
        "source": str(source),
        "split": split,
        "sha256": truths.sha256,
        "photos": counted,
        "photos that cannot be decoded": len(truths.photos) - counted,
        "groups": dict(sorted(groups.items())),
        "warnings": list(truths.warnings),
    }


def _table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """One column per model, one row per figure, a heading over each section."""
    table = Table(Column(min_width=24), *(Column(name, justify="right") for name in results), box=SIMPLE)
    first = next(iter(results.values()))
    for section, names in first.items():
        table.add_section()
        table.add_row(f"[bold]{escape(section)}[/]")
        for name in names:
            table.add_row(name, *(_cell(result[section].get(name)) for result in results.values()))
    return table


def _sections(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What of ``evaluate`` is shown in the terminal."""
    groups = {
        name: {key: found[key] for key in _GROUP_FIGURES if found[key] is not None}
        for name, found in result["groups"].items()
    }
    robust = {
        figure: {name: found[figure] for name, found in result["robustness"].items()}
        for figure in ROBUSTNESS_FIGURES
    }
    return {
        "all": result["overall"],
        "less the first model, with 95 % interval": result["against the first"],
        **{f"of the group {name}": found for name, found in groups.items()},
        **{f"{figure} of corrupted photos": found for figure, found in robust.items()},
        "speed": result["speed"],
    }


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _on_photo_sets(subjects: Mapping[str, Subject], options: argparse.Namespace, console: Console) -> Any:
    """The figures of ``--data``'s absence, and the table that shows them."""
    sets = fetch_photos(options.out, options.gate, lambda text: console.print(text, style="yellow"))
    results: dict[str, dict[str, Figures]] = {}
    for name, subject in subjects.items():
        results[name] = {"speed": subject.speed()}
        for photo_set, photos in sets.items():
            console.print(f"{name}: {len(photos)} photos, {photo_set}", style="dim")
            results[name][photo_set] = FIGURES[photo_set](look(subject, photos), subject.catalogue)
    console.print(_table(results))
    return results


def _on_data(
    subjects: dict[str, Subject], truths: Truths, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    with Progress(console=console) as progress:

        def track(photos: Sequence[Truth], description: str) -> Iterable[Truth]:
            return progress.track(photos, description=description)

        results, counted = measure(subjects, truths.photos, track)
    console.print(_table({name: _sections(result) for name, result in results.items()}))
    return {"data": _described(truths, options.data, options.split, counted), "models": results}


def _manifests(options: argparse.Namespace) -> dict[str, Manifest]:
    registry = load_settings().registry_dir
    refs = options.model or (
        dict.fromkeys((*Registry(registry).serving(), BASE)) if options.data else available()
    )
    found = {ref: load_manifest(ref, registry) for ref in refs}
    for path in options.manifest:
        manifest = read_manifest(path)
        found[manifest.ref if manifest.ref not in found else f"{manifest.ref} ({path.parent.name})"] = (
            manifest
        )
    return found


def _run(options: argparse.Namespace, console: Console) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    manifests = _manifests(options)
    truths = read_truths(options.data, options.split, [*manifests.values()]) if options.data else None
    if truths:
        for warning in truths.warnings:
            console.print(escape(warning), style="yellow")
        if options.baseline and options.split == "test":
            try:
                manifests[BASELINE] = train_baseline(options.data, truths.sha256, options.out, console)
            except DatasetError as reason:
                console.print(f"No {BASELINE}: {escape(str(reason))}", style="yellow")
        elif options.baseline:
            console.print(
                f"No {BASELINE}: it would have been trained on some of these photos", style="yellow"
            )
    subjects = {}
    for name, manifest in manifests.items():
        artefacts = build(manifest, options.models_dir, lambda text: console.print(text, style="dim"))
        subjects[name] = Subject(manifest, artefacts, options.device)
    record = _frame()
    if truths:
        record |= _on_data(subjects, truths, options, console)
    else:
        record["models"] = _on_photo_sets(subjects, options, console)
    (options.out / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if truths:
        # Here, because a promotion, which imports this module, need not wait for matplotlib.
        from models.evaluation.report import report  # noqa: PLC0415

        (options.out / "report.html").write_text(report(record), "utf-8")
    console.print(f"Written to {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the models named on the command line, or those that matter most."""
    parser = argparse.ArgumentParser(
        prog="python -m models.evaluate", description="How good models are on labelled photos."
    )
    parser.add_argument("--data", type=Path, help="labelled photos: a folder of class folders, or a CSV")
    parser.add_argument(
        "--split", choices=get_args(Chosen), default="test", help="all: for photos no model was trained on"
    )
    parser.add_argument(
        "--model", action="append", metavar="REF", help="may be repeated; default: all or, with --data, the "
        f"one that serves and {BASE}",
    )  # fmt: skip
    parser.add_argument(
        "--manifest", action="append", type=Path, default=[], help="a model by its manifest.toml; repeatable"
    )
    parser.add_argument(
        "--no-baseline", dest="baseline", action="store_false", help=f"with --data: no {BASELINE}"
    )
    parser.add_argument("--gate", type=Path, help="without --data: a folder with food/*.jpg, not_food/*.jpg")
    parser.add_argument(
        "--device", choices=get_args(Device), default="cpu", help="OpenVINO on a CPU, or torch on a GPU"
    )
    parser.add_argument(
        "--models-dir", type=Path, default=Path("build/models"), help="where models are built"
    )
    parser.add_argument("--out", type=Path, default=Path("build/eval"), help="for the figures and the report")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        _run(options, console)
    except (BuildError, DatasetError, EngineError, ManifestError, SettingsError, TableError) as error:
        console.print(f"[red]evaluate:[/] {escape(str(error))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
