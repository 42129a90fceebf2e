#!/bin/sh
# Runs the load balancer as an unprivileged user that may use the engine's socket and nothing else.
# The socket's group differs from machine to machine, so it is looked up here rather than built in.
set -eu

user=65532
socket=/var/run/docker.sock

if [ "$(id -u)" != 0 ]; then # started with another user: that is who it shall be
  exec loadbalancer "$@"
fi
groups="$user"
if [ -S "$socket" ]; then
  groups="$user,$(stat -L -c %g "$socket")"
fi
exec setpriv --reuid "$user" --regid "$user" --groups "$groups" --inh-caps=-all \
  loadbalancer "$@"
