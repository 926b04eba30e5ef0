"""The job behind mosec: Rust takes the requests, forms batches and hands them to Python workers.

A worker sees the body of a request and nothing of its headers, so the API key travels in the body, in
MessagePack beside the photo. The documentation's examples have a worker class for each stage and several
processes of each; whether two stages are better than one is among what was tried.
"""

import asyncio
import os
from typing import Any, Final

import msgspec
from mosec import Server, ValidationError, Worker
from numpy import uint8
from numpy.typing import NDArray

from app.errors import FoodDXError
from app.messages import PhotoJob, Rejected, Scored
from loadtests.peers import job

BEST: Final[job.Best] = {
    "compute": {"prepare": 1, "infer": 1, "batch": 1},
    "full": {"workers": 4, "batch": 8},
}
"""Found by ``python -m loadtests.peers.run --tune --only mosec``."""
TRIED: Final[job.Tried] = {
    "compute": [
        {"prepare": 1, "infer": 1, "batch": 1},
        {"prepare": 2, "infer": 1, "batch": 8},
        {"prepare": 2, "infer": 2, "batch": 1},
        {"prepare": 2, "infer": 0, "batch": 1},
        {"prepare": 3, "infer": 0, "batch": 1},
    ],
    "full": [
        {"workers": 2, "batch": 8},
        {"workers": 3, "batch": 1},
        {"workers": 3, "batch": 8},
        {"workers": 4, "batch": 1},
        {"workers": 4, "batch": 8},
        {"workers": 4, "batch": 16},
    ],
}
"""``prepare``, ``infer``: processes of each stage; no ``infer``: one stage does all. ``batch``: at most."""
_WAIT_MS: Final = 1


class Request(msgspec.Struct):  # type: ignore[misc]
    """A photo and who sends it."""

    api_key: str
    image: bytes


class Answering(Worker):  # type: ignore[misc]
    """What comes out is JSON already."""

    def __init__(self) -> None:
        super().__init__()
        self._scorer = job.Scorer(job.task(BEST).settings)

    def serialize(self, data: bytes) -> bytes:
        """See mosec.Worker."""
        return data

    def deserialize(self, data: bytearray) -> Any:
        """See mosec.Worker."""
        return bytes(data)


class Compute(Answering):
    """Decode and inference in one process."""

    def forward(self, data: bytes) -> bytes:
        """See mosec.Worker."""
        return self._scorer.answer(data)


class Prepare(Answering):
    """The first of two stages."""

    def forward(self, data: bytes) -> NDArray[uint8]:
        """See mosec.Worker."""
        return self._scorer.prepare(data).pixels[0]


class Infer(Answering):
    """The second: the pixels of one photo, or of several."""

    def forward(self, data: NDArray[uint8] | list[NDArray[uint8]]) -> bytes | list[bytes]:
        """See mosec.Worker."""
        batch = data if isinstance(data, list) else [data]
        answers = [self._scorer.top(self._scorer.infer(pixels)) for pixels in batch]
        return answers if isinstance(data, list) else answers[0]


class Full(Answering):
    """The full job. Photos of a batch share an event loop: one is scored while others wait for a store."""

    def __init__(self) -> None:
        super().__init__()
        self._job = job.FullJob(job.task(BEST).settings, self._score)
        self._keys = job.Keys(job.task(BEST).settings)
        self._loop = asyncio.new_event_loop()

    async def _score(self, photo: PhotoJob) -> Scored | Rejected:
        return self._scorer.score(photo)

    def deserialize(self, data: bytearray) -> Any:
        """See mosec.Worker."""
        try:
            return msgspec.msgpack.decode(data, type=Request)
        except msgspec.DecodeError as error:
            raise ValidationError(error) from error

    def forward(self, data: Request | list[Request]) -> bytes | list[bytes]:
        """See mosec.Worker."""
        batch = data if isinstance(data, list) else [data]
        answers = self._loop.run_until_complete(self._run(batch))
        return answers if isinstance(data, list) else answers[0]

    async def _run(self, batch: list[Request]) -> list[bytes]:
        return await asyncio.gather(*(self._one(request) for request in batch))

    async def _one(self, request: Request) -> bytes:
        try:
            self._keys.check(f"Bearer {request.api_key}")
            return await self._job.run(request.image)
        except FoodDXError as error:  # mosec has one status for a whole batch
            raise ValidationError(error.code) from error


def main() -> None:
    """Serve until SIGTERM."""
    task = job.task(BEST)
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(task.settings.port)}
    os.environ |= {"MOSEC_TIMEOUT": str(round(job.BUDGET_S * 1000)), "MOSEC_LOG_LEVEL": "warning"}
    options, wait_ms = task.options, _WAIT_MS
    server = Server()
    if task.level == "full":
        server.append_worker(
            Full, options["workers"], options["batch"], wait_ms, timeout=job.BUDGET_S, route=job.ROUTE
        )
    elif options["infer"]:
        server.append_worker(Prepare, options["prepare"], route=job.ROUTE)
        server.append_worker(Infer, options["infer"], options["batch"], wait_ms, route=job.ROUTE)
    else:
        server.append_worker(Compute, options["prepare"], route=job.ROUTE)
    server.run()


if __name__ == "__main__":
    main()
