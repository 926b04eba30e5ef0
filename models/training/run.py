"""One training run: heads on frozen features, perhaps the whole network, calibration, the run folder."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from models.build import weights_path
from models.heads import SCORES, Head
from models.manifest import MANIFEST, NAME, VERSION, Manifest, load_manifest, read_manifest
from models.metrics import top_k
from models.network import Network, load_network, rows_of, stacked
from models.training.augment import accidental_photos
from models.training.classes import Classes, read_classes
from models.training.dataset import (
    FOOD,
    NOT_FOOD,
    DatasetError,
    Example,
    Photos,
    Split,
    labels_digest,
    load_photos,
    read_examples,
)
from models.training.export import draw_curves, write_calibrated, write_config, write_model
from models.training.learning import (
    NO_LABEL,
    FineTuning,
    Recipe,
    Targets,
    features,
    fit_heads,
    fit_score_head,
)

FEWEST_NOT_FOOD = 20
"""With fewer photos that are not food no gate is trained; the base model's stays."""
FEWEST_SCORES = 30
"""Training photos with a nutritionist's score, below which no score head is fitted."""
ACCIDENTAL_PHOTOS = 200
"""Photos of nothing that a gate is trained with, see models/training/augment.py."""
CROPPED_PX = 32
"""What EfficientNet's authors scale a photo to beyond the square that the network sees."""
SMALLEST_INPUT, LARGEST_INPUT = 64, 512
SAVE_EVERY_S = 300.0
LINE_EVERY = 50


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked for.

    Attributes:
        data: the labelled photos, see ``read_examples``.
        name: what the model will be called; with ``version`` and ``licence`` it goes into the manifest.
        base: the model to start from, one of the project's or one in ``registry``.
        input: edge of the square that the model sees, in px; the base's if None.
        mix: finished run folders whose weights are averaged with this run's, see ``mixed``.
        out: the folder of run folders.
        device: a torch device.
        threads: CPU threads.
        command: how the run was asked for, for the record.
    """

    data: Path
    name: str
    version: str
    licence: str
    base: str
    recipe: Recipe
    out: Path
    registry: Path | None
    device: str
    threads: int
    command: str
    input: int | None = None
    mix: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Refuse now what would fail at the end of hours."""
        for kind, pattern, value in (("name", NAME, self.name), ("version", VERSION, self.version)):
            if not re.fullmatch(pattern, value):
                raise ValueError(f"the {kind} {value!r} must match {pattern}")
        if self.recipe.epochs < 0 or self.recipe.batch < 1 or self.threads < 1 or not self.recipe.rate > 0:
            raise ValueError("epochs must be at least 0, batch and threads at least 1, the rate above 0")
        if self.input is not None and not SMALLEST_INPUT <= self.input <= LARGEST_INPUT:
            raise ValueError(f"the input must be {SMALLEST_INPUT} to {LARGEST_INPUT} px, not {self.input}")


