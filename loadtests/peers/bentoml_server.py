"""The job behind BentoML: worker processes that share a port, each with an event loop and some threads.

As its documentation advises, as many workers as cores for work of the CPU, synchronous methods for computing
and asynchronous ones where there is waiting. No adaptive batching: on a CPU a batch of this model wins
nothing.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import bentoml
from starlette.responses import JSONResponse, Response

from app.errors import FoodDXError
from app.messages import PhotoJob, Rejected, Scored
from loadtests.peers import job

BEST: Final[job.Best] = {"compute": {"workers": 2, "threads": 2}, "full": {"workers": 2, "threads": 2}}
"""Found by ``python -m loadtests.peers.run --tune --only bentoml``."""
TRIED: Final = job.WORKERS_BY_THREADS
_TASK: Final = job.task(BEST)
_service = bentoml.service(
    workers=_TASK.options["workers"],
    threads=_TASK.options["threads"],
    traffic={"timeout": job.BUDGET_S},
    logging={"access": {"enabled": False}},
)


@_service
class Compute:
    """Decode and inference, in the worker's threads for synchronous methods."""

    def __init__(self) -> None:
        self._scorers = job.Scorers(_TASK.settings, _TASK.options["threads"])

    @bentoml.api(route=job.ROUTE)  # type: ignore[untyped-decorator]
    def score(self, image: bytes, /) -> Any:
        """Score a photo."""
        return Response(self._scorers.answer(image), media_type="application/json")


@_service
class Full:
    """The full job; decode and inference in a thread beside the loop."""

    def __init__(self) -> None:
        number = _TASK.options["threads"]
        self._scorers, self._threads = job.Scorers(_TASK.settings, number), ThreadPoolExecutor(number)
        self._job = job.FullJob(_TASK.settings, self._score)
        self._keys = job.Keys(_TASK.settings)

    async def _score(self, photo: PhotoJob) -> Scored | Rejected:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._scorers.score, photo)

    @bentoml.api(route=job.ROUTE)  # type: ignore[untyped-decorator]
    async def score(self, image: bytes, /, ctx: bentoml.Context) -> Any:
        """Score a photo."""
        try:
            self._keys.check(ctx.request.headers.get("authorization"))
            return Response(await self._job.run(image), media_type="application/json")
        except FoodDXError as error:
            ctx.response.status_code = error.status
            return JSONResponse({"code": error.code}, error.status)


service = Compute if _TASK.level == "compute" else Full
