"""The job behind FastAPI, served by uvicorn with uvloop and httptools: several processes on one socket.

As its documentation has it: as many workers as cores, ``async def`` routes where there is waiting, and in a
thread whatever would block the loop.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final

import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request, Response

from app.errors import FoodDXError
from app.messages import PhotoJob, Rejected, Scored
from loadtests.peers import job

BEST: Final[job.Best] = {"compute": {"workers": 2, "threads": 2}, "full": {"workers": 2, "threads": 2}}
"""Found by ``python -m loadtests.peers.run --tune --only fastapi``."""
TRIED: Final = job.WORKERS_BY_THREADS


def compute() -> FastAPI:
    """Decode and inference in threads."""
    task = job.task(BEST)
    number = task.options["threads"]
    api, scorers, threads = FastAPI(), job.Scorers(task.settings, number), ThreadPoolExecutor(number)

    @api.post(job.ROUTE)
    async def score(request: Request) -> Response:
        data = await request.body()
        answer = await asyncio.get_running_loop().run_in_executor(threads, scorers.answer, data)
        return Response(answer, media_type="application/json")

    return api


def full() -> FastAPI:
    """The full job; decode and inference in a thread beside the loop."""
    task = job.task(BEST)
    number = task.options["threads"]
    api, scorers, threads = FastAPI(), job.Scorers(task.settings, number), ThreadPoolExecutor(number)

    async def in_thread(photo: PhotoJob) -> Scored | Rejected:
        return await asyncio.get_running_loop().run_in_executor(threads, scorers.score, photo)

    keys, work = job.Keys(task.settings), job.FullJob(task.settings, in_thread)

    @api.post(job.ROUTE)
    async def score(request: Request, authorization: Annotated[str, Header()] = "") -> Response:
        try:
            keys.check(authorization)
            return Response(await work.run(await request.body()), media_type="application/json")
        except FoodDXError as error:
            raise HTTPException(error.status, error.code) from error

    return api


def main() -> None:
    """Serve until SIGTERM."""
    task = job.task(BEST)
    uvicorn.run(
        f"loadtests.peers.fastapi_server:{task.level}",
        factory=True,
        port=task.settings.port,
        workers=task.options["workers"],
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
