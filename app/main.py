"""The graph: Ingress → Preprocessor → Scorer, three deployments chained by handles.

With a queue, the Intake is a second way in.

``serve run app.main:build`` runs it on one machine, ``serve deploy serve_config.yaml`` on a cluster, and
``fooddx serve`` (``make run``) adds the set-up around it. Arguments are those of app/settings.py.
"""

import atexit
import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from pydantic import SecretStr
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from app.deployments.ingress import Ingress
from app.deployments.intake import STOP_S, Intake
from app.deployments.preprocessor import Preprocessor
from app.deployments.scorer import ModelHome, Scorer
from app.engines import Device
from app.imaging.guards import ImageLimits
from app.settings import Settings, SettingsError, load_settings
from app.stores.embedded import EmbeddedStore
from app.tenants.keys import api_key_of
from app.tenants.tenants import Tenant
from models.build import build_apart
from models.manifest import load_manifest
from models.registry import Registry

_FASTER = ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_HA_PROXY")


def build(args: dict[str, str]) -> Application:
    """What ``serve run`` and ``serve deploy`` call; ``args`` are settings, see app/settings.py."""
    settings = load_settings(**args)
    _check_deployable(settings)
    settings.make_data_dir()
    _hint()
    settings = settings.model_copy(
        update={"models": settings.models or Registry(settings.registry_dir).serving()}
    )
    build_apart([load_manifest(ref, settings.registry_dir) for ref in settings.models], settings.models_dir)
    return graph(settings.model_copy(update={"redis_url": _redis_url(settings)}))


def graph(settings: Settings, models: Sequence[str] = ()) -> Application:
    """The three deployments and the handles between them. ``redis_url`` must be set, the models built.

    ``models`` take over from ``settings.models`` in replicas that run already: they are all that differs
    from the graph before, and they are in ``user_config``, which replaces no replica.
    """
    device = _device(settings)
    if settings.decode == "gpu" and device != "cuda":
        raise SettingsError("decode=gpu: the scorer must run on one, with device=cuda")

    common: dict[str, Any] = {
        # Asked often, so that a broken replica is soon replaced; a busy one gets 10 s to answer.
        "health_check_period_s": 2,
        "health_check_timeout_s": 10,
        # A replica that is to go finishes what it holds, and is asked twice a second whether it has.
        "graceful_shutdown_wait_loop_s": 0.5,
        # One JSON object a line, with the request's id; our line per photo replaces Serve's access log.
        "logging_config": LoggingConfig(
            encoding="JSON", log_level=settings.log_level, enable_access_log=False
        ),
    }

    # A replica holds what it works on plus a short queue; what is beyond is refused where it came from, so
    # that the wait never outlives the budget. A preprocessor has one call at the scorer, of up to 16 photos.
    scorer = _lasting(
        Scorer,
        settings,
        name="Scorer",
        num_replicas=settings.scorer_replicas,
        max_ongoing_requests=4 * settings.batch_size,
        max_queued_requests=settings.max_in_flight * settings.ingress_replicas,
        ray_actor_options={"num_cpus": settings.scorer_threads, "num_gpus": int(device == "cuda")},
        # Changed by a new deploy without a restart, as is the ingress's.
        user_config={
            "batch_size": settings.batch_size,
            "batch_wait_ms": settings.batch_wait_ms,
            "models": list(models),
        },
        graceful_shutdown_timeout_s=10,
        **common,
    ).bind(
        settings.models,
        ModelHome(
            settings.registry_dir,
            settings.models_dir,
            device,
            settings.scorer_threads,
            settings.precision,
            settings.decode,
        ),
        settings.batch_size,
    )

    preprocessor = _lasting(
        Preprocessor,
        settings,
        name="Preprocessor",
        num_replicas=settings.preprocessor_replicas,
        max_ongoing_requests=settings.max_in_flight,
        max_queued_requests=settings.max_in_flight,
        # With the ingress one core, so that the graph fits two: CPUs are Ray's bookkeeping, not a limit.
        ray_actor_options={"num_cpus": 0.8},
        graceful_shutdown_timeout_s=10,
        **common,
    ).bind(
        settings.registry_dir,
        ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels),
        scorer,
        settings.decode,
    )

    way_in = (
        settings.without_secrets(),
        settings.redis_url,
        Tenant.first(api_key_of(settings)),
        preprocessor,
    )
    judged_by = {"thresholds": {}, "models": list(models)}
    beside = []
    if settings.queue:
        intake = _lasting(
            Intake,
            settings,
            name="Intake",
            num_replicas=settings.intake_replicas,
            # Nobody calls it.
            max_ongoing_requests=1,
            max_queued_requests=1,
            ray_actor_options={"num_cpus": 0.2},
            user_config=judged_by,
            # A poll that is under way, then the photos in hand, then what is given back.
            graceful_shutdown_timeout_s=2 * STOP_S,
            **common,
        )
        beside.append(intake.bind(*way_in))

    return _lasting(
        Ingress,
        settings,
        name="Ingress",
        num_replicas=settings.ingress_replicas,
        # Photos are bounded by `max_in_flight`, which answers as a problem; this bound is for everything
        # else that is open: bodies still arriving, diaries, health checks.
        max_ongoing_requests=4 * settings.max_in_flight,
        max_queued_requests=settings.max_in_flight,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 0.2},
        user_config=judged_by,
        # Longer than the two behind it: its requests wait for theirs.
        graceful_shutdown_timeout_s=20,
        **common,
    ).bind(*way_in, *beside)


def _lasting(body: type, settings: Settings, **options: Any) -> Deployment:
    """A deployment whose replicas outlive a second ``serve.run`` that changes its options alone.

    ``serve.run`` would give it a version of its own each time, and so replace every replica (ray 2.60,
    client.py, `deploy_application`); ``serve deploy`` versions by the config file instead. Whatever else the
    replicas are made from is in the version: Ray does not look at their arguments.
    """
    made_from = [version("fooddx"), settings.model_dump_json(), api_key_of(settings), _redis(settings)]
    digest = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]
    return serve.deployment(body, **options).options(version=digest, _internal=True)


def _redis(settings: Settings) -> str:
    return settings.redis_url.get_secret_value() if settings.redis_url else ""


def _check_deployable(settings: Settings) -> None:
    """Refuse what only one's own machine can do without.

    Raises:
        SettingsError: a store that would end with this task, or a key made on whichever node it runs on.
    """
    if not (ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE):
        return
    missing = [name for name in ("redis_url", "api_key") if getattr(settings, name) is None]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)}: `serve deploy` needs them, since nothing of ours stays behind to keep "
            "results or a key; set them in serve_config.yaml's args, or as FOODDX_ variables of `ray start`"
        )


def _hint() -> None:
    """Say how Serve would cost less, where it was started without."""
    missing = [name for name in _FASTER if os.environ.get(name) != "1"]
    if missing:
        settings = " and ".join(f"{name}=1" for name in missing)
        sys.stderr.write(f"fooddx: set {settings} before Ray starts: without, a photo costs much more CPU\n")


def _redis_url(settings: Settings) -> SecretStr:
    """The given one; else, on one machine, that of an embedded store which lives as long as this process."""
    if settings.redis_url:
        return settings.redis_url
    store = EmbeddedStore(settings.data_dir / "valkey").start()
    atexit.register(store.stop)
    return SecretStr(store.url)


def _device(settings: Settings) -> Device:
    """Where the scorer runs. "auto": on a GPU if this machine or, once connected, the cluster has one."""
    if settings.device != "auto":
        return settings.device
    if ray.is_initialized():
        return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"
