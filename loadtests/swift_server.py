# swift and eventlet are not in the lock, so nothing is known here of their types.
# mypy: disable-error-code="import-not-found"
"""OpenStack Swift in one process, for the tests: run by the interpreter of swift's own environment.

Everything it needs, from rings to data, lies in the folder that is its argument. All servers listen on ports
of 127.0.0.1 that the system picks. It prints the port of the proxy, and ends with its standard input.
"""

import eventlet

eventlet.patcher.monkey_patch()

# What follows must find the patched modules.
import base64  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import swift.common.utils  # noqa: E402
from eventlet import wsgi  # noqa: E402
from eventlet.hubs import trampoline  # noqa: E402

ROOT = Path(sys.argv[1]).absolute()
# The place of this file is a constant of swift, under /etc.
swift.common.utils.SWIFT_CONF_FILE = str(ROOT / "swift.conf")
(ROOT / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
swift.common.utils.validate_hash_conf()

from swift.account.server import app_factory as account_server  # noqa: E402
from swift.common.http_protocol import SwiftHttpProtocol  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402
from swift.container.server import app_factory as container_server  # noqa: E402
from swift.obj.server import app_factory as object_server  # noqa: E402

# gatekeeper … s3api … tempauth … encryption: the order that swift's own documentation asks for.
PROXY = """
[DEFAULT]
swift_dir = {root}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth copy keymaster encryption proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_{user} = {key} .admin
[filter:copy]
use = egg:swift#copy
[filter:keymaster]
use = egg:swift#keymaster
encryption_root_secret = {secret}
[filter:encryption]
use = egg:swift#encryption
"""


def main() -> None:
    """Serve until the standard input ends."""
    servers = {"account": account_server, "container": container_server, "object": object_server}
    (ROOT / "devices" / "disk").mkdir(parents=True)
    sockets = {name: eventlet.listen(("127.0.0.1", 0)) for name in (*servers, "proxy")}
    storage = {"swift_dir": str(ROOT), "devices": str(ROOT / "devices"), "mount_check": "false"}
    apps = {}
    for name, make in servers.items():
        ring = RingBuilder(part_power=2, replicas=1, min_part_hours=0)
        port = sockets[name].getsockname()[1]
        ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1})
        ring.rebalance()
        ring.get_ring().save(str(ROOT / f"{name}.ring.gz"))
        apps[name] = make({**storage, "log_level": "ERROR"})
    (ROOT / "proxy.conf").write_text(
        PROXY.format(
            root=ROOT,
            user=os.environ["SWIFT_USER"].replace(":", "_"),
            key=os.environ["SWIFT_KEY"],
            secret=base64.b64encode(os.urandom(32)).decode(),
        )
    )
    apps["proxy"] = loadapp(str(ROOT / "proxy.conf"))
    silent = logging.getLogger("requests")
    for name, app in apps.items():
        eventlet.spawn(wsgi.server, sockets[name], app, log=silent, protocol=SwiftHttpProtocol)
    sys.stdout.write(f"{sockets['proxy'].getsockname()[1]}\n")
    sys.stdout.flush()
    trampoline(sys.stdin.fileno(), read=True)


if __name__ == "__main__":
    main()
