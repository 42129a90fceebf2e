"""The replicas of a comparison: one nginx worker that listens on one port for each replica.

The benchmark measures the load balancer, so the replicas must take little CPU time. The load balancer starts
a command for each replica. Here the command adds its port to the configuration of the nginx and then sleeps.
A hundred replicas are then a hundred addresses of one server.
"""

import contextlib
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CONFIGURATION = """
daemon off; worker_processes 1; pid {home}/replicas.pid; error_log /dev/null;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
  uwsgi_temp_path {home}; scgi_temp_path {home};
  default_type application/json;
  server {{
    listen unix:{home}/replicas.sock;
    include {home}/ports/*.conf;
    location = /home {{ return 200 '{answer}'; }}
    location / {{ add_header X-Served $request_id; return 200 '{answer}'; }}
  }}
}}
"""
"""Answers to `/home` differ only in their date. Each other answer has a different `X-Served` header."""

ANSWER = '{"message": "Hello from Server: Server-1", "status": "successful"}'

STARTS_WITHIN = 15.0
"""Longest time until nginx listens, in seconds."""


@contextlib.contextmanager
def replicas(home: Path, core: int) -> Iterator[str]:
    """Run the nginx of the replicas while a `with` block lasts.

    Args:
        home: Folder for the configuration.
        core: Core that nginx is pinned to.

    Yields:
        The command of one replica, which gets its port as PORT in its environment.
    """
    ports = home / "ports"
    ports.mkdir()
    configuration = home / "replicas.conf"
    configuration.write_text(CONFIGURATION.format(home=home, answer=ANSWER))
    argv = ["taskset", "-c", str(core), "nginx", "-e", "/dev/null", "-c", str(configuration)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as nginx:
        try:
            _until_listening(home / "replicas.sock")
            # The rename makes the file appear complete, for nginx may read the folder at any moment.
            line = "listen 127.0.0.1:$PORT backlog=4096;"
            script = (
                f'echo "{line}" > {ports}/$PORT.new && mv {ports}/$PORT.new {ports}/$PORT.conf '
                f"&& kill -HUP {nginx.pid} && exec sleep infinity"
            )
            yield f"sh -c {shlex.quote(script)}"
        finally:
            nginx.terminate()


def _until_listening(path: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
