"""The peers: the load balancers that are compared, each a process in front of the same replicas.

All peers are pinned to one core; the replicas and the load generator are pinned to another.
"""

import contextlib
import json
import os
import resource
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trustme

from analysis.bench.replicas import replicas

CORE, LOAD_CORE = 0, 1
"""The core of the peers, and the core of the replicas and the load generator."""

FIRST_PORT = 8301
"""The port of the first peer; the others have the next ones."""

OURS, OURS_ASGI, NGINX_NAME, HAPROXY_NAME = "this, fast lane", "this, asgi lane", "nginx", "HAProxy"
DIRECT = "a replica, directly"
"""The name of a replica that the load goes to without a load balancer."""
ALL_PEERS = (OURS, OURS_ASGI, NGINX_NAME, HAPROXY_NAME, DIRECT)

NGINX = """
daemon off; worker_processes 1; pid {home}/lb.pid; error_log /dev/null;
events {{ worker_connections 20000; }}
http {{
  access_log {log}; keepalive_requests 100000000;
  client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
  uwsgi_temp_path {home}; scgi_temp_path {home};
  upstream replicas {{ hash {key} consistent; keepalive 256; {servers} }}
  server {{
    listen 127.0.0.1:{port} backlog=4096 {tls};
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
  log stdout format raw local0
defaults
  mode http
{log}
  timeout connect 1s
  timeout client 75s
  timeout server 60s
  option forwardfor
  http-reuse always
frontend clients
  bind 127.0.0.1:{port} backlog 4096 {tls}
  default_backend replicas
backend replicas
  {balance}
{servers}
"""

HAPROXY_LOG = "  log global\n  option httplog"

STARTS_WITHIN = 30.0
"""Longest time until a peer answers, in seconds."""


@dataclass(frozen=True)
class Setup:
    """The configuration that all peers of one comparison share.

    Args:
        replicas: Number of replicas.
        cookie: Name of the cookie that is hashed; empty: the id of the request (HAProxy: a random replica).
        access_log: Whether each request is logged to a file.
        tls: Whether clients connect with TLS.
    """

    replicas: int = 3
    cookie: str = ""
    access_log: bool = False
    tls: bool = False


@dataclass(frozen=True)
class Peer:
    """A load balancer that is compared, or a replica without one.

    Args:
        name: Name in the tables.
        port: Port on 127.0.0.1.
        pid: Id of its main process; 0: its CPU time and its memory are not measured.
        tls: Whether clients connect with TLS.
    """

    name: str
    port: int
    pid: int
    tls: bool = False

    def url(self, path: str) -> str:
        """The URL of a path."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}"

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time of the process and its children until now."""
        user = system = 0.0
        for pid in _family(self.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                tick = os.sysconf("SC_CLK_TCK")
                user += int(fields[11]) / tick
                system += int(fields[12]) / tick
        return user, system

    def memory(self) -> float:
        """Resident memory of the process and its children, in MiB."""
        total = 0
        for pid in _family(self.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1])
        return total / 1024


def _family(pid: int) -> list[int]:
    """A process and those of its children that share its process group; replicas have their own groups."""
    family = [pid] if pid else []
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        family += [int(child) for child in children if os.getpgid(int(child)) == os.getpgid(pid)]
    return family


