"""The process under ``fooddx serve`` that holds Ray: a cluster of this machine only, with the graph on it.

``python -m app.local_cluster`` reads its settings from standard input, after that the models that should
serve from then on, whenever they change, a JSON list a line; and it serves until its input is closed. So it
ends in good order whatever happens to its parent, and needs no signal, of which Ray takes over several.
Everything listens on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray import serve

from app.settings import Settings
from app.stores.private import private_folder

KEEP_LOGS_S = 7 * 86_400.0


def listen_on_loopback() -> None:
    """Run by Ray in every worker before anything else: keep the replicas' gRPC servers off the network.

    Ray binds them to every interface and has no option for it (ray 2.60, replica.py, `_on_initialized`).
    """
    from ray._common import tls_utils  # noqa: PLC0415 - before the replica's module takes the name from it

    add_port = tls_utils.add_port_to_grpc_server

    def on_loopback(server: object, address: str) -> object:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    tls_utils.add_port_to_grpc_server = on_loopback


def forget_old_sessions(folder: Path) -> None:
    """Delete what Ray left of starts long ago: it keeps the logs of each for ever."""
    for session in folder.glob("session_2*"):
        if session.stat().st_mtime < time.time() - KEEP_LOGS_S:
            shutil.rmtree(session, ignore_errors=True)


def main() -> None:
    """Start Ray and the graph, wait for the end of standard input, stop both."""
    settings = Settings.model_validate_json(sys.stdin.readline())
    needed = settings.ingress_replicas + settings.preprocessor_replicas
    needed += settings.scorer_replicas * settings.scorer_threads
    needed += settings.intake_replicas if settings.queue else 0
    # Not Ray's usual folder, where its commands look for a cluster to join; and closed to other users, to
    # whom Ray would open it.
    folder = private_folder(Path(tempfile.gettempdir()) / f"fooddx-{os.getuid()}") / "ray"
    forget_old_sessions(folder)
    ray.init(
        address="local",
        # CPUs are bookkeeping, not a limit: a small machine runs the graph too, only slower.
        num_cpus=max(2, needed),
        include_dashboard=False,
        log_to_driver=False,
        namespace="serve",
        _temp_dir=str(folder),
        _metrics_export_port=settings.metrics_port,
        runtime_env={"worker_process_setup_hook": listen_on_loopback},
    )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.port},
            logging_config={"log_level": "WARNING", "encoding": "JSON"},
        )
        from app.main import graph  # noqa: PLC0415 - imports what the replicas need, while Serve starts

        serve.run(graph(settings), name="fooddx", route_prefix="/", blocking=False)
        for line in sys.stdin:
            try:
                serve.run(graph(settings, json.loads(line)), name="fooddx", route_prefix="/", blocking=False)
            except RuntimeError as error:
                # The replicas that run keep what they have; the next promotion is another try.
                print(f"{line.strip()} could not be taken up: {error}", file=sys.stderr)  # noqa: T201 - the log
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
