"""A small client of the HTTP contract: safe retries, several photos at once. What ``fooddx score`` uses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from app.settings import load_settings

_TRIES = 5
_LONGEST_WAIT_S = 10.0


class ServiceError(RuntimeError):
    """The service cannot be asked at all; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one photo: a result, or an error in words."""

    photo: Path
    result: dict[str, Any] | None
    error: str | None
    milliseconds: float | None


class Client:
    """Talks to one service. A retry carries the first try's Idempotency-Key, so it never scores twice."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key or _own_key()}"}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=30)
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
        """Score ``photos``, ``parallel`` at a time; ``done`` is called after each. The order is kept."""

        def one(photo: Path) -> Outcome:
            try:
                return self._score(photo, profile)
            finally:
                done()

        with ThreadPoolExecutor(max(1, parallel)) as threads:
            return list(threads.map(one, photos))

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
        response = self._send("POST", "/v1/scores", headers=headers, **body)
        milliseconds = round((time.perf_counter() - start) * 1000, 1)
        if response.is_success:
            return Outcome(photo, _answer(response), None, milliseconds)
        return Outcome(photo, None, _words(response), milliseconds)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send, and send again while the service says that this may help."""
        for attempt in range(1, _TRIES + 1):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if attempt == _TRIES:
                    raise ServiceError(
                        f"no answer from {self._http.base_url} ({error}); is it running? `make run` starts it"
                    ) from None
                time.sleep(0.2 * attempt)
                continue
            if response.status_code not in {409, 429, 503, 504} or "retry-after" not in response.headers:
                break
            if attempt < _TRIES:
                time.sleep(_wait_s(response.headers["retry-after"]))
        return response


def _own_key() -> str:
    """The key this machine's service was given or made."""
    settings = load_settings()
    if settings.api_key:
        return settings.api_key.get_secret_value()
    path = settings.data_dir / "api_key"
    if not path.exists():
        raise ServiceError(f"no API key: give --api-key or FOODDX_API_KEY; there is none in {path.parent}")
    return path.read_text().strip()


def _wait_s(retry_after: str) -> float:
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
        raise ServiceError(f"what answers at {response.url} is not FoodDX")
    return answer


def _words(response: httpx.Response) -> str:
    """A problem in one line."""
    try:
        problem = response.json()
        return f"{problem['detail']} ({problem['code']}, request {problem['request_id']})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