def train(options: Options, console: Console) -> Path:
    """Train, calibrate and write the run folder, which is returned.

    Raises:
        DatasetError, ManifestError: the data or the base model cannot be used; the text says what to do.
        ValueError: the run folder holds another recipe's checkpoint.
        KeyboardInterrupt: after a checkpoint was written.
    """
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    run = options.out / f"{options.name}-{options.version}"
    base = _for_input(load_manifest(options.base, options.registry), options.input)
    examples = read_examples(options.data)
    photos = _load(examples, math.ceil(base.input.size / base.input.crop_fraction), console)
    classes = read_classes(photos.examples, options.data if options.data.is_dir() else options.data.parent)
    gated = sum(not example.is_food for example in photos.examples) >= FEWEST_NOT_FOOD
    scored = _enough_scores(photos, console)
    if scored and classes.names and _mostly_unnamed(photos):
        console.print("[yellow]Most photos have a score and no class: the few classes are left out[/]")
        classes = Classes((), (), None)
    _check(options, base, classes, gated=gated, scored=scored)
    if classes.names and any(head.kind == "score" for head in base.heads):
        console.print(f"[yellow]The score head of {base.ref} goes: its scores are of other classes[/]")
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, options.command, options.base, options.recipe, examples)

    log: dict[str, Any] = {}
    network = _fit(options, base, classes, photos, console, log, gated=gated)
    if options.recipe.epochs:
        network = _finetune(options, base, network, classes, photos, run, console, log)
    if options.mix:
        network = mixed(network, options.mix)
        log["mixed"] = _measured(network, classes, photos, base.input.size)
        console.print(f"Mixed with {len(options.mix)} runs: {_words(log['mixed'])}")
    heads = _heads(base, classes, gated=gated)
    if scored:
        known, scores = _scored(network, photos, base.input.size)
        score_rows = fit_score_head(known, scores)
        network.replace_heads(stacked([network.heads, score_rows]).to(options.device))
        heads = (*heads, Head(name="score", kind="score", size=SCORES - 1))

    named = {"name": options.name, "version": options.version, "licence": options.licence}
    manifest = write_model(run, base, named, classes, heads, network)
    logits, unseen = _logits(network, photos, "calibrate", base.input.size)
    training: dict[str, str | int] = {
        "base": base.ref,
        "date": datetime.now(UTC).date().isoformat(),
        "photos": len(photos.where("train")),
        "epochs": options.recipe.epochs,
    }
    for note in write_calibrated(manifest, logits, unseen, classes, training):
        console.print(f"[yellow]{escape(note)}[/]")
    log |= {"photos": {split: len(photos.where(split)) for split in get_args(Split)}}
    log |= {"warnings": photos.warnings}
    log |= {"seconds": round(time.perf_counter() - started), "threads": options.threads}
    (run / "metrics.json").write_text(json.dumps(log, indent=1) + "\n", "utf-8")
    draw_curves(run)
    console.print(f"[green]✓[/] {manifest.name}@{manifest.version} is in {run}")
    return run


def mixed(network: Network, runs: Sequence[Path]) -> Network:
    """The network with the mean of its weights and those of other runs that began at the same ones.

    What was fine-tuned from the same weights lies in one valley, and the middle of it is often better than
    its sides: a uniform "model soup" (Wortsman et al. 2022, arXiv:2203.05482). It costs nothing to serve.

    Raises:
        ValueError: a run has another network or other classes.
        ManifestError: a folder is no finished run.
    """
    own = network.state_dict()
    others = []
    for run in runs:
        manifest = read_manifest(run / MANIFEST)
        others.append(load_network(manifest, weights_path(manifest)).state_dict())
        if {name: t.shape for name, t in others[-1].items()} != {name: t.shape for name, t in own.items()}:
            raise ValueError(f"{run} is a run of another network or of other classes: they cannot be mixed")
    for name, tensor in own.items():
        if tensor.is_floating_point():
            parts = [tensor, *(other[name].to(tensor) for other in others)]
            tensor.copy_(torch.stack(parts).mean(0))
    return network


def _for_input(base: Manifest, size: int | None) -> Manifest:
    """The base seeing ``size`` px, with as many around them cropped away as for all networks of its kind."""
    if size is None:
        return base
    seen = base.input.model_copy(update={"size": size, "crop_fraction": size / (size + CROPPED_PX)})
    return base.model_copy(update={"input": seen})