@contextlib.contextmanager
def on_load_core() -> Iterator[None]:
    """Pin this thread to the core of the load generator."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running_peers(
    home: Path, names: Sequence[str] = ALL_PEERS, setup: Setup | None = None, replica: Sequence[str] = ()
) -> Iterator[list[Peer]]:
    """Start peers and their replicas, and stop them at the end.

    The fast lane always starts, because it owns the replicas.

    Args:
        home: Folder for configurations and logs.
        names: Names of the peers to start. HAProxy is omitted if it is not installed.
        setup: Configuration of all peers; default: three replicas and no further feature.
        replica: Command of a replica, which gets PORT in its environment; default: nginx.

    Yields:
        The peers of `names`, in the order of `ALL_PEERS`.
    """
    setup = setup or Setup()
    certificate = _certificate(home) if setup.tls else None
    with contextlib.ExitStack() as stack:
        if replica:
            command = f"taskset -c {LOAD_CORE} {shlex.join(replica)}"
        else:
            command = stack.enter_context(replicas(home, LOAD_CORE))

        def start(name: str, *argv: str) -> Peer:
            port = _port(name)
            output = stack.enter_context((home / f"{port}.log").open("wb"))
            process = subprocess.Popen(["taskset", "-c", str(CORE), *argv], stdout=output, stderr=output)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            peer = Peer(name, port, process.pid, setup.tls)
            _until_answering(peer)
            return peer

        peers = [start(OURS, *_ours("fast", _port(OURS), command, setup, certificate))]
        addresses = _addresses(peers[0])
        if OURS_ASGI in names:
            peers.append(start(OURS_ASGI, *_ours("asgi", _port(OURS_ASGI), command, setup, certificate)))
        if NGINX_NAME in names:
            config = _nginx(home, _port(NGINX_NAME), addresses, setup, certificate)
            peers.append(start(NGINX_NAME, "nginx", "-e", "/dev/null", "-c", str(config)))
        if HAPROXY_NAME in names and shutil.which("haproxy"):
            config = _haproxy(home, _port(HAPROXY_NAME), addresses, setup, certificate)
            peers.append(start(HAPROXY_NAME, "haproxy", "-f", str(config)))
        if DIRECT in names:
            peers.append(Peer(DIRECT, int(addresses[0].rpartition(":")[2]), 0))
        yield [peer for peer in peers if peer.name in names]


def _port(name: str) -> int:
    return FIRST_PORT + ALL_PEERS.index(name)


def _ours(lane: str, port: int, command: str, setup: Setup, certificate: Path | None) -> list[str]:
    options = ["--port", str(port), "--lane", lane, "--heartbeat-path", "/"]
    options += ["--backend", "process", "--command", command, "--replicas", str(setup.replicas)]
    if setup.cookie:
        options += ["--hash-on", f"cookie:{setup.cookie}"]
    if setup.access_log:
        options += ["--access-log", "--log-format", "json"]
    if certificate is not None:
        options += ["--tls-cert", str(certificate), "--tls-key", str(certificate)]
    return [sys.executable, "-m", "loadbalancer", "serve", *options]


def _nginx(home: Path, port: int, addresses: Sequence[str], setup: Setup, certificate: Path | None) -> Path:
    config = home / "nginx.conf"
    config.write_text(
        NGINX.format(
            home=home,
            port=port,
            servers=" ".join(f"server {address};" for address in addresses),
            key=f"$cookie_{setup.cookie}" if setup.cookie else "$request_id",
            log=home / "nginx-access.log" if setup.access_log else "off",
            tls=f"ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate}"
            if certificate
            else "",
        )
    )
    return config


def _haproxy(home: Path, port: int, addresses: Sequence[str], setup: Setup, certificate: Path | None) -> Path:
    config = home / "haproxy.cfg"
    by_cookie = f"balance hash req.cook({setup.cookie})\n  hash-type consistent"
    config.write_text(
        HAPROXY.format(
            port=port,
            servers="\n".join(f"  server s{n} {address}" for n, address in enumerate(addresses)),
            connections=_connections(),
            balance=by_cookie if setup.cookie else "balance random",
            log=HAPROXY_LOG if setup.access_log else "",
            tls=f"ssl crt {certificate}" if certificate else "",
        )
    )
    return config


def _certificate(home: Path) -> Path:
    """Write a new certificate and its key to one file, a form that all peers can read."""
    file = home / "certificate.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    return file


def _connections() -> int:
    """The connection limit for HAProxy: it needs two files for each connection, and 200 for itself."""
    return min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100)


def _get(peer: Peer, path: str) -> bytes:
    context = ssl._create_unverified_context() if peer.tls else None  # noqa: S323 - the load is a measurement
    with urllib.request.urlopen(peer.url(path), timeout=5, context=context) as answer:  # noqa: S310 - HTTP(S)
        body: bytes = answer.read()
        return body


def _until_answering(peer: Peer) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            _get(peer, "/home")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _addresses(peer: Peer) -> list[str]:
    """Wait until all replicas of the fast lane are up, and return their addresses."""
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        present = json.loads(_get(peer, "/lb/replicas"))["message"]["replicas"]
        if all(replica["state"] == "up" for replica in present) or time.monotonic() > deadline:
            return [replica["address"] for replica in present]
        time.sleep(0.05)
