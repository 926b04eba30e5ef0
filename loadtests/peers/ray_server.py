"""The job as Ray Serve's documentation serves an image model: one deployment that does all of it.

A class with the model, a ``__call__`` that takes a Starlette request and computes where it is, Serve's own
HTTP proxy, every setting at its default but the number of replicas.
"""

import tempfile
from pathlib import Path
from typing import Final

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import FoodDXError
from app.messages import PhotoJob, Rejected, Scored
from loadtests.peers import job

BEST: Final[job.Best] = {"compute": {"replicas": 3}, "full": {"replicas": 3}}
"""Found by ``python -m loadtests.peers.run --tune --only ray``."""
TRIED: Final[job.Tried] = {
    "compute": [{"replicas": 1}, {"replicas": 2}, {"replicas": 3}, {"replicas": 4}],
    "full": [{"replicas": 1}, {"replicas": 2}, {"replicas": 3}, {"replicas": 4}],
}


@serve.deployment
class ComputeModel:
    """Decode and inference."""

    def __init__(self) -> None:
        self._scorer = job.Scorer(job.task(BEST).settings)

    async def __call__(self, request: Request) -> Response:
        """Score a photo."""
        return Response(self._scorer.answer(await request.body()), media_type="application/json")


@serve.deployment
class ImageModel:
    """The full job."""

    def __init__(self) -> None:
        settings = job.task(BEST).settings
        self._scorer = job.Scorer(settings)
        self._job = job.FullJob(settings, self._score)
        self._keys = job.Keys(settings)

    async def _score(self, photo: PhotoJob) -> Scored | Rejected:
        return self._scorer.score(photo)

    async def __call__(self, request: Request) -> Response:
        """Score a photo."""
        try:
            self._keys.check(request.headers.get("authorization"))
            answer = await self._job.run(await request.body())
        except FoodDXError as error:
            return JSONResponse({"code": error.code}, error.status)
        return Response(answer, media_type="application/json")


def main() -> None:
    """Serve until SIGTERM."""
    task = job.task(BEST)
    replicas = task.options["replicas"]
    model: serve.Deployment = ComputeModel if task.level == "compute" else ImageModel
    # A cluster of its own, in a folder of its own: others may run on this machine.
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        ray.init(
            address="local",
            num_cpus=max(2, replicas),
            include_dashboard=False,
            _temp_dir=str(Path(folder)),
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": task.settings.port})
            serve.run(model.options(num_replicas=replicas).bind(), route_prefix=job.ROUTE, blocking=True)
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
