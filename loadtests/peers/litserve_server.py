"""The job behind LitServe: FastAPI processes take the requests, a queue leads to worker processes.

Tuned as its documentation advises: as many workers as cores, ZeroMQ (``fast_queue``) from a hundred requests
a second on, ``enable_async`` where there is waiting. The annotation ``bytes`` spares the photo base64 and
JSON.
"""

import asyncio
from typing import Annotated, Any, Final

import litserve
from fastapi import Body, Header, HTTPException, Response

from app.errors import FoodDXError
from app.messages import PhotoJob, Rejected, Scored
from loadtests.peers import job

BEST: Final[job.Best] = {
    "compute": {"workers": 2, "api_servers": 1, "fast_queue": 1},
    "full": {"workers": 2, "api_servers": 1, "fast_queue": 1, "async": 1},
}
"""Found by ``python -m loadtests.peers.run --tune --only litserve``."""
TRIED: Final[job.Tried] = {
    "compute": [
        {"workers": 2, "api_servers": 1, "fast_queue": 0},
        {"workers": 2, "api_servers": 1, "fast_queue": 1},
        {"workers": 2, "api_servers": 2, "fast_queue": 1},
        {"workers": 3, "api_servers": 1, "fast_queue": 1},
    ],
    "full": [
        {"workers": 2, "api_servers": 1, "fast_queue": 1, "async": 0},
        {"workers": 3, "api_servers": 1, "fast_queue": 1, "async": 0},
        {"workers": 4, "api_servers": 1, "fast_queue": 1, "async": 0},
        {"workers": 2, "api_servers": 1, "fast_queue": 1, "async": 1},
        {"workers": 3, "api_servers": 1, "fast_queue": 1, "async": 1},
        {"workers": 2, "api_servers": 2, "fast_queue": 1, "async": 0},
    ],
}
Photo = Annotated[bytes, Body(media_type="image/jpeg")]


class Compute(litserve.LitAPI):  # type: ignore[misc]
    """Decode and inference."""

    def setup(self, device: str) -> None:
        """See litserve.LitAPI."""
        self._scorer = job.Scorer(job.task(BEST).settings)

    def decode_request(self, request: Photo) -> Any:
        """See litserve.LitAPI."""
        return request

    def predict(self, data: bytes) -> Any:
        """See litserve.LitAPI."""
        return self._scorer.answer(data)

    def encode_response(self, output: bytes) -> Any:
        """See litserve.LitAPI."""
        return Response(output, media_type="application/json")


class Full(Compute):
    """The full job, one photo after the other in each worker; the key is checked before the queue."""

    def __init__(self, *, enable_async: bool = False) -> None:
        super().__init__(api_path=job.ROUTE, enable_async=enable_async)
        self._keys = job.Keys(job.task(BEST).settings)

    def setup(self, device: str) -> None:
        """See litserve.LitAPI."""
        super().setup(device)
        self._job = job.FullJob(job.task(BEST).settings, self._score)
        self._loop = asyncio.new_event_loop()

    async def _score(self, photo: PhotoJob) -> Scored | Rejected:
        return self._scorer.score(photo)

    def authorize(self, authorization: Annotated[str, Header()] = "") -> None:
        """See litserve.LitAPI."""
        try:
            self._keys.check(authorization)
        except FoodDXError as error:
            raise HTTPException(error.status, error.code) from error

    def predict(self, data: bytes) -> Any:
        """See litserve.LitAPI."""
        return self._loop.run_until_complete(self._run(data))

    async def _run(self, data: bytes) -> bytes:
        try:
            return await self._job.run(data)
        except FoodDXError as error:
            raise HTTPException(error.status, error.code) from error


class FullAsync(Full):
    """The full job; a worker takes the next photo while one waits for a store."""

    async def decode_request(self, request: Photo) -> bytes:
        """See litserve.LitAPI."""
        return request

    async def predict(self, data: bytes) -> bytes:
        """See litserve.LitAPI."""
        return await self._run(data)

    async def encode_response(self, output: bytes) -> Response:
        """See litserve.LitAPI."""
        return Response(output, media_type="application/json")


def main() -> None:
    """Serve until SIGTERM."""
    task = job.task(BEST)
    options = task.options
    if task.level == "compute":
        api = Compute(api_path=job.ROUTE)
    elif options["async"]:
        api = FullAsync(enable_async=True)
    else:
        api = Full()
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=options["workers"],
        fast_queue=bool(options["fast_queue"]),
        timeout=job.BUDGET_S,
    )
    server.run(
        host="127.0.0.1",
        port=task.settings.port,
        num_api_servers=options["api_servers"],
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
