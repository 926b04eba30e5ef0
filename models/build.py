"""``python -m models.build [MODEL…] --out DIR``: from a manifest and its weights to what the engines load.

``DIR/<name>-<version>/`` holds ``model.xml`` and ``model.bin`` (OpenVINO), for some models the same in
8-bit integers as ``int8.xml`` and ``int8.bin`` (models/int8.py), ``weights.safetensors`` (torch) and
``build.json``: hashes and versions of everything that went in and came out, and the self-test's answers.
Beside these the OpenVINO engine keeps what it compiled. A folder appears whole or not at all, and one whose
inputs have not changed is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models import selftest
from models.manifest import MODELS, Manifest, available, load_manifest, read_manifest

Progress = Callable[[str], None]

TOLERANCE = 1e-3
"""Largest accepted difference of a probability, OpenVINO float32 against torch float32 (measured: 1e-5)."""

_SOURCES = ("build.py", "heads.py", "int8.py", "network.py", "selftest.py")
_TOOLS = ("openvino", "timm", "torch")


class BuildError(RuntimeError):
    """The model cannot be built: weights are missing or not those the manifest names, or a check failed."""


def build(manifest: Manifest, out_dir: Path, progress: Progress | None = None) -> Path:
    """The folder of a model under ``out_dir``, built first unless it is already up to date.

    A build imports torch into this process and takes some 10 s; a look at a finished one, milliseconds.
    ``progress`` is told each step. Raises BuildError.
    """
    folder = out_dir / manifest.folder
    if _is_current(manifest, folder):
        return folder
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{manifest.folder}-", dir=out_dir) as scratch:
        fresh = Path(scratch) / manifest.folder
        fresh.mkdir()
        _make(manifest, fresh, progress or (lambda _: None))
        try:
            _publish(fresh, folder)
        except OSError:
            if not _is_current(manifest, folder):  # unless another process has just built the same
                raise
    return folder


def build_apart(manifests: Iterable[Manifest], out_dir: Path) -> None:
    """Build what is missing of these models in a process of its own, for a caller that must not hold torch.

    Raises:
        BuildError: with what the other process said.
    """
    missing = [manifest for manifest in manifests if not is_built(manifest, out_dir)]
    if not missing:
        return
    built = subprocess.run(  # noqa: S603 - our own module
        [
            sys.executable,
            "-P",
            "-m",
            "models.build",
            *(str(m.source) for m in missing),
            "--out",
            str(out_dir),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        names = ", ".join(manifest.ref for manifest in missing)
        raise BuildError(f"{names} could not be built:\n{built.stderr.strip()}")


def is_built(manifest: Manifest, out_dir: Path) -> bool:
    """Whether ``build`` would have nothing to do."""
    return _is_current(manifest, out_dir / manifest.folder)


def weights_path(manifest: Manifest) -> Path:
    """The manifest's weights file, whose SHA-256 has been checked. Raises BuildError."""
    root = manifest.root
    if package := manifest.weights.package:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise BuildError(f"{manifest.name}: package {package} is not installed")
        root = Path(spec.origin).parent
    return _checked(manifest, root / manifest.weights.file, manifest.weights.sha256)


def _checked(manifest: Manifest, path: Path, sha256: str) -> Path:
    """``path``, if that file is there with this content. Raises BuildError."""
    if not path.is_file():
        raise BuildError(f"{manifest.name}: there is no weights file {path.name}")
    if (found := _sha256(path)) != sha256:
        raise BuildError(f"{manifest.name}: {path.name} has SHA-256 {found}, not {sha256}")
    return path


