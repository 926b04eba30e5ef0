#!/bin/sh
# Ray starts this in place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). Three things that Ray has no setting for:
# its metrics and statistics pages listen on loopback instead of everywhere; a client cannot switch off how Serve
# treats its request by a header; and HAProxy ends with the process that started it, so that no orphan is left
# holding the port.
config=
previous=
for argument in "$@"; do
  [ "$previous" = "-f" ] && config=$argument
  previous=$argument
done
if [ -n "$config" ]; then
  sed -i \
    -e 's/^\( *bind \)\*\{0,1\}:\([0-9][0-9]*\)/\1127.0.0.1:\2/' \
    -e '/^frontend http_frontend$/a\    http-request del-header x-request-timeout-seconds\n    http-request del-header x-request-disconnect-disabled' \
    "$config"
fi
exec setpriv --pdeathsig TERM -- "$HAPROXY_BINARY" "$@"
