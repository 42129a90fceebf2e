#!/bin/sh
# Runs the load balancer as an unprivileged user with access to the engine's socket.
# The group of the socket differs between machines, so this script looks it up at each start.
set -eu

user=65532
socket=/var/run/docker.sock

if [ "$(id -u)" != 0 ]; then # the container has another user already: keep it
  exec loadbalancer "$@"
fi
groups="$user"
if [ -S "$socket" ]; then
  groups="$user,$(stat -L -c %g "$socket")"
fi
exec setpriv --reuid "$user" --regid "$user" --groups "$groups" --inh-caps=-all \
  loadbalancer "$@"