def _make(manifest: Manifest, folder: Path, progress: Progress) -> None:
    """Fill ``folder``; ``build.json`` comes last but for the checks, which load what was written."""
    progress(f"{manifest.name}: checking the weights")
    weights = weights_path(manifest)

    progress(f"{manifest.name}: loading the network")
    # Here, not above: most calls find everything built and must not pay seconds for these.
    import numpy as np  # noqa: PLC0415
    import openvino  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from safetensors.torch import save  # noqa: PLC0415

    from app.engines.openvino import OpenVinoEngine  # noqa: PLC0415
    from models.heads import probabilities  # noqa: PLC0415
    from models.int8 import Ranges, RangesError, quantise  # noqa: PLC0415
    from models.network import load_network  # noqa: PLC0415

    network = load_network(manifest, weights)
    # Not save_file, which leaves a file that only its owner may read.
    (folder / "weights.safetensors").write_bytes(save(network.backbone.state_dict()))

    progress(f"{manifest.name}: exporting to OpenVINO")
    pixels = selftest.pixels(manifest.input.size)
    program = torch.export.export(network, (torch.from_numpy(pixels[:1]),))
    model = openvino.convert_model(program)
    # A batch of exactly one, see OpenVinoEngine. The conversion forgets the shape of what was exported.
    model.reshape([1, manifest.input.size, manifest.input.size, 3])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    if manifest.int8:
        progress(f"{manifest.name}: rounding to int8")
        ranges = _checked(manifest, manifest.root / manifest.int8.file, manifest.int8.sha256)
        model = openvino.Core().read_model(folder / "model.xml")  # as the ranges were measured on
        try:
            quantise(model, Ranges.load(ranges))
        except RangesError as error:
            raise BuildError(f"{manifest.name}: {ranges.name}: {error}") from error
        openvino.save_model(model, folder / "int8.xml", compress_to_fp16=False)

    progress(f"{manifest.name}: comparing OpenVINO with torch")
    with torch.inference_mode():
        logits = np.asarray(network(torch.from_numpy(pixels)))
    expected = probabilities(logits, manifest.heads)
    record = {
        "inputs": _inputs(manifest),
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in folder.iterdir()
        },
        "self_test": selftest.expectation(expected),
    }
    (folder / "build.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    exact = OpenVinoEngine(manifest, folder, threads=1, precision="f32", keep_compiled=False)
    answered = exact.predict(pixels)
    difference = float(np.abs(answered - expected).max())
    if not difference <= TOLERANCE:
        raise BuildError(f"{manifest.name}: OpenVINO and torch differ by {difference:.2g}")
    OpenVinoEngine(manifest, folder, threads=1)  # leaves behind what it compiled, for the first replica
    progress(f"{manifest.name}: built; OpenVINO and torch differ by {difference:.1e}")


def _inputs(manifest: Manifest) -> dict[str, Any]:
    """Everything a build depends on. Thresholds do not count: they act on what the engine answers."""
    return {
        "manifest": manifest.model_dump(
            mode="json",
            exclude={"thresholds": True, "labels": True, "foods": True, "curves": True, "training": True}
            | {"int8": {"photos", "cost"}},
        ),
        "sources": {name: _sha256(MODELS / name) for name in _SOURCES},
        "versions": {name: version(name) for name in _TOOLS},
    }


def _is_current(manifest: Manifest, folder: Path) -> bool:
    """By hashes of what went in, and sizes of what came out: a folder only ever appears complete."""
    try:
        record = json.loads((folder / "build.json").read_text("utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
    except (OSError, ValueError, KeyError):
        return False
    same_files = all(record["files"][name]["bytes"] == size for name, size in sizes.items())
    return same_files and bool(record.get("inputs") == _inputs(manifest))


def _publish(fresh: Path, folder: Path) -> None:
    """Move ``fresh`` to ``folder``; what was there goes where ``fresh`` came from, to be cleaned up."""
    if folder.exists():
        folder.rename(fresh.with_name("replaced"))
    fresh.rename(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Iterable[str] | None = None) -> None:
    """Build the models named on the command line, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m models.build", description="Build models for the engines."
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"a name, or the path of a manifest; default: all ({', '.join(available())})",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folders are made")
    options = parser.parse_args(None if arguments is None else list(arguments))
    # Here, not above: a replica imports this module, and starts 14 ms earlier without.
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    for model in options.models or available():
        manifest = read_manifest(Path(model)) if model.endswith(".toml") else load_manifest(model)
        try:
            folder = build(manifest, options.out, lambda text: console.print(text, style="dim"))
        except BuildError as error:
            parser.exit(1, f"{error}\n")
        console.print(str(folder))


if __name__ == "__main__":
    main()