def _fit(
    options: Options,
    base: Manifest,
    classes: Classes,
    photos: Photos,
    console: Console,
    log: dict[str, Any],
    *,
    gated: bool,
) -> Network:
    """The base's network with heads fitted on its frozen features; where nothing is to be learnt, its own."""
    recipe = options.recipe
    network = load_network(base, weights_path(base), drop=recipe.drop, drop_path=recipe.drop_path)
    network.to(options.device).to(memory_format=torch.channels_last)
    if not classes.names:
        # A score head, which is the last, is fitted anew.
        kept = sum(head.size for head in _heads(base, classes, gated=gated))
        network.replace_heads(rows_of(network.heads, slice(kept)))
        return network
    pixels, targets = _train_data(options, classes, photos, gated=gated)
    with _progress(console) as progress:
        task = progress.add_task("Features of the frozen backbone", total=len(pixels))
        known = features(network, pixels, base.input.size, done=lambda count: progress.advance(task, count))
    fitted = fit_heads(known, targets, recipe, len(classes.names), gated=gated)
    gate = base.gate_logit
    if not gated and gate is not None:
        fitted = stacked([fitted, rows_of(network.heads, slice(gate, gate + 1))])
    network.replace_heads(fitted.to(options.device))
    log["heads alone"] = _measured(network, classes, photos, base.input.size)
    console.print(f"Heads on frozen features: {_words(log['heads alone'])}")
    return network


def _finetune(
    options: Options,
    base: Manifest,
    network: Network,
    classes: Classes,
    photos: Photos,
    run: Path,
    console: Console,
    log: dict[str, Any],
) -> Network:
    """Train the whole network from there, or from the run's checkpoint; what comes back is the average."""
    recipe = options.recipe.for_input(base.input.size)
    pixels, targets = _train_data(options, classes, photos, gated=True)
    origin = f"{labels_digest(photos.examples)} {base.weights.sha256}"
    tuning = FineTuning(network, pixels, targets, recipe, origin=origin)
    checkpoint, lines = run / "checkpoint.pt", run / "log.jsonl"
    if checkpoint.exists():
        tuning.resume(checkpoint)
        console.print(f"Going on from epoch {tuning.epoch}, step {tuning.step}")
    else:
        lines.unlink(missing_ok=True)
    saved = time.monotonic()

    def save_sometimes() -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_EVERY_S:
            tuning.save(checkpoint)
            saved = time.monotonic()

    with _progress(console) as progress:
        task = progress.add_task("Fine-tuning", total=tuning.steps)

        def show(step: int, loss: float) -> None:
            words = f"Fine-tuning, epoch {tuning.epoch + 1}/{recipe.epochs}, loss {loss:.2f}"
            progress.update(task, completed=step, description=words)
            if not console.is_terminal and step % LINE_EVERY == 0:  # a log gets lines instead of a bar
                console.print(f"{words}, step {step} of {tuning.steps}")

        try:
            for epoch in tuning.run(show, save_sometimes):
                tuning.save(checkpoint)
                found = _measured(tuning.averaged, classes, photos, recipe.sizes[-1])
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"epoch": epoch, "loss": tuning.losses[-1]} | found) + "\n")
                console.print(f"Epoch {epoch + 1}: loss {tuning.losses[-1]:.3f}, {_words(found)}")
        except KeyboardInterrupt:
            tuning.save(checkpoint)
            console.print("Stopped; the same command goes on from here.")
            raise
    log["fine-tuned"] = _measured(tuning.averaged, classes, photos, recipe.sizes[-1])
    return tuning.averaged


def _train_data(
    options: Options, classes: Classes, photos: Photos, *, gated: bool
) -> tuple[NDArray[np.uint8], Targets]:
    """The training photos and what the heads should say of them; for a gate, photos of nothing as well."""
    places = photos.where("train")
    pixels, targets = photos.pixels[places], classes.targets([photos.examples[i] for i in places])
    if not gated:
        return pixels, targets
    nothing = accidental_photos(ACCIDENTAL_PHOTOS, pixels.shape[1], options.recipe.seed)
    return np.concatenate([pixels, nothing]), Targets(
        torch.cat([targets.classes, torch.full((len(nothing),), NO_LABEL)]),
        torch.cat([targets.gate, torch.zeros(len(nothing))]),
    )


