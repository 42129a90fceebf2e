"""The replicas of a contest: one nginx worker that answers on as many ports as there are replicas.

What is measured is the load balancer in front of them, so they have to cost little. The load balancer owns
its replicas, and starts a command for each: here the command tells the one nginx of its port and then sleeps,
so that a hundred replicas are a hundred addresses and not a hundred servers.
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
"""`/home` is answered with the same bytes each time, but for the date; all else with a header of its own."""

ANSWER = '{"message": "Hello from Server: Server-1", "status": "successful"}'

STARTS_WITHIN = 15.0


@contextlib.contextmanager
def replicas(home: Path, core: int) -> Iterator[str]:
    """Run them for as long as a `with` block lasts.

    Args:
        home: Folder for the configuration.
        core: What they are pinned to.

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
            # The file appears whole, by its renaming: nginx may be reading the folder for another port.
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
