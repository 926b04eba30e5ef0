"""A small client of the HTTP contract: safe retries, several photos at once. What ``fooddx`` asks with."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from app.settings import load_settings

_TRIES = 5
_LONGEST_WAIT_S = 10.0
# After a broken connection or an error page. Together they outlast the restart of a replica, 2 to 4 s.
_WAITS_S = (0.25, 0.5, 1.0, 2.0, 4.0)
_DOWNLOADS = 4
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COLUMNS = {"image", "id", "sha256"}
_MEDIA_TYPE = re.compile(r"image/([a-z]+)")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class ServiceError(RuntimeError):
    """The service cannot be asked; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one photo: a result, or an error in words.

    Attributes:
        photo: its path.
        result: the service's answer, or None.
        error: why there is none, or None.
        milliseconds: from the first try to the answer; None where no answer came.
        unanswered: the photo was sent, and no FoodDX answered.
    """

    photo: Path
    result: dict[str, Any] | None
    error: str | None
    milliseconds: float | None
    unanswered: bool = False


class Client:
    """Talks to one service. A retry carries the first try's Idempotency-Key, so it never scores twice."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key or _own_key()}"}
        self._gave_up = False
        try:
            # A proxy of the environment would look for this machine's service on its own machine.
            proxied = httpx.URL(url).host not in _LOOPBACK
            self._http = httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=proxied)
        except UnicodeEncodeError:
            raise ServiceError("the API key holds characters that no key has") from None
        except httpx.InvalidURL as error:
            raise ServiceError(f"not a URL: {url} ({error})") from None
        if self._http.base_url.scheme not in {"http", "https"}:
            raise ServiceError(f"not an http:// or https:// URL: {url}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> dict[str, Any]:
        """The answer of ``GET /v1/models``."""
        response = self._send("GET", "/v1/models")
        if not response.is_success:
            raise ServiceError(_words(response))
        return _answer(response)

    def score_all(
        self,
        photos: Sequence[Path],
        profile: str | None,
        parallel: int,
        done: Callable[[], None],
    ) -> list[Outcome]:
        """Score ``photos``, ``parallel`` at a time; ``done`` is called after each. The order is kept.

        A photo that gets no answer is an outcome like any other: what was scored before is not lost.
        """

        def one(photo: Path) -> Outcome:
            try:
                return self._score(photo, profile)
            finally:
                done()

        with ThreadPoolExecutor(max(1, parallel)) as threads:
            return list(threads.map(one, photos))

    def export_labels(self, folder: Path, photos: bool) -> int:
        """Write what nutritionists decided to ``folder/labels.csv``, for a training to read.

        With ``photos`` each photo is fetched to ``folder/photos/<sha256>.<type>``, unless it is there whole,
        and ``image`` is that path, relative to ``folder``; else it is the photo's key in the object store.
        The table is replaced at the very end: after an error the old one is there as it was, and the photos
        fetched so far are not fetched again. What is deleted from the service meanwhile is left out.

        Returns:
            The number of labels.

        Raises:
            ServiceError: the service cannot be asked, or refuses.
            OSError: the folder cannot be written.
        """
        columns, labels = self._labels()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if photos:
            (folder / "photos").mkdir(mode=0o700, exist_ok=True)
            there = {path.stem: path for path in (folder / "photos").iterdir()}
            with ThreadPoolExecutor(_DOWNLOADS) as threads:
                paths = list(threads.map(lambda label: self._photo(label, folder / "photos", there), labels))
            labels = [
                label | {"image": path.relative_to(folder).as_posix()}
                for label, path in zip(labels, paths, strict=True)
                if path
            ]
        table = io.StringIO()
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(labels)
        _write(folder / "labels.csv", table.getvalue().encode())
        return len(labels)

    def _labels(self) -> tuple[Sequence[str], list[dict[str, str]]]:
        """The columns, and every label once, as it was reviewed last."""
        labels: dict[str, dict[str, str]] = {}
        query = httpx.QueryParams()
        while True:
            response = self._send("GET", "/v1/labels", params=query, headers={"Accept": "text/csv"})
            if not response.is_success:
                raise ServiceError(_words(response))
            columns, rows = _table(response)
            labels |= {row["id"]: row for row in rows}
            link = response.links.get("next", {}).get("url")
            if link is None:
                return columns, list(labels.values())
            # Its query alone: the address could be one of another host, which must not get the API key.
            following = httpx.QueryParams(link.partition("?")[2])
            if following == query:
                raise _not_ours(response)  # the same page for ever
            query = following

    def _photo(self, label: dict[str, str], folder: Path, there: Mapping[str, Path]) -> Path | None:
        """The photo of a label, fetched unless it is in the folder; None when its result is gone."""
        sha256 = label["sha256"]
        if (path := there.get(sha256)) and _is(path.read_bytes(), sha256):
            return path
        response = self._send("GET", f"/v1/scores/{label['id']}/image")
        if response.status_code == 404 and _problem(response):
            return None
        if not response.is_success:
            raise ServiceError(_words(response))
        kind = _MEDIA_TYPE.fullmatch(response.headers.get("content-type", ""))
        if kind is None or not _is(response.content, sha256):
            raise ServiceError(f"what came as the photo of {label['id']} is not that photo")
        path = folder / f"{sha256}.{kind[1]}"
        _write(path, response.content)
        return path

    def _score(self, photo: Path, profile: str | None) -> Outcome:
        try:
            data = photo.read_bytes()
        except OSError as error:
            return Outcome(photo, None, f"cannot be read: {error.strerror}", None)
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        body: dict[str, Any] = (
            {"files": {"image": ("photo", data)}, "data": {"profile": profile}}
            if profile
            else {"content": data}
        )
        start = time.perf_counter()
        try:
            response = self._send("POST", "/v1/scores", headers=headers, **body)
            result = _answer(response) if response.is_success else None
        except ServiceError as error:
            return Outcome(photo, None, str(error), None, unanswered=True)
        milliseconds = round((time.perf_counter() - start) * 1000, 1)
        return Outcome(photo, result, _words(response) if result is None else None, milliseconds)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send, and send again where that may help: the service says so, or did not get to say anything.

        Once a request has waited in vain, the next ones are sent once only, until the service answers: a
        folder does not wait for a dead service photo by photo.
        """
        waits = iter(() if self._gave_up else _WAITS_S)
        refusals = 0
        while True:
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                wait_s = next(waits, None)
                if wait_s is None:
                    self._gave_up = True
                    raise ServiceError(
                        f"no answer from {self._http.base_url} ({error}); is it running? `make run` starts it"
                    ) from None
            else:
                if response.is_server_error and _problem(response) is None:
                    wait_s = next(waits, None)
                    self._gave_up |= wait_s is None
                else:
                    self._gave_up = False
                    refusals += 1
                    wait_s = _told_wait_s(response) if refusals < _TRIES else None
                if wait_s is None:
                    return response
            time.sleep(wait_s)


def _own_key() -> str:
    """The key this machine's service was given or made."""
    settings = load_settings()
    if settings.api_key:
        return settings.api_key.get_secret_value()
    path = settings.data_dir / "api_key"
    if not path.exists():
        raise ServiceError(f"no API key: give --api-key or FOODDX_API_KEY; there is none in {path.parent}")
    return path.read_text().strip()


def _told_wait_s(response: httpx.Response) -> float | None:
    """Seconds after which the service wants to be asked again; None where that would not help."""
    retry_after = response.headers.get("retry-after")
    if response.status_code not in {409, 429, 503, 504} or retry_after is None:
        return None
    try:
        return min(max(float(retry_after), 0.0), _LONGEST_WAIT_S)
    except ValueError:
        return 1.0  # a date, which only a proxy would write


def _answer(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a success."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _not_ours(response)
    return answer


def _table(response: httpx.Response) -> tuple[Sequence[str], list[dict[str, str]]]:
    """The columns and rows of a page of labels."""
    reader = csv.DictReader(io.StringIO(response.text, newline=""), strict=True)
    with contextlib.suppress(csv.Error):
        rows, columns = list(reader), reader.fieldnames or ()
        whole = all(None not in row and None not in row.values() for row in rows)
        # A hash becomes a file name.
        if whole and set(columns) >= _COLUMNS and all(_SHA256.fullmatch(row["sha256"]) for row in rows):
            return columns, rows
    raise _not_ours(response)


def _not_ours(response: httpx.Response) -> ServiceError:
    return ServiceError(f"what answers at {response.url} is not FoodDX")


def _is(data: bytes, sha256: str) -> bool:
    return hashlib.sha256(data).hexdigest() == sha256


def _write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: all of it or, after an error, what was there before."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _problem(response: httpx.Response) -> str | None:
    """A problem of ours in one line; None for the error page of whatever stands before the service."""
    try:
        problem = response.json()
        return f"{problem['detail']} ({problem['code']}, request {problem['request_id']})"
    except (ValueError, KeyError, TypeError):
        return None


def _words(response: httpx.Response) -> str:
    return _problem(response) or f"HTTP {response.status_code}"
