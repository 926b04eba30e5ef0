"""The models a team registered, and which model serves: a folder, shared by whoever serves from it.

::

    <registry>/<name>-<version>/    manifest.toml, weights, tables, metrics.json …; whole, and never changed
    <registry>/serving.json         {"serving": "<ref>", "history": ["<ref>", …]}, replaced as a whole
    <registry>/.lock                held by whoever writes
    <registry>/.unfinished/         what is being written

Who reads takes no lock: whatever is there is complete, also after a writer was killed half-way.
"""

from __future__ import annotations

import fcntl
import filecmp
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.food.foods import MIXES
from app.stores.disk import to_disk
from app.stores.private import private_folder
from models.build import weights_path
from models.manifest import (
    MANIFEST,
    Manifest,
    ManifestError,
    available,
    load_catalogue,
    load_manifest,
    read_manifest,
)

DEFAULT = "meals-lite2"
"""What serves until something else is promoted."""

_SERVING = "serving.json"
_METRICS = "metrics.json"
_RECORDS = (_METRICS, "config.json", "curves.png")
"""What may come along for the reader."""


class RegistryError(ValueError):
    """The registry cannot do that, or cannot be read; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be promoted.

    Attributes:
        ref: what it is called, see models/manifest.py.
        version: its version.
        created: when it was registered; None for the project's own models.
        serving: whether it is the promoted one.
        figures: what its training measured last, on its own calibration split; shares, 0–1.
    """

    ref: str
    version: str
    created: datetime | None
    serving: bool
    figures: Mapping[str, float]


class _State(BaseModel):
    """What serving.json holds. ``history``: what served before and can be gone back to, oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    serving: str = DEFAULT
    history: tuple[str, ...] = ()


class _Metrics(BaseModel):
    """What is read of a training's metrics.json: the figures of its two stages."""

    heads_alone: Mapping[str, float] = Field(default={}, alias="heads alone")
    fine_tuned: Mapping[str, float] = Field(default={}, alias="fine-tuned")


class Registry:
    """A registry folder; it need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def serving(self) -> tuple[str, ...]:
        """The models that should serve. Raises RegistryError when the record of it is damaged."""
        return (self._state().serving,)

    def entries(self) -> list[Entry]:
        """Every model, the project's own first.

        Raises:
            RegistryError: the registry is damaged; the text says where.
        """
        serving = self._state().serving
        return [self._entry(ref, serving) for ref in available(self.folder)]

    def register(self, source: Path, trial: Callable[[Manifest], None] | None = None) -> Manifest:
        """Copy a model into the registry; the very same one again changes nothing.

        Args:
            source: a folder with ``manifest.toml`` and what it names, such as a training's run folder.
            trial: is given the copy before it appears; what it raises keeps the model out.

        Returns:
            The registered model's manifest.

        Raises:
            RegistryError: another model has this name and version.
            ManifestError, TableError, BuildError: the manifest, a table or the weights are wrong; see there.
            OSError: the files cannot be copied.
        """
        given = read_manifest(source / MANIFEST)
        if given.name in available() and given.version == load_manifest(given.name).version:
            raise RegistryError(
                f"{given.name} version {given.version} is the project's own: take another name or version"
            )
        folder = self.folder / given.folder
        with self._locked() as scratch:
            if folder.exists():
                known = read_manifest(folder / MANIFEST)
                if not _same(given, known):
                    raise RegistryError(f"{known.ref} is registered with other content: raise the version")
                if trial:
                    trial(known)
                return known
            # Checked is the copy: whoever still writes to the source must not get past the checks.
            copy = _copy(given, scratch / given.folder)
            weights_path(copy)
            load_catalogue(copy)
            if trial:
                trial(copy)
            copy.root.rename(folder)
            to_disk(self.folder)
        return read_manifest(folder / MANIFEST)

    def promote(self, ref: str, over: str | None = None) -> None:
        """Let ``ref`` serve from now on.

        Args:
            ref: any model there is.
            over: the model that it was found better than, if it was compared.

        Raises:
            ManifestError: there is no such model, or it cannot be read.
            RegistryError: ``over`` does not serve any more; or the registry is damaged.
        """
        with self._locked() as scratch:
            load_manifest(ref, self.folder)
            state = self._state()
            if over not in {None, state.serving}:
                raise RegistryError(f"meanwhile {state.serving} serves, not {over}: compare with that")
            if ref != state.serving:
                self._write(_State(serving=ref, history=(*state.history, state.serving)), scratch)

    def rollback(self) -> str:
        """Undo the last promotion: the model before it serves again. Its ref.

        Raises:
            ManifestError: that model cannot be read any more.
            RegistryError: nothing served before; or the registry is damaged.
        """
        with self._locked() as scratch:
            state = self._state()
            if not state.history:
                raise RegistryError(f"there is nothing to go back to: nothing served before {state.serving}")
            *history, ref = state.history
            load_manifest(ref, self.folder)
            self._write(_State(serving=ref, history=tuple(history)), scratch)
        return ref

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Be the only writer, with an empty folder for what is not finished yet."""
        private_folder(self.folder)
        scratch = self.folder / ".unfinished"
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(scratch, ignore_errors=True)  # of somebody who was killed
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _state(self) -> _State:
        path = self.folder / _SERVING
        try:
            return _State.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _State()
        except OSError as error:
            raise RegistryError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise RegistryError(
                f"{path} is damaged ({error.errors()[0]['msg']}): restore it, or delete it and promote again"
            ) from None

    def _write(self, state: _State, scratch: Path) -> None:
        fresh = scratch / _SERVING
        fresh.write_text(state.model_dump_json(indent=1) + "\n", "utf-8")
        to_disk(fresh)
        fresh.replace(self.folder / _SERVING)
        to_disk(self.folder)

    def _entry(self, ref: str, serving: str) -> Entry:
        try:
            manifest = load_manifest(ref, self.folder)
        except ManifestError as error:
            raise RegistryError(f"{ref} is damaged ({error}): remove its folder from {self.folder}") from None
        created = datetime.fromtimestamp(manifest.root.stat().st_mtime, UTC) if manifest.registered else None
        figures = _figures(manifest.root / _METRICS)
        return Entry(ref, manifest.version, created, ref == serving, figures)


def _parts(manifest: Manifest) -> list[str]:
    """The files in a model's own folder that make it what it is."""
    own = [MANIFEST, manifest.labels, manifest.foods, MIXES]
    if not manifest.weights.package:
        own.append(manifest.weights.file)
    if manifest.int8:
        own.append(manifest.int8.file)
    return [file for file in own if (manifest.root / file).is_file()]


def _same(one: Manifest, other: Manifest) -> bool:
    parts = _parts(one)
    return parts == _parts(other) and all(
        filecmp.cmp(one.root / file, other.root / file, shallow=False) for file in parts
    )


def _copy(manifest: Manifest, folder: Path) -> Manifest:
    """Copy a model's files, and the records of how it came to be, into a new folder; to the disk."""
    private_folder(folder)
    records = [file for file in _RECORDS if (manifest.root / file).is_file()]
    for file in (*_parts(manifest), *records):
        copy = folder / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(manifest.root / file, copy)
        to_disk(copy)
    for path in (folder, *(inner for inner in folder.rglob("*") if inner.is_dir())):
        to_disk(path)
    return read_manifest(folder / MANIFEST)


def _figures(path: Path) -> dict[str, float]:
    """What a metrics.json says; nothing where it says nothing that is known here."""
    try:
        stages = _Metrics.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    return dict(stages.fine_tuned or stages.heads_alone)
