"""``python -m models.train DATA --name NAME``: from labelled photos to a model that can be served.

The run folder (``build/runs/<name>-<version>``) holds what the model is made of (``manifest.toml``,
``weights.safetensors``, its tables) and how it came to be (``config.json``, ``log.jsonl``, ``metrics.json``,
``curves.png``). The same command goes on where an interrupted run stopped. See models/training: learning.py
for the recipe, dataset.py for what DATA may be, calibrate.py for the thresholds.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from models.registry import DEFAULT
from models.training.learning import Recipe
from models.training.run import Options, train

_PROGRAMS = {"train.py": "python -m models.train", "fooddx": "fooddx"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``python -m models.train`` and ``fooddx model train`` take."""
    recipe = Recipe()
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of class folders, or a CSV")
    parser.add_argument("--name", required=True, help="what the model will be called")
    parser.add_argument("--version", default="1", help="its version (default 1)")
    parser.add_argument(
        "--base", default=DEFAULT, metavar="MODEL", help=f"the model to start from (default {DEFAULT})"
    )
    parser.add_argument(
        "--epochs", type=int, default=0, help="passes of fine-tuning after the heads (default 0: heads alone)"
    )
    parser.add_argument(
        "--input",
        type=int,
        metavar="PX",
        help="edge of the square that the model sees (default: the base's)",
    )
    parser.add_argument(
        "--mix",
        action="append",
        default=[],
        type=Path,
        metavar="RUN",
        help="a finished run folder of the same base and photos whose weights are averaged with these",
    )
    parser.add_argument(
        "--rate", type=float, default=recipe.rate, help=f"learning rate (default {recipe.rate:g})"
    )
    parser.add_argument(
        "--batch", type=int, default=recipe.batch, help=f"photos a step (default {recipe.batch})"
    )
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument(
        "--out", type=Path, default=Path("build/runs"), metavar="DIR", help="where run folders go"
    )
    parser.add_argument("--licence", default="proprietary", help="of the weights, for the manifest")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")


def run(arguments: argparse.Namespace, console: Console, registry: Path | None = None) -> Path:
    """Train as the parsed ``arguments`` say; see ``train``."""
    recipe = Recipe(epochs=arguments.epochs, rate=arguments.rate, batch=arguments.batch, seed=arguments.seed)
    return train(
        Options(
            data=arguments.data,
            name=arguments.name,
            version=arguments.version,
            base=arguments.base,
            input=arguments.input,
            mix=tuple(arguments.mix),
            recipe=recipe,
            out=arguments.out,
            licence=arguments.licence,
            registry=registry,
            device=arguments.device,
            threads=arguments.threads,
            command=shlex.join([_PROGRAMS.get(Path(sys.argv[0]).name, sys.argv[0]), *sys.argv[1:]]),
        ),
        console,
    )


def main() -> None:
    """Train a model; ends with 1 and a sentence where the data does not allow it."""
    parser = argparse.ArgumentParser(
        prog="python -m models.train", description="Train a model on your photos."
    )
    add_arguments(parser)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        run(parser.parse_args(), console)
    except (ValueError, OSError) as error:
        console.print(f"[red]train:[/] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
