"""The contestants: each a process that listens on a port in front of the same replicas.

The replicas are nginx workers that answer 66 bytes of JSON from memory: what is measured is the load
balancer in front of them, so they have to be faster than it.
"""

import contextlib
import json
import os
import resource
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPLICA = """
daemon off; worker_processes 1; pid {home}/$PORT.pid; error_log /dev/null;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
  uwsgi_temp_path {home}; scgi_temp_path {home};
  server {{
    listen 127.0.0.1:$PORT backlog=4096;
    location / {{
      default_type application/json;
      return 200 '{{"message": "Hello from Server: Server-1", "status": "successful"}}';
    }}
  }}
}}
"""

NGINX = """
daemon off; worker_processes 1; pid {home}/lb.pid; error_log /dev/null;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
  uwsgi_temp_path {home}; scgi_temp_path {home};
  upstream replicas {{ hash $request_id consistent; keepalive 256; {servers} }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Request-Id $request_id;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0;
    }}
  }}
}}
"""

HAPROXY = """
global
  maxconn {connections}
  nbthread 1
defaults
  mode http
  timeout connect 1s
  timeout client 75s
  timeout server 60s
  option forwardfor
  http-reuse always
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  default_backend replicas
backend replicas
  balance random
{servers}
"""

STARTS_WITHIN = 15.0
"""Seconds for a contestant to answer."""


@dataclass(frozen=True)
class Peer:
    """A contestant.

    Args:
        name: As the table calls it.
        port: Where it listens on 127.0.0.1.
        pid: Of its main process; 0 when its CPU time is not measured.
    """

    name: str
    port: int
    pid: int

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time of the process and of its children, so far."""
        user = system = 0.0
        for pid in _family(self.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                tick = os.sysconf("SC_CLK_TCK")
                user += int(fields[11]) / tick
                system += int(fields[12]) / tick
        return user, system

    def memory(self) -> float:
        """Resident memory of the process and of its children, in MiB."""
        total = 0
        for pid in _family(self.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1])
        return total / 1024


def _family(pid: int) -> list[int]:
    """A process, and its children where they do its work; replicas, in groups of their own, do not count."""
    family = [pid] if pid else []
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        family += [int(child) for child in children if os.getpgid(int(child)) == os.getpgid(pid)]
    return family


@contextlib.contextmanager
def contestants(
    home: Path, first_port: int, core: int, other: int, replica: Sequence[str] = ()
) -> Iterator[list[Peer]]:
    """Start all of them, pinned to one core, and their replicas, pinned to another.

    Args:
        home: Folder for configurations.
        first_port: The first of the ports that they take.
        core: Of the contestants.
        other: Of the replicas.
        replica: Command of a replica, which gets PORT in its environment; default: nginx workers.
    """
    template = home / "replica.conf"
    template.write_text(REPLICA.format(home=home))
    if replica:
        command = f"taskset -c {other} {shlex.join(replica)}"
    else:
        command = (
            f"sh -c 'sed s/.PORT/$PORT/g {template} > {home}/$PORT.conf; "
            f"exec taskset -c {other} nginx -e /dev/null -c {home}/$PORT.conf'"
        )
    with contextlib.ExitStack() as stack:

        def start(name: str, port: int, *argv: str) -> Peer:
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            _until_answering(port)
            return Peer(name, port, process.pid)

        peers = []
        for offset, lane in enumerate(("fast", "asgi")):
            options = ["--port", str(first_port + offset), "--lane", lane, "--command", command]
            serve = [sys.executable, "-m", "loadbalancer", "serve", "--heartbeat-path", "/", *options]
            peers.append(start(f"this, {lane} lane", first_port + offset, *serve))
        addresses = _addresses(first_port)
        port = first_port + 2
        config = home / "nginx.conf"
        servers = " ".join(f"server {address};" for address in addresses)
        config.write_text(NGINX.format(home=home, port=port, servers=servers))
        peers.append(start("nginx", port, "nginx", "-e", "/dev/null", "-c", str(config)))
        port = first_port + 3
        config = home / "haproxy.cfg"
        servers = "\n".join(f"  server s{n} {address}" for n, address in enumerate(addresses))
        config.write_text(HAPROXY.format(port=port, servers=servers, connections=_connections()))
        peers.append(start("HAProxy", port, "haproxy", "-f", str(config)))
        peers.append(Peer("a replica, directly", int(addresses[0].rpartition(":")[2]), 0))
        yield peers


def _connections() -> int:
    """How many connections HAProxy may promise: two files for each, and some to spare."""
    return min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100)


def _until_answering(port: int) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/home", timeout=1) as answer:
                answer.read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _addresses(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/lb/replicas", timeout=5) as answer:
        replicas = json.load(answer)["message"]["replicas"]
    return [replica["address"] for replica in replicas]
