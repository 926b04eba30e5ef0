#!/bin/sh
# Ray starts this in place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). Two things that Ray has no setting for:
# its metrics and statistics pages listen on loopback instead of everywhere, and HAProxy ends with the process
# that started it, so that no orphan is left holding the port.
config=
previous=
for argument in "$@"; do
  [ "$previous" = "-f" ] && config=$argument
  previous=$argument
done
if [ -n "$config" ]; then
  sed -i -e 's/^\( *bind \)\*\{0,1\}:\([0-9][0-9]*\)/\1127.0.0.1:\2/' "$config"
fi
exec setpriv --pdeathsig TERM -- "$HAPROXY_BINARY" "$@"
