"""Builds the Lambda function: one zip of what its handler imports, and nothing else.

    python -m app.tenants.package build/decryptor.zip --python 3.13 --arch arm64

The same sources, packages and Python give the same bytes. Without options it is for the Python that builds
it, from the packages installed there; with them, those packages are fetched for the other Python or
processor, at the versions and hashes of requirements.lock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

HANDLER: Final = "app.tenants.decryptor.handler"
ROOT: Final = Path(__file__).parents[2]
_HERE = "{}.{}".format(*sys.version_info)
_PACKAGES = ("cryptography", "cffi")
_SHIPPED = ("app", "cryptography", "_cffi_backend")
_PROBE = """
import json, sys, app.tenants.decryptor, app.tenants.kms
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
json.dump({name: file for name, file in files.items() if file}, sys.stdout)
"""
_PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
_ARCHITECTURES = {"x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
_FIRST_WITH_GLIBC_2_34 = (3, 12)  # the runtimes on Amazon Linux 2023; python3.11 has glibc 2.26


class Built(NamedTuple):
    """A zip that was built.

    Attributes:
        path: where.
        size: bytes.
        unpacked: bytes of its files.
        sha256: of the zip, hex.
        glibc: the oldest GNU C library that its compiled modules load with: (2, 34), for example.
        bytecode: whether its modules come compiled; if not, each cold start compiles them.
    """

    path: Path
    size: int
    unpacked: int
    sha256: str
    glibc: tuple[int, int]
    bytecode: bool


def build(path: Path, python: str = _HERE, arch: str = platform.machine()) -> Built:
    """Write the zip.

    Args:
        path: of the zip; one that is there is replaced.
        python: version that will run it, as ``3.13``.
        arch: processor that will run it: ``x86_64`` or ``arm64``.

    Raises:
        subprocess.CalledProcessError: the packages cannot be fetched, or the handler cannot be imported.
        KeyError: an unknown processor.
    """
    machine = _ARCHITECTURES[arch]
    with tempfile.TemporaryDirectory() as work:
        stage, fetched = Path(work) / "stage", Path(work) / "fetched"
        native = (python, machine) == (_HERE, _ARCHITECTURES[platform.machine()])
        if not native:
            _fetch(fetched, python, machine)
        for name, source in _needed().items():
            _copy(name, source if native or name.startswith("app/") else _twin(fetched, name), stage)
        bytecode = _compile(stage, python)
        _zip(stage, path)
        files = [file for file in stage.rglob("*") if file.is_file()]
        unpacked = sum(file.stat().st_size for file in files)
        glibc = max(_glibc(file) for file in files)
    data = path.read_bytes()
    return Built(path, len(data), unpacked, hashlib.sha256(data).hexdigest(), glibc, bytecode)


def _needed() -> dict[str, Path]:
    """Every file that the handler loads with all it may import later, by its name in the zip."""
    command = [sys.executable, "-c", _PROBE]
    found = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)  # noqa: S603 - our own words
    needed = {}
    for module, file in json.loads(found.stdout).items():
        *folders, name = module.split(".")
        if (folders or [name])[0] in _SHIPPED:
            inside = [*folders, name] if Path(file).name == "__init__.py" else folders
            needed[str(PurePosixPath(*inside, Path(file).name))] = Path(file)
    return needed


def _fetch(folder: Path, python: str, machine: str) -> None:
    """Install the packages for another Python or processor into ``folder``."""
    folder.mkdir()
    pins = folder / "pins.txt"
    pins.write_text(pinned((ROOT / "requirements.lock").read_text(), _PACKAGES))
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--target",
        str(folder),
    ]
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_{machine}")]
    target = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python, *platforms]
    subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-m", "pip", "install", *options, *target, "-r", str(pins)], check=True
    )


def pinned(lock: str, packages: Sequence[str]) -> str:
    """The entries of some packages in a requirements file, each with its hashes."""
    entries = re.findall(r"^(?:[^\s#].*\\\n)(?:[ \t].*\n?)+", lock, re.MULTILINE)
    return "".join(entry for entry in entries if entry.partition("==")[0] in packages)


def _twin(fetched: Path, name: str) -> Path:
    """The file for the other Python that ``name`` is for this one."""
    if not name.endswith(".so"):
        return fetched / name
    folder, stem = PurePosixPath(name).parent, PurePosixPath(name).name.partition(".")[0]
    return next((fetched / folder).glob(f"{stem}.*so"))


def _copy(name: str, source: Path, stage: Path) -> None:
    target = (stage / name).with_name(source.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _compile(stage: Path, python: str) -> bool:
    """Compile the modules, if there is such a Python here: where Lambda unpacks them it cannot write."""
    interpreter = sys.executable if python == _HERE else shutil.which(f"python{python}")
    if not interpreter:
        return False
    # Trusted unchecked: times of files do not survive in a zip that is the same every time.
    how = ["--invalidation-mode", "unchecked-hash", "-s", str(stage), "-p", "/var/task"]
    command = [interpreter, "-I", "-m", "compileall", "-q", *how, str(stage)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 - as above


def _zip(stage: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(stage.rglob("*")):
            if file.is_file():
                entry = zipfile.ZipInfo(file.relative_to(stage).as_posix(), (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes())


def _glibc(file: Path) -> tuple[int, int]:
    if file.suffix != ".so":
        return 2, 0
    return 2, max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", file.read_bytes())), default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m app.tenants.package", description=__doc__.split("\n")[0])
    parser.add_argument("zip", type=Path)
    parser.add_argument("--python", default=_HERE, help="the version that will run it (%(default)s)")
    parser.add_argument("--arch", default=platform.machine(), choices=tuple(_ARCHITECTURES))
    options = parser.parse_args(arguments)
    built = build(options.zip, options.python, options.arch)
    lines = [
        f"{built.path}: {built.size / 1e6:.1f} MB, unpacked {built.unpacked / 1e6:.1f} MB",
        f"sha256 {built.sha256}",
        f"handler {HANDLER}",
        "for Python {}, {}, glibc {}.{} or newer".format(options.python, options.arch, *built.glibc),
    ]
    if not built.bytecode:
        lines.append(f"not compiled, as there is no python{options.python} here: cold starts take longer")
    version = tuple(int(part) for part in options.python.split("."))
    if built.glibc > (2, 26) and version < _FIRST_WITH_GLIBC_2_34:
        lines.append("AWS's own runtimes have that glibc from Python 3.12 on: for them, give --python 3.13")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
