"""Servers that are none of ours, behind the load balancer unchanged (a WebSocket one: `test_websocket`)."""

import getpass
import grp
import os
import shutil
from pathlib import Path

import pytest

from tests.harness import LoadBalancer

NGINX = """
user {user}; daemon off; worker_processes 1; pid {home}/nginx.$PORT.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {home}; proxy_temp_path {home};
  fastcgi_temp_path {home}; uwsgi_temp_path {home}; scgi_temp_path {home};
  server {{
    listen 127.0.0.1:$PORT;
    root {home}/www;
    location /whoami {{ add_header X-Served-By $HOSTNAME; return 200 "nginx behind $HOSTNAME"; }}
  }}
}}
"""


@pytest.fixture
def www(tmp_path: Path) -> Path:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "index.html").write_text("<h1>welcome</h1>")
    (folder / "large.bin").write_bytes(bytes(range(256)) * 4096)
    return folder


def test_pythons_own_http_server(www: Path) -> None:
    command = f"sh -c 'exec python -m http.server --bind 127.0.0.1 --directory {www} $PORT'"
    with LoadBalancer("--command", command, "--heartbeat-path", "/") as lb:
        assert lb.call("GET", "/").body == b"<h1>welcome</h1>"
        assert lb.call("GET", "/large.bin").body == bytes(range(256)) * 4096
        assert lb.call("GET", "/no-such-file").status == 404
        assert lb.call("POST", "/").status == 501
        assert [one["state"] for one in lb.state().values()] == ["up"] * 3


def test_a_server_that_knows_no_heartbeat_is_alive_all_the_same(www: Path) -> None:
    command = f"sh -c 'exec python -m http.server --bind 127.0.0.1 --directory {www} $PORT'"
    with LoadBalancer("--command", command, "--heartbeat-interval", "0.05", replicas=1) as lb:
        for _ in range(20):
            assert lb.call("GET", "/").status == 200
        assert lb.state()["Server-1"]["missed"] == 0


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx(www: Path, tmp_path: Path) -> None:
    template = tmp_path / "nginx.template"
    template.write_text(
        NGINX.format(home=tmp_path, user=f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}")
    )
    command = (
        f"sh -c 'sed -e s/.PORT/$PORT/g -e s/.HOSTNAME/$HOSTNAME/g {template} > {tmp_path}/$PORT.conf; "
        f"exec nginx -e stderr -p {tmp_path} -c {tmp_path}/$PORT.conf'"
    )
    with LoadBalancer("--command", command) as lb:
        assert lb.call("GET", "/").body == b"<h1>welcome</h1>"
        served_by = {lb.call("GET", "/whoami").headers["X-Served-By"] for _ in range(60)}
        assert served_by == {"Server-1", "Server-2", "Server-3"}
        partial = lb.call("GET", "/large.bin", headers={"Range": "bytes=10-19"})
        assert (partial.status, partial.body) == (206, bytes(range(10, 20)))
        etag = lb.call("GET", "/").headers["ETag"]
        assert lb.call("GET", "/", headers={"If-None-Match": etag}).status == 304