def _logits(
    network: Network, photos: Photos, split: Split, size: int
) -> tuple[NDArray[np.float32], list[Example]]:
    places = photos.where(split)
    with torch.inference_mode():
        known = features(network, photos.pixels[places], size)
        logits = network.heads(known.to(network.heads.weight.device)).cpu().numpy()
    return logits, [photos.examples[place] for place in places]


def _measured(network: Network, classes: Classes, photos: Photos, size: int) -> dict[str, float]:
    """How a network does on the calibration split, to be watched; the test split is for the end."""
    logits, examples = _logits(network, photos, "calibrate", size)
    truth = classes.targets(examples).classes.numpy()
    known = truth != NO_LABEL
    answers = logits[known, : len(classes.names)]
    return {
        "top1": round(top_k(answers, truth[known], 1), 4),
        "top5": round(top_k(answers, truth[known], min(5, len(classes.names))), 4),
    }


def _words(found: Mapping[str, float]) -> str:
    return f"top-1 {found['top1']:.1%}, top-5 {found['top5']:.1%} on the calibration split"


def _scored(network: Network, photos: Photos, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and nutritionists' scores of the training photos that have one."""
    places = [place for place in photos.where("train") if photos.examples[place].score]
    scores = [photos.examples[place].score or 0 for place in places]
    return features(network, photos.pixels[places], size), torch.tensor(scores)


def _load(examples: Sequence[Example], side: int, console: Console) -> Photos:
    with _progress(console) as progress:
        photos = load_photos(
            examples, side, progress.track(range(len(examples)), description="Reading photos")
        )
    for warning in photos.warnings:
        console.print(f"[yellow]{escape(warning)}[/]")
    return photos


def _enough_scores(photos: Photos, console: Console) -> bool:
    """Whether a score head can be fitted; said where there are scores, but too few."""
    given = [score for place in photos.where("train") if (score := photos.examples[place].score)]
    if len(given) >= FEWEST_SCORES and len(set(given)) > 1:
        return True
    if given:
        console.print(
            f"[yellow]{len(given)} training photos have a score: at least {FEWEST_SCORES}, of two different "
            "scores, make a score head; without, scores stay those of the foods[/]"
        )
    return False


def _mostly_unnamed(photos: Photos) -> bool:
    """Whether fewer than half of the food photos say which food: reviews name one only now and then."""
    foods = [example for example in photos.examples if example.is_food]
    return sum(example.label not in {None, FOOD} for example in foods) * 2 < len(foods)


def _check(options: Options, base: Manifest, classes: Classes, *, gated: bool, scored: bool) -> None:
    if options.recipe.epochs and not classes.names:
        raise DatasetError("scores alone train a head, not the network: leave out --epochs")
    if not classes.names and not scored:
        raise DatasetError(f"there are no classes, and fewer than {FEWEST_SCORES} scores to learn from")
    if options.recipe.epochs and not gated:
        raise DatasetError(
            f"fine-tuning needs at least {FEWEST_NOT_FOOD} photos of the class {NOT_FOOD}: without them the "
            "network would forget what is no food; or leave out --epochs, which keeps the base's gate"
        )
    if classes.names and not gated and base.gate_logit is None:
        raise DatasetError(
            f"{base.ref} has no food gate and there are fewer than {FEWEST_NOT_FOOD} photos of the class "
            f"{NOT_FOOD} to train one: add some, or start from another --base"
        )


def _heads(base: Manifest, classes: Classes, *, gated: bool) -> tuple[Head, ...]:
    """Classes and gate, the base's own where they are not trained: they keep their temperature."""
    if not classes.names:
        return tuple(head for head in base.heads if head.kind != "score")
    inherited = next((head for head in base.heads if head.kind == "gate"), None)
    gate = inherited if inherited and not gated else Head(name="food", kind="gate", size=1)
    return Head(name="classes", kind="classes", size=len(classes.names)), gate


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
    )
