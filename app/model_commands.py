"""The ``fooddx`` commands around models: bring one's own, say which serves, see where a score is from."""

from __future__ import annotations

import argparse
import functools
import json
import math
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.client import Client, ServiceError
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from models.evaluate import Comparison
    from models.manifest import Manifest
    from models.registry import Registry

# The modules of models/ are imported where they are needed: the other commands start faster.
# ruff: noqa: PLC0415

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)

PATIENCE_S = 15.0
"""How long a running service may take to take up a promoted model."""
_ASK_EVERY_S = 0.2

Command = Callable[[argparse.Namespace], int]
if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class CommandError(RuntimeError):
    """A command could not do, or refuses, what it was asked for; the text says why."""


class _LaterParser(argparse.ArgumentParser):
    """A parser whose arguments ``fill`` adds when they are first needed."""

    def __init__(self, *, fill: Callable[[argparse.ArgumentParser], None] | None = None, **options: Any):
        super().__init__(**options)
        self._fill = fill

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        fill, self._fill = self._fill, None
        if fill:
            fill(self)
        return super().parse_known_args(*arguments, **options)


def add_model_commands(commands: Commands, remote: argparse.ArgumentParser) -> None:
    """Hang the commands in; ``remote`` has the options that say which service to ask."""
    model = commands.add_parser("model", help="train, compare, register and promote models")
    actions: Any = model.add_subparsers(required=True, metavar="ACTION", parser_class=_LaterParser)

    train = actions.add_parser("train", help="train a model on labelled photos", fill=_add_train_arguments)
    train.set_defaults(command=_told(_train))

    evaluate = actions.add_parser("evaluate", help="measure a model on labelled photos")
    evaluate.add_argument("model", metavar="MODEL", help="what `model list` calls it, or a run folder")
    _add_data(evaluate, required=True)
    evaluate.add_argument(
        "--out", type=Path, default=Path("build/eval"), help="for the figures and the report"
    )
    evaluate.add_argument(
        "--no-baseline", dest="baseline", action="store_false", help="train no linear baseline beside it"
    )
    evaluate.set_defaults(command=_told(_evaluate))

    register = actions.add_parser("register", help="add a trained model to the registry")
    register.add_argument("run", type=Path, metavar="RUN", help="the run folder of a training")
    register.set_defaults(command=_told(_register))

    promote = actions.add_parser("promote", parents=[remote], help="let a model serve, unless it is worse")
    promote.add_argument("model", metavar="MODEL", help="what `model list` calls it")
    _add_data(promote, required=False)
    promote.add_argument("--force", action="store_true", help="also when it is worse, or was not compared")
    promote.set_defaults(command=_told(_promote))

    rollback = actions.add_parser("rollback", parents=[remote], help="undo the last promotion")
    rollback.set_defaults(command=_told(_rollback))

    listing = actions.add_parser("list", help="the models there are, and which one is promoted")
    listing.add_argument("--format", choices=("table", "json"), default="table")
    listing.set_defaults(command=_told(_list))

    explain = commands.add_parser("explain", help="how a food comes by its score")
    explain.add_argument("name", nargs="+", metavar="CLASS", help="a class of the model, or a food")
    explain.add_argument("--model", metavar="MODEL", help="default: the one that serves")
    explain.set_defaults(command=_told(_explain))

    labels = commands.add_parser("labels", parents=[remote], help="fetch what nutritionists decided")
    labels.add_argument("folder", type=Path, metavar="DIR", help="where labels.csv is written")
    labels.add_argument("--photos", action="store_true", help="fetch the photos as well, to train on")
    labels.set_defaults(command=_told(_labels))


def _add_data(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--data", type=Path, required=required, help="labelled photos: a folder of class folders, or a CSV"
    )
    parser.add_argument(
        "--split", choices=("test", "all"), default="test", help="all: for photos no model was trained on"
    )


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    from models.train import add_arguments

    add_arguments(parser)


def _told(command: Command) -> Command:
    """The command, with what is an answer to the person at the terminal raised as CommandError."""

    @functools.wraps(command)
    def run(options: argparse.Namespace) -> int:
        try:
            return command(options)
        except Exception as error:
            if isinstance(error, _answers()):
                raise CommandError(str(error)) from None
            raise

    return run


