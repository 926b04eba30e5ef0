"""The ``fooddx`` command: serve, score photos, look after models and tenants, check the installation."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.client import Client, Outcome, ServiceError
from app.credential_commands import add_credential_commands
from app.model_commands import CommandError, add_model_commands
from app.settings import SettingsError, load_settings
from app.tenant_commands import add_tenant_commands

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)
_COLUMNS = ("photo", "status", "score", "score_mean", "dishes", "tip", "ms", "id", "sha256", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 when everything asked for was done, 1 when not, 2 for bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.command(options)
    except (SettingsError, ServiceError, CommandError) as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 130
    return status


def _complain(error: object, status: int = 1) -> int:
    ERR.print(f"[red]fooddx:[/] {escape(str(error))}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fooddx", description="Score photos of meals.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve on this machine until Ctrl-C")
    serve.set_defaults(command=_serve)

    doctor = commands.add_parser("doctor", help="check every part and say what to do")
    doctor.set_defaults(command=_doctor)

    remote = argparse.ArgumentParser(add_help=False)
    remote.add_argument(
        "--url",
        default=os.environ.get("FOODDX_URL", "http://127.0.0.1:8000"),
        help="the service (default: FOODDX_URL, else http://127.0.0.1:8000)",
    )
    remote.add_argument("--api-key", help="default: FOODDX_API_KEY, else the one in the data folder")

    score = commands.add_parser("score", parents=[remote], help="score photos with a running service")
    score.add_argument("photos", nargs="+", metavar="PHOTO", type=Path, help="a file, or a folder of files")
    score.add_argument("--format", choices=("table", "json", "csv"), default="table")
    score.add_argument("--profile", help='JSON, such as \'{"user": "ana", "goals": ["less-salt"]}\'')
    score.add_argument("--parallel", type=int, default=4, metavar="N", help="photos at once (default 4)")
    score.set_defaults(command=_score)

    models = commands.add_parser("models", parents=[remote], help="the models a running service uses")
    models.add_argument("--format", choices=("table", "json"), default="table")
    models.set_defaults(command=_models)

    add_model_commands(commands, remote)
    add_tenant_commands(commands)
    add_credential_commands(commands)
    return parser


def _serve(_: argparse.Namespace) -> int:
    from app.serving import ServingError, serve_forever  # noqa: PLC0415 - the other commands start faster
    from app.stores.embedded import EmbeddedStoreError  # noqa: PLC0415
    from models.build import BuildError  # noqa: PLC0415
    from models.manifest import ManifestError  # noqa: PLC0415
    from models.registry import RegistryError  # noqa: PLC0415

    try:
        serve_forever(load_settings(), ERR)
    except (ServingError, EmbeddedStoreError, BuildError, ManifestError, RegistryError, OSError) as error:
        return _complain(error)
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from app.doctor import examine  # noqa: PLC0415 - imports what it examines

    table = Table("", "part", "finding", "what to do", box=None, padding=(0, 2, 0, 0))
    healthy = True
    for finding in examine():
        healthy &= finding.fine
        table.add_row(
            "[green]✓[/]" if finding.fine else "[red]✗[/]",
            *map(escape, (finding.part, finding.words, finding.remedy)),
        )
    OUT.print(table)
    return 0 if healthy else 1


def _score(options: argparse.Namespace) -> int:
    try:
        photos = [file for path in options.photos for file in _files(path)]
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}", 2)
    if not photos:
        return _complain("no photo there", 2)
    with (
        Client(options.url, options.api_key) as client,
        Progress(console=ERR, transient=True, disable=len(photos) == 1) as progress,
    ):
        task = progress.add_task("Scoring", total=len(photos))
        outcomes = client.score_all(
            photos, options.profile, options.parallel, done=lambda: progress.advance(task)
        )
    _WRITERS[options.format](outcomes)
    unanswered = [outcome for outcome in outcomes if outcome.unanswered]
    if unanswered and all(outcome.milliseconds is None for outcome in outcomes):
        return _complain(unanswered[0].error)  # nobody was reached at all
    return 0 if all(outcome.error is None for outcome in outcomes) else 1


def _files(path: Path) -> list[Path]:
    """The file itself; of a folder, its files but the hidden ones, which are no photos of anybody's."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))


def _models(options: argparse.Namespace) -> int:
    with Client(options.url, options.api_key) as client:
        answer = client.models()
    if options.format == "json":
        OUT.print_json(json.dumps(answer))
        return 0
    table = Table("model", "version", "backbone", "input", "labels", "foods", "thresholds", box=None)
    for model in answer["models"]:
        thresholds = ", ".join(f"{name} {value:g}" for name, value in model["thresholds"].items())
        table.add_row(
            model["name"], model["version"], model["backbone"], f"{model['input_size']} px",
            str(model["labels"]), str(len(model["foods"])), thresholds,
        )  # fmt: skip
    OUT.print(table)
    return 0


def _name(photo: Path) -> str:
    """A path that can be printed: on Linux a name is bytes, and need not be UTF-8."""
    return os.fsencode(photo).decode("utf-8", "replace")


def _row(outcome: Outcome) -> dict[str, Any]:
    result = outcome.result or {}
    return {
        "photo": _name(outcome.photo),
        "status": result.get("status"),
        "score": result.get("score"),
        "score_mean": result.get("score_mean"),
        "dishes": ", ".join(f"{d['name']} {d['probability']:.0%}" for d in result.get("dishes", [])),
        "tip": (result.get("tip") or {}).get("text"),
        "ms": outcome.milliseconds,
        "id": result.get("id"),
        "sha256": result.get("image", {}).get("sha256"),
        "error": outcome.error,
    }


def _write_table(outcomes: Sequence[Outcome]) -> None:
    table = Table("photo", "score", "dishes", "tip", "ms", box=None, padding=(0, 2, 0, 0))
    for outcome in outcomes:
        row = _row(outcome)
        score = row["score"] or {"not_food": "no food", "needs_review": "unsure"}.get(row["status"], "–")
        words = f"[red]{escape(row['error'])}[/]" if row["error"] else escape(row["tip"] or "")
        name = escape(_name(Path(outcome.photo.name)))
        table.add_row(name, str(score), escape(row["dishes"]), words, f"{row['ms'] or 0:.0f}")
    OUT.print(table)


def _write_json(outcomes: Sequence[Outcome]) -> None:
    lines = [{"photo": _name(o.photo), "result": o.result, "error": o.error} for o in outcomes]
    OUT.print_json(json.dumps(lines))


def _write_csv(outcomes: Sequence[Outcome]) -> None:
    writer = csv.DictWriter(sys.stdout, _COLUMNS)
    writer.writeheader()
    writer.writerows(_row(outcome) for outcome in outcomes)


_WRITERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}