def _answers() -> tuple[type[Exception], ...]:
    from app.engines import EngineError
    from app.food.explain import UnknownFood
    from app.food.foods import TableError
    from models.build import BuildError
    from models.manifest import ManifestError
    from models.registry import RegistryError
    from models.training.dataset import DatasetError

    return (
        BuildError, DatasetError, EngineError, ManifestError, OSError, RegistryError, TableError, UnknownFood,
    )  # fmt: skip


def _train(options: argparse.Namespace) -> int:
    from models.train import run

    try:
        folder = run(options, ERR, load_settings().registry_dir)
    except ValueError as error:
        raise CommandError(str(error)) from None
    OUT.print(f"Next: fooddx model register {escape(str(folder))}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from models import evaluate
    from models.manifest import MANIFEST

    own = Path(options.model) / MANIFEST
    return evaluate.main(
        [
            f"--manifest={own}" if own.is_file() else f"--model={options.model}",
            f"--data={options.data}",
            f"--split={options.split}",
            f"--models-dir={load_settings().models_dir}",
            f"--out={options.out}",
            *([] if options.baseline else ["--no-baseline"]),
        ]
    )


def _register(options: argparse.Namespace) -> int:
    from models.manifest import available

    settings, registry = _registry()
    settings.make_data_dir()
    known = available(registry.folder)
    # Built before it is registered: what cannot be built is not, and a promotion need not wait.
    manifest = registry.register(options.run, lambda manifest: _build(manifest, settings))
    already = " already, with the same content" if manifest.ref in known else ""
    OUT.print(f"[green]✓[/] {manifest.ref} is registered{already}.")
    OUT.print(f"Next: fooddx model promote {manifest.ref} --data DATA")
    return 0


def _promote(options: argparse.Namespace) -> int:
    from models.manifest import load_manifest

    settings, registry = _registry()
    manifest = load_manifest(options.model, registry.folder)
    (serving,) = registry.serving()
    if manifest.ref == serving:
        OUT.print(f"{serving} is promoted already.")
        return 0
    if options.data:
        found = _compared(manifest, load_manifest(serving, registry.folder), options, settings)
        if found.worse and not options.force:
            raise CommandError(f"{manifest.ref} is worse: {serving} stays. --force promotes it all the same")
    elif not options.force:
        raise CommandError(
            f"nobody knows whether {manifest.ref} is better than {serving}: give labelled photos by --data, "
            "to compare the two, or --force"
        )
    _build(manifest, settings)
    registry.promote(manifest.ref, over=None if options.force else serving)
    OUT.print(f"[green]✓[/] {manifest.ref} is promoted, in the place of {serving}.")
    return _follow_up(manifest, settings, options)


def _rollback(options: argparse.Namespace) -> int:
    from models.manifest import load_manifest

    settings, registry = _registry()
    settings.make_data_dir()
    (undone,) = registry.serving()
    ref = registry.rollback()
    OUT.print(f"[green]✓[/] Back to {ref}, in the place of {undone}.")
    return _follow_up(load_manifest(ref, registry.folder), settings, options)


def _list(options: argparse.Namespace) -> int:
    settings, registry = _registry()
    entries = registry.entries()
    if options.format == "json":
        lines = [
            {
                "model": entry.ref,
                "version": entry.version,
                "promoted": entry.serving,
                "registered_at": entry.created.isoformat(timespec="seconds") if entry.created else None,
                "figures": dict(entry.figures),
            }
            for entry in entries
        ]
        OUT.print_json(json.dumps(lines))
        return 0
    table = Table("", "model", "version", "registered", "on its own data", box=None, padding=(0, 2, 0, 0))
    for entry in entries:
        table.add_row(
            "[green]▶[/]" if entry.serving else "",
            entry.ref,
            entry.version,
            f"{entry.created.astimezone():%Y-%m-%d %H:%M}" if entry.created else "with FoodDX",
            ", ".join(f"{name} {value:.3f}" for name, value in entry.figures.items()),
        )
    OUT.print(table)
    _say_if_pinned(settings)
    return 0


def _explain(options: argparse.Namespace) -> int:
    from app.food.explain import explain, render
    from app.food.foods import load_foods, load_labels
    from models.manifest import load_manifest

    settings, registry = _registry()
    ref = options.model or (settings.models or registry.serving())[0]
    manifest = load_manifest(ref, registry.folder)
    foods = load_foods(manifest.table(manifest.foods))
    labels = load_labels(manifest.table(manifest.labels), foods)
    for line in render(explain(" ".join(options.name), labels, foods)):
        OUT.print(line, markup=False)
    return 0


def _labels(options: argparse.Namespace) -> int:
    with Client(options.url, options.api_key) as client, ERR.status("Fetching labels …"):
        count = client.export_labels(options.folder, options.photos)
    OUT.print(f"{count} labels in {escape(str(options.folder / 'labels.csv'))}")
    return 0


def _registry() -> tuple[Settings, Registry]:
    from models.registry import Registry

    settings = load_settings()
    return settings, Registry(settings.registry_dir)


def _build(manifest: Manifest, settings: Settings) -> None:
    from models.build import build_apart

    settings.make_data_dir()
    with ERR.status(f"Building {manifest.ref} …"):
        build_apart([manifest], settings.models_dir)


def _compared(
    candidate: Manifest, serving: Manifest, options: argparse.Namespace, settings: Settings
) -> Comparison:
    """Compare two models on labelled photos and show how they do."""
    from models.evaluate import compare

    with ERR.status("Comparing …") as status:
        found = compare(
            candidate,
            serving,
            options.data,
            split=options.split,
            models_dir=settings.models_dir,
            device="cuda" if settings.device == "cuda" else "cpu",
            progress=lambda text: status.update(f"Comparing: {escape(text)} …"),
        )
    table = Table("", candidate.ref, f"{serving.ref}, serving", box=None, padding=(0, 2, 0, 0))
    for name in found.candidate:
        table.add_row(name, _cell(found.candidate, name), _cell(found.serving, name))
    OUT.print(table)
    low, high = found.interval
    chance = "" if low > 0 or high < 0 else "; chance may explain it"
    OUT.print(
        f"Score error on {found.photos} photos, {candidate.ref} less {serving.ref}: "
        f"{found.difference:+.3f} points (95 % interval {low:+.3f} to {high:+.3f}{chance}); "
        "below 0 is better."
    )
    return found


def _cell(figures: Mapping[str, float | None], name: str) -> str:
    value = figures[name]
    if value is None or math.isnan(value):
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _follow_up(manifest: Manifest, settings: Settings, options: argparse.Namespace) -> int:
    """Wait for the running service, and say what else is to be done."""
    if not _say_if_pinned(settings):
        _await_service(manifest, settings, options)
    copied = f", copy {escape(str(manifest.root))} to every node" if manifest.registered else ""
    OUT.print(
        f"On a cluster{copied}, add `models: \\[{manifest.ref}]` to the user_config of Ingress and of Scorer "
        "in serve_config.yaml, and `serve deploy serve_config.yaml`."
    )
    return 0


def _say_if_pinned(settings: Settings) -> bool:
    """Whether FOODDX_MODELS decides what serves, whatever is promoted."""
    if settings.models:
        ERR.print(
            f"[yellow]FOODDX_MODELS names {escape(', '.join(settings.models))}: a service with this setting "
            "keeps to it, and does not follow what is promoted.[/]"
        )
    return bool(settings.models)


def _await_service(manifest: Manifest, settings: Settings, options: argparse.Namespace) -> None:
    """See a running service take the model up.

    Raises:
        CommandError: it has not after PATIENCE_S.
    """
    if not _listens(options.url):
        OUT.print(f"No service runs at {escape(options.url)}; the next start takes it up.")
        return
    started = time.monotonic()
    wanted = {"name": manifest.name, "version": manifest.version}
    try:
        with Client(options.url, options.api_key) as client, ERR.status("The service takes it up …"):
            while (found := client.models().get("serving")) != wanted:
                if time.monotonic() - started > PATIENCE_S:
                    shown = "@".join(map(str, (found or {}).values()))
                    raise CommandError(
                        f"after {PATIENCE_S:.0f} s the service at {options.url} still serves {shown}: its "
                        f"terminal says why, unless it has another data folder than {settings.data_dir}"
                    )
                time.sleep(_ASK_EVERY_S)
    except ServiceError as error:
        OUT.print(f"[yellow]The service could not be asked whether it took it up: {escape(str(error))}[/]")
        return
    OUT.print(f"The service at {escape(options.url)} has it after {time.monotonic() - started:.1f} s.")


def _listens(url: str) -> bool:
    """Whether anything accepts a connection there; the client would go on trying for many seconds."""
    try:
        where = httpx.URL(url)
        port = where.port or (443 if where.scheme == "https" else 80)
        with socket.create_connection((where.host, port), timeout=2):
            return True
    except (httpx.InvalidURL, OSError, UnicodeError):
        return False
